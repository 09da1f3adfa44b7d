"""libp2p's Noise handshake as a machine: bytes in, bytes out, two keys and a proven peer at the end.

    -> e
    <- e, ee, s, es   and the responder's payload
    -> s, se          and the initiator's payload

Each message has its length in two bytes in front. A payload carries the peer's identity key, its
signature over the static key of this handshake, and the muxers it speaks: where both sides name
some, the muxer is agreed here and the round trip of asking for it saved. All randomness is passed
in. Whatever a stranger's bytes make the libraries below raise leaves as `HandshakeError`.

Sources: https://noiseprotocol.org/noise.html,
https://github.com/libp2p/specs/blob/master/noise/README.md,
https://github.com/libp2p/specs/blob/master/connections/inlined-muxer-negotiation.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from google.protobuf.message import DecodeError
from noise.backends.default import noise_backend
from noise.backends.default.keypairs import KeyPair25519
from noise.exceptions import NoiseValueError
from noise.noise_protocol import NoiseProtocol

from modelnet_p2p.identity import PUBLIC_KEY_BYTES, PUBLIC_KEY_HEADER, KeyPair, PeerId
from modelnet_p2p.pb.noise_pb2 import NoiseExtensions, NoisePayload

NOISE_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
SIGNED_PREFIX = b"noise-libp2p-static-key:"  # in front of the static key in what the identity signs
KEY_BYTES = 32  # of an X25519 key, private or public, and of a key of the transport phase
STATICS = 512  # static keys of this process that are kept ready: one for each of its peers
LENGTH_BYTES = 2  # in front of each message, big-endian
MAX_MESSAGE = 4096  # bytes taken: ours have 32 to 250; one with a 4096-bit RSA key and a dozen muxers 1,500


class HandshakeError(ValueError):
    """The far side's bytes are no sound handshake, or prove to be another peer's."""


@dataclass(frozen=True, slots=True)
class Secured:
    """What a finished handshake leaves; both keys' nonces begin at 0."""

    peer: PeerId  # it holds this identity's private key
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    muxer: str  # agreed inside the handshake; "" if not, then it is to be asked for
    rest: bytes = field(repr=False)  # what came behind the handshake: the first bytes of the transport phase


class NoiseXX:
    """The Noise state alone, payloads being mere bytes; each side writes and reads by turns."""

    def __init__(self, *, initiator: bool, static: bytes, ephemeral: bytes, prologue: bytes = b"") -> None:
        protocol = NoiseProtocol(NOISE_NAME, noise_backend)
        protocol.initiator, protocol.prologue = initiator, prologue
        protocol.keypairs.update(s=_lasting(static), e=KeyPair25519.from_private_bytes(ephemeral))
        protocol.initialise_handshake_state()  # without its `validate`, which warns of given ephemeral keys
        self._protocol = protocol
        self._state = protocol.handshake_state  # the protocol drops it at the end

    @property
    def static(self) -> bytes:
        """My static public key."""
        return bytes(self._state.s.public_bytes)

    @property
    def remote_static(self) -> bytes:
        """The far side's static public key, once its message with it was read."""
        return bytes(self._state.rs.public_bytes)

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """Mine to send with and to receive with, once the last message has passed."""
        return bytes(self._protocol.cipher_state_encrypt.k), bytes(self._protocol.cipher_state_decrypt.k)

    def write(self, payload: bytes) -> bytes:
        """The next message, with `payload` in it; raises HandshakeError: the far side's key is used here."""
        message = bytearray()
        with _strangers_bytes():
            self._state.write_message(payload, message)
        return bytes(message)

    def read(self, message: bytes) -> bytes:
        """The payload of the far side's next message; raises HandshakeError."""
        payload = bytearray()
        with _strangers_bytes():
            self._state.read_message(message, payload)
        return bytes(payload)


@contextmanager
def _strangers_bytes() -> Iterator[None]:
    """The one point where what bad bytes make the libraries raise becomes HandshakeError."""
    try:
        yield
    except InvalidTag as error:
        raise HandshakeError("a message does not decrypt") from error
    except DecodeError as error:
        raise HandshakeError("its payload is no protobuf") from error
    except (NoiseValueError, ValueError) as error:  # cut inside a key; a key that gives no secret
        raise HandshakeError(f"a message without a sound key: {error}") from error


@lru_cache(maxsize=STATICS)
def _lasting(static: bytes) -> KeyPair25519:
    """One key serves all handshakes of a peer: a fifteenth of their time went into its public half."""
    return KeyPair25519.from_private_bytes(static)


