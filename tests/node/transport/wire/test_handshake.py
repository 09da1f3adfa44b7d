"""The Noise handshake: known answers, two honest sides, and strangers who bend every byte of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from noise.backends.default import noise_backend
from noise.noise_protocol import NoiseProtocol

from modelnet_p2p.identity import PUBLIC_KEY_HEADER, KeyPair, PeerId
from modelnet_p2p.node.transport.wire.handshake import (
    KEY_BYTES,
    LENGTH_BYTES,
    MAX_MESSAGE,
    SIGNED_PREFIX,
    Handshake,
    HandshakeError,
    NoiseXX,
    Secured,
)
from modelnet_p2p.node.transport.wire.sealing import Opener, Sealer
from modelnet_p2p.pb.noise_pb2 import NoiseExtensions, NoisePayload
from sealed import opened, seal

YAMUX = "/yamux/1.0.0"
MARK = 5.0  # milliseconds of CPU that a handshake may cost both ends together


def secret(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


ALICE, BOB, MALLORY = (KeyPair(secret(name)) for name in ("alice", "bob", "mallory"))


def dialler(
    expect: PeerId | None = BOB.id, muxers: Sequence[str] = (YAMUX,), ephemeral: str = "alice's ephemeral"
) -> Handshake:
    """Alice, the same to the byte each time."""
    return Handshake(
        initiator=True,
        identity=ALICE,
        static=secret("alice's static"),
        ephemeral=secret(ephemeral),
        muxers=muxers,
        expect=expect,
    )


def listener(muxers: Sequence[str] = (YAMUX,), ephemeral: str = "bob's ephemeral") -> Handshake:
    """Bob, the same to the byte each time."""
    return Handshake(
        initiator=False,
        identity=BOB,
        static=secret("bob's static"),
        ephemeral=secret(ephemeral),
        muxers=muxers,
    )


def shake(alice: Handshake, bob: Handshake) -> tuple[Secured, Secured]:
    assert bob.receive(alice.receive(bob.receive(alice.start()))) == b""
    assert alice.secured is not None
    assert bob.secured is not None
    return alice.secured, bob.secured


def messages() -> tuple[bytes, bytes, bytes]:
    """The three messages of Alice's and Bob's handshake."""
    alice, bob = dialler(), listener()
    first = alice.start()
    second = bob.receive(first)
    return first, second, alice.receive(second)


FIRST, SECOND, THIRD = messages()


# --- known answers -------------------------------------------------------------------------------

# Noise_XX_25519_ChaChaPoly_SHA256 of the vectors that cacophony made and snow tests itself with:
# prologue, the private keys, then payload and message of the handshake and of the transport phase
PROLOGUE = bytes.fromhex("4a6f686e2047616c74")
STATICS = (
    bytes.fromhex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"),
    bytes.fromhex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"),
)
EPHEMERALS = (
    bytes.fromhex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"),
    bytes.fromhex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"),
)
VECTOR = [
    (
        "4c756477696720766f6e204d69736573",
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79444c756477696720766f6e204d69736573",
    ),
    (
        "4d757272617920526f746862617264",
        "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f14480884381cbad1f276e038c48378ffce2b65285"
        "e08d6b68aaa3629a5a8639392490e5b9bd5269c2f1e4f488ed8831161f19b7815528f8982ffe09be9b5c412f8a0db50f"
        "8814c7194e83f23dbd8d162c9326ad",
    ),
    (
        "462e20412e20486179656b",
        "c7195ffacac1307ff99046f219750fc47693e23c3cb08b89c2af808b444850a80ae475b9df0f169ae80a89be0865b57f"
        "58c9fea0d4ec82a286427402f113e4b6ae769a1d95941d49b25030",
    ),
    ("4361726c204d656e676572", "96763ed773f8e47bb3712f0e29b3060ffc956ffc146cee53d5e1df"),
    (
        "4a65616e2d426170746973746520536179",
        "3e40f15f6f3a46ae446b253bf8b1d9ffb6ed9b174d272328ff91a7e2e5c79c07f5",
    ),
    (
        "457567656e2042f6686d20766f6e2042617765726b",
        "eb3f3515110702e047a6c9da4478b6ead94873c11c0f2d710ddb3f09fce024b3a58502ae3f",
    ),
]


def test_the_published_vectors_come_out() -> None:
    alice, bob = (
        NoiseXX(initiator=i == 0, static=STATICS[i], ephemeral=EPHEMERALS[i], prologue=PROLOGUE)
        for i in (0, 1)
    )
    answers = [(bytes.fromhex(payload), bytes.fromhex(message)) for payload, message in VECTOR]
    for i, (payload, message) in enumerate(answers[:3]):
        writer, reader = (alice, bob) if i % 2 == 0 else (bob, alice)
        assert writer.write(payload) == message
        assert reader.read(message) == payload
    assert alice.keys == bob.keys[::-1]
    assert (alice.static, bob.static) == (bob.remote_static, alice.remote_static)
    sealers = [Sealer(bob.keys[0]), Sealer(alice.keys[0])]  # the transport phase begins with Bob
    openers = [Opener(alice.keys[1]), Opener(bob.keys[1])]
    for i, (payload, message) in enumerate(answers[3:]):
        framed = len(message).to_bytes(2, "big") + message
        assert seal(sealers[i % 2], payload) == framed
        assert opened(openers[i % 2], framed) == payload


# --- two honest sides ------------------------------------------------------------------------------


def test_both_ends_know_each_other_and_share_two_keys() -> None:
    alice, bob = shake(dialler(), listener())
    assert (alice.peer, bob.peer) == (BOB.id, ALICE.id)
    assert (alice.send_key, alice.receive_key) == (bob.receive_key, bob.send_key)
    assert alice.send_key != alice.receive_key
    assert (alice.muxer, bob.muxer, alice.rest, bob.rest) == (YAMUX, YAMUX, b"", b"")


def test_keys_do_not_show_when_a_result_is_printed() -> None:
    alice, _ = shake(dialler(), listener())
    assert repr(alice.send_key) not in repr(alice)
    assert "key" not in repr(alice)


def test_fresh_ephemeral_keys_give_fresh_keys() -> None:
    first, _ = shake(dialler(), listener())
    second, _ = shake(dialler(), listener(ephemeral="another"))
    assert {first.send_key, first.receive_key}.isdisjoint({second.send_key, second.receive_key})


@given(st.lists(st.integers(1, 80), min_size=1, max_size=12))
def test_messages_may_come_in_any_pieces(sizes: list[int]) -> None:
    def feed(to: Handshake, data: bytes) -> bytes:
        answer, at, turn = b"", 0, 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            answer += to.receive(data[at : at + size])
            at, turn = at + size, turn + 1
        return answer

    alice, bob = dialler(), listener()
    feed(bob, feed(alice, feed(bob, alice.start())))
    assert alice.secured is not None
    assert bob.secured is not None
    assert alice.secured.send_key == bob.secured.receive_key


def test_what_comes_behind_is_handed_on() -> None:
    alice, bob = dialler(), listener()
    third = alice.receive(bob.receive(alice.start()))
    bob.receive(third + b"the first sealed bytes")
    assert bob.secured is not None
    assert bob.secured.rest == b"the first sealed bytes"


@pytest.mark.parametrize(
    ("initiator", "responder", "agreed"),
    [
        ([YAMUX], [YAMUX], YAMUX),
        (["/a", "/b"], ["/b", "/a"], "/a"),  # whoever dials has the choice
        (["/quic", "/b"], ["/a", "/b"], "/b"),
        ([], [YAMUX], ""),  # a side that does not negotiate early is asked later
        ([YAMUX], [], ""),
        ([], [], ""),
    ],
)
def test_the_first_of_the_diallers_muxers_that_both_speak(
    initiator: list[str], responder: list[str], agreed: str
) -> None:
    alice, bob = shake(dialler(muxers=initiator), listener(muxers=responder))
    assert (alice.muxer, bob.muxer) == (agreed, agreed)


def test_without_a_common_muxer_both_ends_give_up() -> None:
    alice, bob = dialler(muxers=["/a"]), listener(muxers=["/b"])
    with pytest.raises(HandshakeError, match="no muxer in common"):
        alice.receive(bob.receive(alice.start()))


def test_another_implementation_understands_each_message() -> None:
    """The payload, field by field, as the specification has it, read by the library's plain state."""
    protocol = NoiseProtocol(b"Noise_XX_25519_ChaChaPoly_SHA256", noise_backend)
    protocol.initiator = False
    private = protocol.dh_fn.klass.from_private_bytes
    protocol.keypairs.update(s=private(secret("s")), e=private(secret("e")))
    protocol.initialise_handshake_state()
    state = protocol.handshake_state
    alice = dialler(expect=None)
    state.read_message(alice.start()[LENGTH_BYTES:], bytearray())
    public = private(secret("s")).public_bytes
    answer = NoisePayload(
        identity_key=PUBLIC_KEY_HEADER + MALLORY.id[-32:], identity_sig=MALLORY.sign(SIGNED_PREFIX + public)
    )
    message, told = bytearray(), bytearray()
    state.write_message(answer.SerializeToString(), message)
    third = alice.receive(len(message).to_bytes(2, "big") + message)
    state.read_message(third[LENGTH_BYTES:], told)
    payload = NoisePayload.FromString(bytes(told))
    assert payload.identity_key == bytes.fromhex("08011220") + ALICE.id[-32:]
    assert ALICE.id.verify(b"noise-libp2p-static-key:" + state.rs.public_bytes, payload.identity_sig)
    assert list(payload.extensions.stream_muxers) == [YAMUX]
    assert alice.secured is not None
    assert alice.secured.muxer == ""
    assert alice.secured.send_key == protocol.cipher_state_decrypt.k


