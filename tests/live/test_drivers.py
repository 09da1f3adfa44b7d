"""The story of tests/sim/test_drivers.py over real sockets: the third driver tells the same."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from modelnet_p2p.node.disk.home import Home, encode_key
from modelnet_p2p.node.peer import Peer
from story import HOLDERS, NETWORK, PEOPLE, expected
from story_peers import tell

pytestmark = [pytest.mark.live, pytest.mark.slow]
PATIENCE = 300.0  # seconds until fifty peers of one process know each other, on a machine that is busy


async def test_real_sockets_tell_the_truth_that_the_simulated_drivers_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # no peer of this machine is met by chance
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for number, person in enumerate(PEOPLE):
            home = Home(tmp_path / f"p{number}")
            home.path.mkdir(mode=0o700)
            home.key_path.write_bytes(encode_key(person))
            home.key_path.chmod(0o600)
            known = peers[0].addrs[:1] if peers else ()
            peer = await stack.enter_async_context(
                Peer.open(bootstrap=known, home=home.path, network=NETWORK, tuning="wan")
            )
            assert peer.peer_id == person.id
            peers.append(peer)
        with trio.fail_after(PATIENCE):
            while not all(len(peer.parts.overlay.table) >= HOLDERS for peer in peers):
                await trio.sleep(0.5)
        truth, told = expected(), None
        with trio.move_on_after(PATIENCE):
            told = await tell(peers, lambda told: told.held == truth.held)
        assert told == truth
