"""Each kind of bad record, in many cases: none is admitted, and its sound neighbours are.

A case is made by a seeded generator; the everyday run takes a few hundred of each kind, the slow
one 10,000. What holders and readers do with them is in `tests/dht/test_bad_records.py`.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_records import MAKERS, RECORD_TYPES, SEED, Case, Maker, World, cases, make_world, resealed
from modelnet_p2p.canonical import unpack
from modelnet_p2p.envelope import seal
from modelnet_p2p.records import BadRecord, Refusal, admit

EVERYDAY = 150  # cases of each kind


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


def refusal_of(case: Case) -> Refusal | None:
    try:
        admit(case.envelope, network=case.network, now_us=case.now_us, key=case.key)
    except BadRecord as error:
        return error.refusal
    return None


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_no_bad_record_is_admitted(world: World, maker: Maker) -> None:
    """A few of each kind; scripts/prove records plays ten thousand."""
    for number, case in enumerate(cases(world, maker, EVERYDAY)):
        found = refusal_of(case)
        assert found in case.refusals, f"seed {SEED}, case {number}: {found or 'admitted'}"


@pytest.mark.parametrize("bits", [(1, 0x80), pytest.param(range(1, 256, 16), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [*RECORD_TYPES, "sealed with others"])
def test_every_byte_counts(world: World, kind: bytes | str, bits: range | tuple[int, ...]) -> None:
    good = (world.good[kind] if isinstance(kind, bytes) else world.together[0]).envelope
    for at in range(len(good)):
        for bit in bits:
            data = good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
            with pytest.raises(BadRecord):
                admit(data, network="public", now_us=world.now_us)


def test_sound_neighbours_of_bad_records_are_admitted(world: World) -> None:
    """Bad and good ones mixed, each judged alone: exactly the good ones get through."""
    good = list(world.good.values())
    rng = Random(SEED)
    mixed = [
        case.envelope for maker in MAKERS for case in cases(world, maker, 4) if case.now_us == world.now_us
    ]
    mixed = [envelope for envelope in mixed if envelope not in {record.envelope for record in good}]
    mixed += [record.envelope for record in good]
    rng.shuffle(mixed)
    admitted = set()
    for envelope in mixed:
        try:
            admitted.add(admit(envelope, network="public", now_us=world.now_us))
        except BadRecord:
            continue
    assert admitted == set(good)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=600))
def test_bobs_signature_does_not_make_any_bytes_a_record(world: World, data: bytes) -> None:
    for kind in RECORD_TYPES:
        with pytest.raises(BadRecord):
            admit(seal(kind, data, world.bob), network="public", now_us=world.now_us)


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=9)
    | st.binary(max_size=40)
)


@settings(max_examples=300, deadline=None)
@given(changes=st.data())
def test_a_record_with_any_field_changed_is_refused_or_says_what_it_was_given(
    world: World, changes: st.DataObject
) -> None:
    for kind in RECORD_TYPES:
        payload = world.payload(kind)
        name = changes.draw(st.sampled_from(sorted(payload)))
        value = changes.draw(
            _LEAVES | st.lists(_LEAVES, max_size=4) | st.dictionaries(st.text(max_size=4), _LEAVES)
        )
        changed = resealed(world, kind, payload | {name: value})
        try:
            record = admit(changed.envelope, network="public", now_us=world.now_us).record
        except BadRecord:
            continue
        assert unpack(record.to_payload())[name] == value
