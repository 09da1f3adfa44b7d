"""What a peer's own words give cause for concern about, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet_p2p.node.checkup.health import EXPIRED, FAILURES, REFUSED, concerns

OPEN = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWAlice"
LOOPBACK = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWAlice"


def alice(**told: Any) -> dict[str, Any]:
    return {"peer": "alice", "addrs": [OPEN], "connections": 2, "uptime_s": 90.0, "models": [], **told}


def codes(status: dict[str, Any], earlier: dict[str, Any] | None = None) -> list[str]:
    return [concern.code for concern in concerns(status, earlier)]


def test_a_sound_peer_gives_none() -> None:
    model = {"model": "shout", "state": "serving", "failing": FAILURES - 1, "failed_with": "oh"}
    assert codes(alice(models=[model])) == []


def test_a_peer_of_another_version_may_tell_less() -> None:
    assert codes({}) == []


def test_a_peer_that_is_alone_is_told_how_to_meet_others() -> None:
    (alone,) = concerns(alice(connections=0, addrs=[LOOPBACK]), flag=" --home /tmp/second")
    assert alone.code == "alone"
    assert "--lan --home /tmp/second" in alone.hint


def test_loopback_is_a_note_and_comes_last() -> None:
    failing = {"model": "shout", "state": "serving", "failing": FAILURES, "failed_with": "ZeroDivisionError"}
    found = concerns(alice(addrs=[LOOPBACK], models=[failing]))
    assert [(concern.code, concern.grave) for concern in found] == [("failing", True), ("loopback", False)]
    assert "ZeroDivisionError" in found[0].message
    assert codes(alice(addrs=[LOOPBACK, OPEN])) == []


def test_a_model_that_was_lost_on_the_way() -> None:
    (lost,) = concerns(alice(models=[{"model": "shout", "state": "failed"}]))
    assert "modelnet-peer unpublish shout" in lost.hint


def test_a_model_that_a_revocation_ended() -> None:
    fate = {"revoked": "12D3", "issued_unix": 86_400, "reason": "stolen", "successor": None}
    (ended,) = concerns(
        alice(ended=[{"model": "acme/shout@2", "ended_unix": 172_800, **fate}]), flag=" --home x"
    )
    assert ended.message == (
        "acme/shout@2 is served no more since 1970-01-03: the key 12D3, which sealed it, was revoked on"
        " 1970-01-02: stolen"
    )
    assert "--manifest FILE --home x" in ended.hint
    assert codes(alice(ended=[{"model": "shout", "issued_unix": "soon"}])) == ["ended"]


def test_a_model_whose_process_does_not_stay() -> None:
    (crashing,) = concerns(alice(models=[{"model": "shout", "state": "crashing"}]))
    assert crashing.code == "crashing"
    assert "modelnet-peer logs" in crashing.hint


@pytest.mark.parametrize(
    ("reason", "more", "found"),
    [
        ("expired", EXPIRED - 1, []),
        ("expired", EXPIRED, ["clock"]),
        ("forged", REFUSED - 1, []),
        ("forged", REFUSED, ["refused"]),
        ("stale", 1000, []),
    ],
)
def test_refusals_count_when_they_rise(reason: str, more: int, found: list[str]) -> None:
    before, now = alice(refused={reason: 50}), alice(refused={reason: 50 + more}, uptime_s=150.0)
    assert codes(now, before) == found
    assert codes(now) == []  # of an older peer nobody knows when they came


def test_a_restarted_peer_is_not_compared_with_its_former_life() -> None:
    assert codes(alice(refused={"forged": 99}, uptime_s=1.0), alice(refused={"forged": 0})) == []
