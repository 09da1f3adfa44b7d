"""The end of a key: sealed by itself alone, of no network, at home everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelnet_p2p.envelope import seal
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.query import Query
from modelnet_p2p.records import (
    CLOCK_SKEW_US,
    MAX_LIFETIME_US,
    MAX_REASON_BYTES,
    MAX_REVOCATION_BYTES,
    REVOCATION_TYPE,
    BadRecord,
    Refusal,
    Revocation,
    Sealed,
    admit,
    newest,
    open_manifest,
    open_revocation,
    revocation_keys,
    seal_revocation,
)


@pytest.fixture
def end(alice: KeyPair, carol: KeyPair, now_us: int) -> Sealed:
    return seal_revocation(Revocation(alice.id, now_us, "stolen", carol.id), alice)


def test_it_is_admitted_in_every_network_and_under_every_key(end: Sealed, now_us: int) -> None:
    for network, key in (("public", None), ("town", provider_key(Keys("town").model("acme/any")))):
        admitted = admit(end.envelope, network=network, now_us=now_us, key=key)
        assert admitted == end
        assert admitted.record == end.record
        assert admitted.is_tombstone
        assert admitted.expires_us == now_us + MAX_LIFETIME_US  # for a holder; it is never over
    late = admit(end.envelope, network="public", now_us=now_us + 10**15)
    assert late.expires_us > now_us + 10**15
    assert open_revocation(end.envelope).record == end.record


def test_the_clock_of_who_revokes_may_be_off_by_no_more_than_others(alice: KeyPair, now_us: int) -> None:
    for ahead, admitted in ((CLOCK_SKEW_US, True), (CLOCK_SKEW_US + 1, False)):
        early = seal_revocation(Revocation(alice.id, now_us + ahead), alice)
        if admitted:
            admit(early.envelope, network="public", now_us=now_us)
        else:
            with pytest.raises(BadRecord) as caught:
                admit(early.envelope, network="public", now_us=now_us)
            assert caught.value.refusal is Refusal.EXPIRED
    assert open_revocation(early.envelope)  # what a disk holds is true whatever the clock says


def test_nobody_else_can_say_it(alice: KeyPair, mallory: KeyPair, end: Sealed, now_us: int) -> None:
    payload = Revocation(alice.id, now_us).to_payload()
    for envelope, refusal in (
        (seal(REVOCATION_TYPE, payload, mallory), Refusal.WRONG_OWNER),
        (end.envelope.replace(bytes(alice.id)[-32:], bytes(mallory.id)[-32:]), Refusal.FORGED),
    ):
        for check in (lambda data: admit(data, network="public", now_us=now_us), open_revocation):
            with pytest.raises(BadRecord) as caught:
                check(envelope)
            assert caught.value.refusal is refusal


def test_of_two_the_one_that_is_there_stays(alice: KeyPair, mallory: KeyPair, end: Sealed) -> None:
    other = seal_revocation(Revocation(alice.id, 1, "by the thief", mallory.id), alice)
    assert other.identity == end.identity
    assert newest(end, other) is end
    assert newest(other, end) is other


def test_the_longest_fits_and_what_does_not_is_the_callers_mistake(
    alice: KeyPair, carol: KeyPair, now_us: int
) -> None:
    longest = Revocation(alice.id, now_us, "x" * MAX_REASON_BYTES, carol.id)
    assert len(seal_revocation(longest, alice).envelope) <= MAX_REVOCATION_BYTES
    for bad in (
        replace(longest, reason="x" * (MAX_REASON_BYTES + 1)),
        replace(longest, reason="two\nlines"),
        replace(longest, successor=alice.id),
        replace(longest, revoked=carol.id),
    ):
        with pytest.raises(LocalError) as caught:
            seal_revocation(bad, alice)
        assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(LocalError) as caught:
        seal_revocation(replace(longest, extra={"zz": bytes(200)}), alice)
    assert caught.value.code is Code.TOO_LARGE


def test_it_is_no_offer_no_manifest_and_nothing_that_is_searched_for(
    end: Sealed, sealed: Sealed, alice: KeyPair
) -> None:
    with pytest.raises(BadRecord):
        open_manifest(end.envelope)
    with pytest.raises(BadRecord):
        open_revocation(sealed.envelope)
    assert Query(model="acme/sentiment").refusal(end.record) is not None
    assert end.keys == frozenset()
    assert revocation_keys("town", alice.id) == [
        f"/modelnet/town/owner/{alice.id}",
        f"/modelnet/town/peer/{alice.id}",
    ]