@lru_cache(maxsize=STATICS)
def _introduction(identity: KeyPair, static: bytes, muxers: tuple[str, ...]) -> bytes:
    """Who I am, in all handshakes with this static key: whoever holds its private half is signed for."""
    payload = NoisePayload(
        identity_key=PUBLIC_KEY_HEADER + bytes(identity.id[-32:]),
        identity_sig=identity.sign(SIGNED_PREFIX + static),
    )
    if muxers:
        payload.extensions.CopyFrom(NoiseExtensions(stream_muxers=muxers))
    return payload.SerializeToString()


class Handshake:
    """One side of one handshake; `secured` is set when it has succeeded.

    `static` and `ephemeral` are private X25519 keys (32 random bytes), the ephemeral one for this
    handshake alone. `expect` is the peer that must be at the other end, None for anybody. `muxers`
    are those offered, most preferred first.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        identity: KeyPair,
        static: bytes,
        ephemeral: bytes,
        muxers: Sequence[str] = (),
        expect: PeerId | None = None,
    ) -> None:
        self.secured: Secured | None = None
        self._initiator = initiator
        self._identity = identity
        self._muxers = tuple(muxers)
        self._expect = expect
        self._noise = NoiseXX(initiator=initiator, static=static, ephemeral=ephemeral)
        self._received = bytearray()  # at most one message and what came with it in one read
        self._greeted = False  # the responder has taken the first message
        self._failed = False

    def start(self) -> bytes:
        """The initiator's first message; nothing for the responder."""
        return self._framed(b"") if self._initiator else b""

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take what came; returns what is to be sent now, maybe nothing. Raises HandshakeError.

        After an error, and after `secured` is set, it must not be called again (RuntimeError).
        """
        if self._failed or self.secured is not None:
            raise RuntimeError("this handshake is over")
        self._received += data
        answer = b""
        try:
            while self.secured is None and (message := self._next_message()) is not None:
                answer += self._on_message(message)
        except HandshakeError:
            self._failed = True
            raise
        return answer

    def _next_message(self) -> bytes | None:
        if len(self._received) < LENGTH_BYTES:
            return None
        end = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if end > LENGTH_BYTES + MAX_MESSAGE:
            raise HandshakeError(f"a message of {end - LENGTH_BYTES} bytes; at most {MAX_MESSAGE} are taken")
        if len(self._received) < end:
            return None
        message = bytes(self._received[LENGTH_BYTES:end])
        del self._received[:end]
        return message

    def _on_message(self, message: bytes) -> bytes:
        payload = self._noise.read(message)
        if self._initiator:
            remote = self._check(payload)  # before I prove who I am
            answer = self._framed(self._payload())
            self._finish(*remote)
            return answer
        if not self._greeted:  # what the first message carries is in clear, and not looked at
            self._greeted = True
            return self._framed(self._payload())
        self._finish(*self._check(payload))
        return b""

    def _framed(self, payload: bytes) -> bytes:
        message = self._noise.write(payload)
        return len(message).to_bytes(LENGTH_BYTES, "big") + message

    def _payload(self) -> bytes:
        return _introduction(self._identity, self._noise.static, self._muxers)

    def _check(self, body: bytes) -> tuple[PeerId, str]:
        """Who the far side has proved to be, and the muxer agreed with it."""
        payload = NoisePayload()
        with _strangers_bytes():
            payload.ParseFromString(body)
        key = payload.identity_key
        if len(key) != PUBLIC_KEY_BYTES or not key.startswith(PUBLIC_KEY_HEADER):
            raise HandshakeError("its identity is not an Ed25519 key")
        peer = PeerId.of_key(key[-32:])
        if not peer.verify(SIGNED_PREFIX + self._noise.remote_static, payload.identity_sig):
            raise HandshakeError(f"its key is not signed by peer {peer}")
        if self._expect is not None and peer != self._expect:
            raise HandshakeError(f"peer {peer} answered instead")
        return peer, self._agreed(payload.extensions.stream_muxers)

    def _agreed(self, theirs: Sequence[str]) -> str:
        """The first of the initiator's muxers that both speak; "" where one side names none."""
        if not self._muxers or not theirs:
            return ""
        preferred, others = (self._muxers, theirs) if self._initiator else (theirs, self._muxers)
        for muxer in preferred:
            if muxer in others:
                return muxer
        raise HandshakeError("no muxer in common")

    def _finish(self, peer: PeerId, muxer: str) -> None:
        send_key, receive_key = self._noise.keys
        self.secured = Secured(peer, send_key, receive_key, muxer, bytes(self._received))
        self._received.clear()