def test_a_handshake_costs_less_than_the_mark() -> None:
    shake(dialler(), listener())  # what is made once per process does not count
    before = time.process_time()
    for _ in range(20):
        shake(dialler(), listener())
    assert (time.process_time() - before) / 20 * 1000 < MARK


# --- a far side that lies ------------------------------------------------------------------------

Forge = Callable[[NoisePayload, bytes], None]  # given the honest payload and the static public key


class Liar(Handshake):
    """Follows the protocol, but for its payload."""

    def __init__(self, forge: Forge | bytes, *, initiator: bool) -> None:
        super().__init__(
            initiator=initiator, identity=MALLORY, static=secret("m static"), ephemeral=secret("m ephemeral")
        )
        self._forge = forge

    def _payload(self) -> bytes:
        if isinstance(self._forge, bytes):
            return self._forge
        payload = NoisePayload.FromString(super()._payload())
        self._forge(payload, self._noise.static)
        return payload.SerializeToString()


def claims_bob(payload: NoisePayload, _: bytes) -> None:
    payload.identity_key = PUBLIC_KEY_HEADER + BOB.id[-32:]


def signs_something_else(payload: NoisePayload, static: bytes) -> None:
    payload.identity_sig = MALLORY.sign(static)


def signs_another_key(payload: NoisePayload, _: bytes) -> None:
    payload.identity_sig = MALLORY.sign(SIGNED_PREFIX + secret("another static key"))


