"""Which connections are let go where there are many."""

from __future__ import annotations

from modelnet_p2p.dht.table.warmth import REST_SECONDS, SLACK, Warmth
from modelnet_p2p.identity import PeerId

KEPT = 16
PEERS = [PeerId(b"peer%d" % number) for number in range(20)]


def test_the_longest_unused_go_and_an_eighth_more_than_there_are_too_many() -> None:
    warmth = Warmth(KEPT)
    for at, peer in enumerate(PEERS):
        warmth.on_connected(peer, float(at))
    warmth.on_used(PEERS[0], 20.0)
    gone = warmth.surplus(100.0, lambda peer: peer != PEERS[2])  # on that one a call is running
    assert gone == [peer for peer in PEERS[1:] if peer != PEERS[2]][: len(PEERS) - KEPT + KEPT // SLACK]
    for peer in gone:
        warmth.on_gone(peer)
    assert warmth.surplus(100.0, lambda _: True) == []


def test_who_is_worth_more_goes_last_however_long_unused() -> None:
    warmth = Warmth(KEPT)
    for at, peer in enumerate(PEERS):
        warmth.on_connected(peer, float(at))
    worth = {PEERS[0]: 2, **dict.fromkeys(PEERS[1:16], 1)}
    gone = warmth.surplus(100.0, lambda _: True, lambda peer: worth.get(peer, 0))
    assert gone == [
        *PEERS[16:],
        *PEERS[1:3],
    ]  # the worthless, then those unused for longest, and not the first


def test_nobody_goes_where_there_are_few_or_whom_a_walk_has_just_asked() -> None:
    warmth = Warmth(KEPT)
    for peer in PEERS[:KEPT]:
        warmth.on_connected(peer, 0.0)
    assert warmth.surplus(100.0, lambda _: True) == []
    for peer in PEERS:
        warmth.on_connected(peer, 100.0)
    assert warmth.surplus(100.0 + REST_SECONDS / 2, lambda _: True) == []
    assert warmth.surplus(100.0 + REST_SECONDS, lambda _: True)


def test_who_has_left_is_not_brought_back_by_a_late_answer() -> None:
    warmth = Warmth(KEPT)
    warmth.on_used(PEERS[0], 1.0)
    assert len(warmth) == 0
