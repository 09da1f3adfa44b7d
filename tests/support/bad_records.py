"""Bad records of each kind, as many as are wanted: a seeded generator for tests and for `scripts/prove`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import msgpack

from modelnet_p2p.canonical import unpack
from modelnet_p2p.envelope import JOINT_TYPE, open_envelope, seal, seal_jointly, signed_bytes
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.joint import HASH_BYTES, MAX_DEPTH, leaf_hash
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.pb.envelope_pb2 import Ed25519, Envelope, PublicKey
from modelnet_p2p.records import (
    CARD_TYPE,
    CLOCK_SKEW_US,
    MANIFEST_TYPE,
    MAX_LIFETIME_US,
    OFFER_TYPE,
    REVOCATION_TYPE,
    TOMBSTONE_TYPE,
    Refusal,
    Sealed,
    cards_of,
    cards_of_all,
    seal_offer,
    seal_revocation,
    seal_tombstone,
    tombstone_of,
)
from samples import NOW_US, end_of, key, manifest_of, model_of, offer_of, root_of

SEED = 20_260_101
RECORD_TYPES = (OFFER_TYPE, CARD_TYPE, TOMBSTONE_TYPE, REVOCATION_TYPE)


@dataclass(frozen=True)
class World:
    """Who is there, and one sound record of each kind."""

    alice: KeyPair
    bob: KeyPair
    now_us: int
    good: dict[bytes, Sealed]  # by payload type
    together: list[Sealed]  # cards that share a signature

    def payload(self, kind: bytes) -> dict[str, object]:
        return unpack(open_envelope(self.good[kind].envelope, max_bytes=4096).payload)

    def times(self, kind: bytes) -> tuple[str, str]:
        """The wire keys of sequence and expiry; a revocation has neither, but one number."""
        if kind == REVOCATION_TYPE:
            return ("issued", "issued")
        return ("s", "e") if kind == CARD_TYPE else ("seq", "expires")


def make_world() -> World:
    """Bob's records, all in one."""
    alice, bob, carol = key("alice"), key("bob"), key("carol")
    offer = seal_offer(offer_of(bob, alice, manifest_of(alice)), bob)
    tombstone = seal_tombstone(tombstone_of(offer, seq=offer.seq + 1, now_us=NOW_US), bob)
    good = {
        OFFER_TYPE: offer,
        CARD_TYPE: cards_of(offer, bob)[0],
        TOMBSTONE_TYPE: tombstone,
        REVOCATION_TYPE: seal_revocation(end_of(bob, carol), bob),
    }
    offers = [seal_offer(model_of(bob, number), bob) for number in range(5)]
    return World(alice, bob, NOW_US, good, [card for [card] in cards_of_all(offers, bob)])


@dataclass(frozen=True)
class Case:
    """A bad record, when and where it arrives, and for which reasons it may be refused."""

    envelope: bytes
    refusals: frozenset[Refusal]
    now_us: int
    network: str = "public"
    key: bytes | None = None
    model: str = "acme/sentiment"  # whose key that is
    held: Sealed | None = None  # what its holder must have for it to be bad
    kind: bytes = b""  # of record; set by `cases`


Maker = Callable[[World, Random, bytes], Case]


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def resealed(world: World, kind: bytes, payload: dict[str, object], *refusals: Refusal) -> Case:
    """`payload` in canonical order, signed by Bob as if nothing were wrong with it."""
    data = packed({name: payload[name] for name in sorted(payload)})
    return Case(seal(kind, data, world.bob), frozenset(refusals), world.now_us)


def parts(world: World, kind: bytes) -> Envelope:
    return Envelope.FromString(world.good[kind].envelope)


def rebuilt(envelope: Envelope, signature: bytes, key: KeyPair) -> bytes:
    return Envelope(
        public_key=PublicKey(type=Ed25519, data=bytes(key.id)[-32:]),
        payload_type=envelope.payload_type,
        payload=envelope.payload,
        signature=signature,
    ).SerializeToString(deterministic=True)


