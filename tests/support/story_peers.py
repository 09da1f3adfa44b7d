"""The story of `story.py` told by real peers, whatever network carries them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.peer import Peer
from story import ENOUGH, KEYS, OFFERS, PEOPLE, READERS, Told, facts


async def tell(peers: Sequence[Peer], settled: Callable[[Told], bool] = lambda told: True) -> Told:
    """All have joined: those who publish do, then those who read.

    Who was too busy to take a record is told it again: holders are looked at until they are `settled`.
    """
    by_id: Mapping[PeerId, Peer] = {peer.peer_id: peer for peer in peers}
    assert set(by_id) == {person.id for person in PEOPLE}
    for peer in peers:
        await peer.parts.overlay.look_around()
    for _, offer in OFFERS:
        published = await by_id[offer.provider].parts.publisher.publish(offer)
        assert 2 * published.stored > published.asked
    told = Told()
    for reader in READERS:
        readings = await by_id[PEOPLE[reader].id].parts.finder.read(KEYS, ENOUGH)
        for key, reading in zip(KEYS, readings, strict=True):
            told.read[reader, key] = facts(reading.records)
    while True:
        told.held.clear()
        told.look_into({peer.peer_id: peer.parts.overlay.server.store for peer in peers})
        if settled(told):
            return told
        await trio.sleep(0.5)
