"""The signed envelope: one string of bytes for each signature, and libp2p's own code agrees."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelnet_p2p.envelope import DOMAIN, _parse, by_place, open_envelope, seal, signed_bytes, uvarint
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.pb.envelope_pb2 import Ed25519, Envelope, PublicKey, Secp256k1
from modelnet_p2p.refusals import BadRecord, Refusal

TYPE = b"/modelnet/test/1"


def refusal(data: bytes) -> Refusal:
    with pytest.raises(BadRecord) as caught:
        open_envelope(data, max_bytes=4096)
    return caught.value.refusal


def test_bob_opens_what_alice_sealed(alice: KeyPair) -> None:
    opened = open_envelope(seal(TYPE, b"hello", alice), max_bytes=4096)
    assert (opened.signer, opened.payload_type, opened.payload) == (alice.id, TYPE, b"hello")


def test_what_is_signed_is_as_the_rfc_says(alice: KeyPair) -> None:
    data = seal(TYPE, b"hello", alice)
    envelope = Envelope.FromString(data)
    signed = b"\x0fmodelnet-record" + b"\x10" + TYPE + b"\x05hello"
    assert signed_bytes(TYPE, b"hello") == signed
    assert alice.id.verify(signed, envelope.signature)
    assert (uvarint(0), uvarint(127), uvarint(300)) == (b"\x00", b"\x7f", b"\xac\x02")


@pytest.mark.live
def test_libp2ps_own_envelope_code_agrees(alice: KeyPair) -> None:
    """In the live part only because importing libp2p takes a second."""
    from libp2p.peer.envelope import unmarshal_envelope

    theirs = unmarshal_envelope(seal(TYPE, b"hello", alice))
    theirs.validate(DOMAIN.decode())
    assert theirs.raw_payload == b"hello"


def test_a_signature_belongs_to_one_string_of_bytes(alice: KeyPair) -> None:
    """Anything that could be varied without the key would give one record many hashes."""
    data = seal(TYPE, b"hello", alice)
    key, rest = data[:38], data[38:]
    varied = {
        "an unknown field behind": data + b"\x32\x01x",
        "an unknown field before": b"\x32\x01x" + data,
        "an empty field written": data + b"\x22\x00",
        "fields in another order": rest + key,
        "a field twice": data + data[-66:],
        "the key twice": key + data,
        "a length of two bytes": b"\x0a\xa4\x00" + data[2:],
        "an unknown field in the key": b"\x0a\x26" + data[2:38] + b"\x18\x01" + rest,
    }
    for what, bytes_ in varied.items():
        assert refusal(bytes_) is Refusal.MALFORMED, what


def test_each_kind_of_bad_envelope_has_its_own_reason(alice: KeyPair, mallory: KeyPair) -> None:
    good = Envelope.FromString(seal(TYPE, b"hello", alice))

    def altered(**changes: object) -> bytes:
        fields = {
            "public_key": good.public_key,
            "payload_type": good.payload_type,
            "payload": good.payload,
            "signature": good.signature,
        }
        return Envelope(**(fields | changes)).SerializeToString(deterministic=True)  # type: ignore[arg-type]

    mallorys = bytes(mallory.id)[-32:]
    other_domain = signed_bytes(TYPE, b"hello").replace(DOMAIN, b"modelnet-zecord")
    assert refusal(altered(signature=b"")) is Refusal.UNSIGNED
    assert refusal(altered(public_key=PublicKey())) is Refusal.UNSIGNED
    assert refusal(altered(signature=mallory.sign(signed_bytes(TYPE, b"hello")))) is Refusal.FORGED
    assert refusal(altered(signature=alice.sign(other_domain))) is Refusal.FORGED
    assert refusal(altered(signature=good.signature[:63])) is Refusal.FORGED
    assert refusal(altered(payload=b"hullo")) is Refusal.FORGED
    assert refusal(altered(payload_type=b"/modelnet/other/1")) is Refusal.FORGED
    assert refusal(altered(public_key=PublicKey(type=Ed25519, data=mallorys))) is Refusal.FORGED
    assert refusal(altered(public_key=PublicKey(type=Secp256k1, data=mallorys))) is Refusal.MALFORMED
    assert refusal(altered(public_key=PublicKey(type=Ed25519, data=mallorys + b"x"))) is Refusal.MALFORMED
    assert refusal(altered(payload_type=b"")) is Refusal.MALFORMED
    assert refusal(altered(payload=bytes(4096))) is Refusal.OVERSIZED
    assert refusal(b"") is Refusal.UNSIGNED
    assert refusal(b"\xff\xff") is Refusal.MALFORMED


def test_keys_of_small_order_sign_nothing() -> None:
    """With such a key one signature would fit many messages."""
    for point in (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        data = Envelope(
            public_key=PublicKey(type=Ed25519, data=point),
            payload_type=TYPE,
            payload=b"hello",
            signature=point + bytes(32),
        ).SerializeToString(deterministic=True)
        assert refusal(data) is Refusal.FORGED


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x0b" * 4096)
@example(b"\x0a\xff\xff\xff\xff\x0f")
def test_any_bytes_are_refused_in_order(data: bytes) -> None:
    with pytest.raises(BadRecord):
        open_envelope(data, max_bytes=4096)


@pytest.mark.parametrize("size", [1, 2, 126, 127, 128, 129, 130, 4000, 16_383, 16_384, 20_000])
@pytest.mark.parametrize("payload_type", [b"t", TYPE, b"t" * 64])
def test_an_envelope_is_read_alikeby_place_and_by_protobuf(
    size: int, payload_type: bytes, alice: KeyPair
) -> None:
    data = seal(payload_type, bytes(size), alice)
    assert by_place(data) == (_parse(data) if size < 16_384 else None)
    assert open_envelope(data, max_bytes=len(data)).payload == bytes(size)


@settings(max_examples=2000, deadline=None)
@given(
    size=st.integers(0, 140),
    at=st.integers(0, 500),
    cut=st.integers(0, 4),
    put=st.binary(max_size=4),
    kind=st.sampled_from([b"", b"t", TYPE, b"t" * 64, b"t" * 65]),
    path=st.sampled_from([0, 1, 16, 32, 112, 127, 128]),
)
def test_what_is_readby_place_the_protobuf_says_too(
    size: int, at: int, cut: int, put: bytes, kind: bytes, path: int
) -> None:
    """Wherever bytes are lost, added or changed: who reads by place takes nothing else for an envelope."""
    key = PublicKey(type=Ed25519, data=bytes(range(32)))
    data = Envelope(
        public_key=key,
        payload_type=kind,
        payload=b"\x1a\x2a\x40" * size,
        signature=b"\x2a\x40" * 32,
        path=b"\x82" * path,
    ).SerializeToString()
    data = data[:at] + put + data[at + cut :]
    if (parts := by_place(data)) is not None:
        assert parts == _parse(data)