def flipped(world: World, rng: Random, kind: bytes) -> Case:
    data = bytearray(world.good[kind].envelope)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    if bytes(data) == world.good[kind].envelope:
        data[0] ^= 1
    allowed = (Refusal.FORGED, Refusal.MALFORMED, Refusal.UNSIGNED)
    return Case(bytes(data), frozenset(allowed), world.now_us)


def cut_or_stuffed(world: World, rng: Random, kind: bytes) -> Case:
    good = world.good[kind].envelope
    at = rng.randrange(len(good))
    data = good[:at] if rng.random() < 0.5 else good[:at] + rng.randbytes(rng.randrange(1, 40)) + good[at:]
    allowed = (Refusal.FORGED, Refusal.MALFORMED, Refusal.UNSIGNED, Refusal.OVERSIZED)
    return Case(data, frozenset(allowed), world.now_us)


def wrong_domain(world: World, rng: Random, kind: bytes) -> Case:
    good = parts(world, kind)
    domain = rng.choice((b"libp2p-peer-record", b"", rng.randbytes(15), b"modelnet-record\x00"))
    right = signed_bytes(good.payload_type, good.payload)
    signed = bytes([len(domain)]) + domain + right[16:]
    return Case(rebuilt(good, world.bob.sign(signed), world.bob), frozenset({Refusal.FORGED}), world.now_us)


def wrong_signer(world: World, rng: Random, kind: bytes) -> Case:
    """Mallory signs Bob's words: under his own name, or with Bob's key over his own signature."""
    good = parts(world, kind)
    liar = KeyPair(rng.randbytes(32))
    signature = liar.sign(signed_bytes(good.payload_type, good.payload))
    if rng.random() < 0.5:
        return Case(rebuilt(good, signature, liar), frozenset({Refusal.WRONG_OWNER}), world.now_us)
    return Case(rebuilt(good, signature, world.bob), frozenset({Refusal.FORGED}), world.now_us)


def wrong_owner(world: World, rng: Random, _: bytes) -> Case:
    """An offer with a manifest that Alice did not sign, in four ways."""
    payload = world.payload(OFFER_TYPE)
    sealed = payload["manifest"]
    assert isinstance(sealed, bytes)
    good = Envelope.FromString(sealed)
    liar = KeyPair(rng.randbytes(32))
    signature = liar.sign(signed_bytes(good.payload_type, good.payload))
    claim, refusal = rng.choice(
        (
            (rebuilt(good, signature, liar), Refusal.WRONG_OWNER),
            (rebuilt(good, signature, world.alice), Refusal.FORGED),
            (rebuilt(good, b"", world.alice), Refusal.UNSIGNED),
            (seal(CARD_TYPE, good.payload, world.alice), Refusal.MALFORMED),
        )
    )
    return resealed(world, OFFER_TYPE, payload | {"manifest": claim}, refusal)


def other_key(world: World, rng: Random, kind: bytes) -> Case:
    """Sent under a key, or into a network, that it does not belong to."""
    good = world.good[kind]
    if rng.random() < 0.5:
        model = rng.randbytes(6).hex()
        at = provider_key(Keys("public").model(model))
        return Case(good.envelope, frozenset({Refusal.FOREIGN_KEY}), world.now_us, key=at, model=model)
    network = rng.choice(("Public", "publi", rng.randbytes(4).hex()))
    return Case(good.envelope, frozenset({Refusal.FOREIGN_KEY}), world.now_us, network=network)


def expired(world: World, rng: Random, kind: bytes) -> Case:
    good = world.good[kind]
    late = good.expires_us + rng.choice((0, 1, rng.randrange(2**52)))
    return Case(good.envelope, frozenset({Refusal.EXPIRED}), late)


def from_the_future(world: World, rng: Random, kind: bytes) -> Case:
    good = world.good[kind]
    issued_us = good.expires_us - MAX_LIFETIME_US if kind == CARD_TYPE else world.now_us
    early = issued_us - CLOCK_SKEW_US - 1 - rng.choice((0, rng.randrange(2**50)))
    return Case(good.envelope, frozenset({Refusal.EXPIRED}), early)