def signs_nothing(payload: NoisePayload, _: bytes) -> None:
    payload.identity_sig = b""


def has_no_key(payload: NoisePayload, _: bytes) -> None:
    payload.identity_key = b""


def has_an_rsa_key(payload: NoisePayload, _: bytes) -> None:
    payload.identity_key = bytes.fromhex("080012a602") + bytes(294)


def has_a_key_of_no_order(payload: NoisePayload, _: bytes) -> None:
    payload.identity_key, payload.identity_sig = PUBLIC_KEY_HEADER + bytes(32), bytes(64)


def hides_its_key(payload: NoisePayload, _: bytes) -> None:
    payload.identity_key = bytes.fromhex("08011220") + MALLORY.id[-32:] + b"\x08\x01"


LIES: list[Forge | bytes] = [
    claims_bob,
    signs_something_else,
    signs_another_key,
    signs_nothing,
    has_no_key,
    has_an_rsa_key,
    has_a_key_of_no_order,
    hides_its_key,
    b"",
    b"\xff" * 40,
    bytes(3000),
    NoisePayload(extensions=NoiseExtensions(stream_muxers=[YAMUX])).SerializeToString(),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_listener_learns_nothing_of_who_dials(lie: Forge | bytes) -> None:
    alice, mallory = dialler(expect=None), Liar(lie, initiator=False)
    with pytest.raises(HandshakeError):
        alice.receive(mallory.receive(alice.start()))  # nothing to send comes out of it
    assert alice.secured is None


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_dialler_is_refused(lie: Forge | bytes) -> None:
    mallory, bob = Liar(lie, initiator=True), listener()
    third = mallory.receive(bob.receive(mallory.start()))
    with pytest.raises(HandshakeError):
        bob.receive(third)
    assert bob.secured is None


def test_another_peer_than_the_expected_one_is_named() -> None:
    alice, bob = dialler(expect=MALLORY.id), listener()
    with pytest.raises(HandshakeError, match=f"peer {BOB.id} answered instead"):
        alice.receive(bob.receive(alice.start()))


def test_a_replayed_handshake_proves_nothing() -> None:
    """Who has recorded Alice's messages cannot be Alice to a Bob with a new ephemeral key."""
    bob = listener(ephemeral="another")
    bob.receive(FIRST)
    with pytest.raises(HandshakeError, match="does not decrypt"):
        bob.receive(THIRD)
    alice = dialler(ephemeral="another")
    alice.start()
    with pytest.raises(HandshakeError, match="does not decrypt"):
        alice.receive(SECOND)


def test_my_own_message_sent_back_is_refused() -> None:
    alice = dialler()
    first = alice.start()
    with pytest.raises(HandshakeError):
        alice.receive(first)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xed" + b"\xff" * 30 + b"\x7f"])
def test_keys_that_give_no_secret_are_refused(point: bytes) -> None:
    with pytest.raises(HandshakeError, match="without a sound key"):
        listener().receive(b"\x00\x20" + point)


# --- bytes that are bent -------------------------------------------------------------------------


def at_second() -> Handshake:
    alice = dialler()
    alice.start()
    return alice


def at_third() -> Handshake:
    bob = listener()
    bob.receive(FIRST)
    return bob


def refuses_or_waits(side: Handshake, data: bytes) -> None:
    """No bent byte is believed, and nothing but the one error leaves."""
    try:
        side.receive(data)
    except HandshakeError:
        with pytest.raises(RuntimeError):
            side.receive(b"more")
    assert side.secured is None


def test_each_byte_flipped_is_noticed() -> None:
    for whole, make in ((SECOND, at_second), (THIRD, at_third)):
        for at in range(LENGTH_BYTES, len(whole)):
            bent = bytearray(whole)
            bent[at] ^= 1 << at % 8
            with pytest.raises(HandshakeError):
                make().receive(bent)


def test_a_flipped_first_message_is_noticed_by_the_third() -> None:
    for at in range(LENGTH_BYTES, len(FIRST)):
        bent = bytearray(FIRST)
        bent[at] ^= 1 << at % 7  # the highest bit of an X25519 key has no meaning, but is hashed
        alice, bob = at_second(), listener()
        with pytest.raises(HandshakeError):
            alice.receive(bob.receive(bent))


def test_each_length_cut_short_is_noticed() -> None:
    for whole, make in ((FIRST, listener), (SECOND, at_second), (THIRD, at_third)):
        for end in range(len(whole)):
            side = make()
            assert side.receive(whole[:end]) == b""  # it waits for the rest
            if whole is not FIRST:
                with pytest.raises(HandshakeError):  # and takes no shorter message for the whole
                    make().receive(max(end - LENGTH_BYTES, 0).to_bytes(2, "big") + whole[LENGTH_BYTES:end])
    for size in range(KEY_BYTES):
        with pytest.raises(HandshakeError):
            listener().receive(size.to_bytes(2, "big") + bytes(size))


def test_oversized_messages_are_refused_by_their_length_alone() -> None:
    for make in (listener, at_second, at_third):
        for size in (MAX_MESSAGE + 1, 0xFFFF):
            with pytest.raises(HandshakeError, match="at most 4096 are taken"):
                make().receive(size.to_bytes(2, "big"))
        side = make()
        assert side.receive(MAX_MESSAGE.to_bytes(2, "big") + bytes(MAX_MESSAGE - 1)) == b""


@given(st.binary(max_size=400))
@example(bytes(5000))
def test_no_bytes_break_any_state(data: bytes) -> None:
    for make in (listener, at_second, at_third):
        try:
            make().receive(data)
        except HandshakeError:
            pass  # the one error that leaves it


@given(st.sampled_from([SECOND, THIRD]), st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_no_bent_message_is_believed(whole: bytes, at: int, noise: bytes) -> None:
    bent = whole[:at] + noise + whole[at + len(noise) :]
    if not bent.startswith(whole):
        refuses_or_waits(at_second() if whole is SECOND else at_third(), bent)


@given(st.binary(max_size=300))
def test_no_payload_breaks_the_reader_of_it(body: bytes) -> None:
    mallory, bob = Liar(body, initiator=True), listener()
    refuses_or_waits(bob, mallory.receive(bob.receive(mallory.start())))


def test_a_finished_handshake_takes_nothing_more() -> None:
    alice, bob = dialler(), listener()
    shake(alice, bob)
    for side in (alice, bob):
        with pytest.raises(RuntimeError):
            side.receive(b"")