def lives_too_long(world: World, rng: Random, kind: bytes) -> Case:
    expires = world.times(kind)[1]
    end = world.now_us + MAX_LIFETIME_US + CLOCK_SKEW_US + rng.randrange(1, 2**50)
    refusal = Refusal.EXPIRED if kind == CARD_TYPE else Refusal.MALFORMED
    return resealed(world, kind, world.payload(kind) | {expires: end}, refusal)


def sequence_out_of_bounds(world: World, rng: Random, kind: bytes) -> Case:
    seq = rng.choice((2**64 - 1, 2**63, 2**53, rng.randrange(2**53, 2**64), -1, -(2**63)))
    return resealed(world, kind, world.payload(kind) | {world.times(kind)[0]: seq}, Refusal.MALFORMED)


def no_signature(world: World, rng: Random, kind: bytes) -> Case:
    good = parts(world, kind)
    if rng.random() < 0.5:
        good.ClearField("signature")
    else:
        good.ClearField("public_key")
    good.payload = good.payload + rng.randbytes(rng.randrange(3))
    return Case(good.SerializeToString(deterministic=True), frozenset({Refusal.UNSIGNED}), world.now_us)


def map_header(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2, "big")


def _entry(rng: Random, name: str, value: object) -> bytes:
    """One entry of a map, in an encoding that is longer than it need be."""
    key = packed(name)
    match value:
        case int() if 0 <= value < 2**32:
            return key + b"\xcf" + value.to_bytes(8, "big")
        case int():  # needs its eight bytes: its name grows instead
            return b"\xd9" + bytes([len(name)]) + name.encode() + packed(value)
        case str() if len(value) < 32:
            return (
                key
                + rng.choice((b"\xd9" + bytes([len(value)]), b"\xda\x00" + bytes([len(value)])))
                + value.encode()
            )
        case str():
            return key + b"\xdb" + len(value).to_bytes(4, "big") + value.encode()
        case bytes():
            return key + b"\xc6" + len(value).to_bytes(4, "big") + value
        case list():
            return key + b"\xdd" + len(value).to_bytes(4, "big") + b"".join(map(packed, value))
        case dict():
            pairs = b"".join(packed(name) + packed(item) for name, item in sorted(value.items()))
            return key + b"\xdf" + len(value).to_bytes(4, "big") + pairs
    raise AssertionError(type(value))


def not_canonical(world: World, rng: Random, kind: bytes) -> Case:
    """Keys in another order, or any one value or header longer than it need be."""
    payload = world.payload(kind)
    names = sorted(payload)
    way = rng.randrange(3)
    ordered = [packed(name) + packed(payload[name]) for name in names]
    entries = list(ordered)
    header = map_header(len(names))
    if way == 0:
        while entries == ordered:
            rng.shuffle(entries)
    elif way == 1:
        at = rng.randrange(len(names))
        entries[at] = _entry(rng, names[at], payload[names[at]])
    else:
        header = b"\xdf" + len(names).to_bytes(4, "big")
    data = header + b"".join(entries)
    allowed = frozenset({Refusal.MALFORMED, Refusal.OVERSIZED})  # a card may outgrow its 512 bytes
    return Case(seal(kind, data, world.bob), allowed, world.now_us)


def duplicate_key(world: World, rng: Random, kind: bytes) -> Case:
    payload = world.payload(kind)
    names = sorted(payload)
    at = rng.randrange(len(names))
    entries = [packed(name) + packed(payload[name]) for name in names]
    twin = entries[at] if rng.random() < 0.5 else packed(names[at]) + packed(rng.randrange(100))
    entries.insert(rng.choice((at, at + 1, len(entries))), twin)
    data = map_header(len(entries)) + b"".join(entries)
    allowed = frozenset({Refusal.MALFORMED, Refusal.OVERSIZED})
    return Case(seal(kind, data, world.bob), allowed, world.now_us)


def not_a_number(world: World, rng: Random, kind: bytes) -> Case:
    """NaN, infinity or any float, in a known field or an unknown one, on its own or nested."""
    payload = world.payload(kind)
    odd: object = rng.choice((math.nan, math.inf, -math.inf, -0.0, rng.random(), 1.0))
    odd = rng.choice((odd, [odd], {"a": odd}))
    name = rng.choice((*payload, "zz"))
    return resealed(world, kind, payload | {name: odd}, Refusal.MALFORMED)


def too_long(world: World, rng: Random, kind: bytes) -> Case:
    room = {OFFER_TYPE: 4096, CARD_TYPE: 512, TOMBSTONE_TYPE: 1024, REVOCATION_TYPE: 512}[kind]
    room -= len(world.good[kind].envelope)
    blob = rng.randbytes(room + rng.randrange(1, 2000))
    return resealed(world, kind, world.payload(kind) | {"zz": blob}, Refusal.OVERSIZED)


def too_many_elements(world: World, rng: Random, kind: bytes) -> Case:
    payload = world.payload(kind)
    changes: list[dict[str, object]] = [
        {"tags": [f"t{number}" for number in range(rng.randrange(9, 40))]},
        {"zz": [[[[[[[rng.randrange(9)]]]]]]]},
    ]
    if kind == OFFER_TYPE:
        spec = {"name": "x", "kind": "json"}
        changes += [
            {"zz": [None] * rng.randrange(1024, 1600)},
            {"inputs": [spec | {"name": str(number)} for number in range(rng.randrange(9, 60))]},
            {"inputs": [{"name": "x", "kind": "tensor", "shape": [1] * rng.randrange(9, 99)}]},
            {"limits": {f"l{number}": number for number in range(rng.randrange(17, 60))}},
            {"exits": list(range(rng.randrange(65, 200)))},
            {"languages": [f"l{number}" for number in range(rng.randrange(33, 99))]},
        ]
    return resealed(world, kind, payload | rng.choice(changes), Refusal.MALFORMED)


def field_missing(world: World, rng: Random, kind: bytes) -> Case:
    required = {
        OFFER_TYPE: ("provider", "network", "manifest", "seq", "issued", "expires"),
        CARD_TYPE: ("p", "n", "o", "m", "t", "s", "e", "h"),
        TOMBSTONE_TYPE: ("provider", "network", "owner", "name", "task", "seq", "issued", "expires"),
        REVOCATION_TYPE: ("revoked", "issued"),
    }[kind]
    payload = world.payload(kind)
    del payload[rng.choice(required)]
    return resealed(world, kind, payload, Refusal.MALFORMED)


def wrong_type(world: World, rng: Random, kind: bytes) -> Case:
    payload = world.payload(kind)
    payload.pop("x-colour", None)
    name = rng.choice(tuple(payload))
    wrong = [
        value
        for value in (None, True, [None], {"a": None}, b"", "\x00")
        if type(value) is not type(payload[name])
    ]
    return resealed(world, kind, payload | {name: rng.choice(wrong)}, Refusal.MALFORMED)


def another_kind(world: World, rng: Random, kind: bytes) -> Case:
    """One kind's payload under another kind's type."""
    others = {*RECORD_TYPES, MANIFEST_TYPE, b"/modelnet/offer/2", rng.randbytes(9)}
    other = rng.choice(sorted(others - {kind}))
    data = packed(world.payload(kind))
    allowed = frozenset({Refusal.MALFORMED, Refusal.OVERSIZED})
    return Case(seal(other, data, world.bob), allowed, world.now_us)


def strayed(world: World, rng: Random, _: bytes) -> Case:
    """A card that was sealed with others, or says so, and is not where its path leads."""
    one, other = (Envelope.FromString(card.envelope) for card in rng.sample(world.together, 2))
    path, way = one.path, rng.randrange(9)
    if way == 0:
        one.path = other.path
    elif way == 1:  # a level less, or more
        one.path = rng.choice((path[HASH_BYTES:], path[:-HASH_BYTES], path + rng.randbytes(HASH_BYTES)))
    elif way == 2:
        one.path = path[: rng.randrange(len(path))] + rng.randbytes(rng.randrange(HASH_BYTES))
    elif way == 3:
        one.payload = packed(unpack(one.payload) | {"s": rng.randrange(2**53)})
    elif way == 4:  # sealed alone, and a path put behind it
        one = parts(world, CARD_TYPE)
        one.path = path
    elif way == 5:  # what is not sealed with others, sealed soundly
        kind = rng.choice((OFFER_TYPE, TOMBSTONE_TYPE, REVOCATION_TYPE))
        one.ParseFromString(
            seal_jointly([(kind, parts(world, kind).payload), (CARD_TYPE, b"")], world.bob)[0]
        )
    elif way == 6:  # deeper than any tree, and signed all the same
        one.path = rng.randbytes(HASH_BYTES * rng.randrange(MAX_DEPTH + 1, 3 * MAX_DEPTH))
        root = root_of(leaf_hash(signed_bytes(one.payload_type, one.payload)), one.path)
        one.signature = world.bob.sign(signed_bytes(JOINT_TYPE, root))
    elif way == 7:  # the root itself, which is signed and no record
        root = root_of(leaf_hash(signed_bytes(one.payload_type, one.payload)), path)
        one.payload_type, one.payload, one.path = JOINT_TYPE, root, b""
    else:
        one.signature = KeyPair(rng.randbytes(32)).sign(rng.randbytes(9))
    allowed = frozenset({Refusal.FORGED, Refusal.MALFORMED})
    return Case(one.SerializeToString(deterministic=True), allowed, world.now_us)


def stale(world: World, rng: Random, kind: bytes) -> Case:
    """Older than what is held, or another one with its sequence number."""
    seq, _ = world.times(kind)
    held = world.good[kind]
    older = held.seq - rng.choice((0, 1, rng.randrange(held.seq)))
    case = resealed(world, kind, world.payload(kind) | {seq: older, "zz": rng.randbytes(4)}, Refusal.STALE)
    return replace(case, held=held)


def revoked(world: World, rng: Random, kind: bytes) -> Case:
    """Sound in itself, as new as can be, and sealed by a key that is over."""
    seq, _ = world.times(kind)
    newer = world.good[kind].seq + rng.randrange(2**40)
    case = resealed(world, kind, world.payload(kind) | {seq: newer}, Refusal.REVOKED)
    return replace(case, held=world.good[REVOCATION_TYPE])


MAKERS: tuple[Maker, ...] = (
    flipped,
    cut_or_stuffed,
    wrong_domain,
    wrong_signer,
    wrong_owner,
    other_key,
    expired,
    from_the_future,
    lives_too_long,
    sequence_out_of_bounds,
    no_signature,
    not_canonical,
    duplicate_key,
    not_a_number,
    too_long,
    too_many_elements,
    field_missing,
    wrong_type,
    another_kind,
    strayed,
)


# what only a holder or a reader can tell, who knows what else there is
AT_HOLDERS: tuple[Maker, ...] = (stale, revoked)
_OFFERS = dict.fromkeys(RECORD_TYPES, OFFER_TYPE)
# where a kind of record cannot be bad in that way
_INSTEAD: dict[Maker, dict[bytes, bytes]] = {
    wrong_owner: _OFFERS,  # it alone carries a manifest
    strayed: dict.fromkeys(RECORD_TYPES, CARD_TYPE),  # they alone are sealed with others
    other_key: {REVOCATION_TYPE: OFFER_TYPE},  # belongs everywhere
    expired: {REVOCATION_TYPE: CARD_TYPE},  # is never over
    lives_too_long: {REVOCATION_TYPE: TOMBSTONE_TYPE},
    too_many_elements: {CARD_TYPE: OFFER_TYPE, REVOCATION_TYPE: OFFER_TYPE},  # 512 bytes hold fewer
    stale: {REVOCATION_TYPE: TOMBSTONE_TYPE},  # has no sequence
    revoked: {REVOCATION_TYPE: OFFER_TYPE},  # of two of one key either will do
}


def cases(world: World, maker: Maker, count: int) -> Iterator[Case]:
    rng = Random(f"{SEED} {maker.__name__}")
    instead = _INSTEAD.get(maker, {})
    for number in range(count):
        kind = RECORD_TYPES[number % len(RECORD_TYPES)]
        kind = instead.get(kind, kind)
        yield replace(maker(world, rng, kind), kind=kind)
