"""How a peer gets into its network, and back into it; in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.daemon import _tell_bootstrap
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.joining import CONTACTS_SECONDS, PATIENT_SECONDS, SETTLE_SECONDS, Joining
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.tuning import TEST

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


def nobody_here(tmp_path: Path) -> Runtime:
    """A machine on which no other peer of this user runs."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700, exist_ok=True)
    return Runtime("town", environ={"XDG_RUNTIME_DIR": str(directory)})


async def test_a_given_bootstrap_that_was_away_is_asked_again_though_others_are_known(
    open_town: OpenTown, autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with open_town() as town:
        await town.peer("ann")
        ben = await town.peer("ben")
        key = town.key("late")
        given = [f"/ip4/10.9.9.9/tcp/4001/p2p/{key.id}"]
        joining = Joining(ben.parts.overlay, given, nobody_here(tmp_path), None)
        entered = await joining.enter(nursery)
        assert (entered.tried, entered.reached) == (tuple(given), ())
        nursery.start_soon(joining.stay)
        async with (
            town.world.open(key, host="10.9.9.9") as transport,
            Peer.open_on(transport, key, "town", TEST) as late,
        ):
            assert ben.peer_id not in {contact.id for contact in late.parts.overlay.table}
            await trio.sleep(PATIENT_SECONDS + 2 * TEST.bootstrap_retry)
            assert late.peer_id in {contact.id for contact in ben.parts.overlay.table}
            assert ben.peer_id in {contact.id for contact in late.parts.overlay.table}
            nursery.cancel_scope.cancel()


async def test_a_bootstrap_of_another_network_is_told_and_does_not_count_as_reached(
    open_town: OpenTown, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_town() as town:
        ann, ben = await town.peer("ann"), await town.peer("ben", alone=True)
        key = town.key("stranger")
        async with (
            town.world.open(key) as transport,
            Peer.open_on(transport, key, "lab", TEST) as stranger,
        ):
            fared = await ben.bootstrap([*stranger.addrs, *ann.addrs])
            assert (fared.reached, fared.strangers, fared.causes) == (ann.addrs, stranger.addrs, {})
            assert f"{stranger.addrs[0]} is no peer of the network town" in caplog.text
            said: list[str] = []
            _tell_bootstrap(fared, Settings(home=Home(Path()), network="town"), said.append)
            assert "answers, but is no peer of the network 'town'" in said[0]
            assert "tried again every" in said[1]


async def test_who_comes_back_without_a_bootstrap_asks_those_it_had_met(
    open_town: OpenTown, autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with open_town() as town:
        ann, ben = await town.peer("ann"), await town.peer("ben")
        home = Home(tmp_path / "home")
        home.load_or_make_key()  # makes the directory
        Joining(ben.parts.overlay, [], nobody_here(tmp_path), home).note()
        assert home.load_peers("town") == ann.addrs
        assert home.load_peers("village") == ()

        key = town.key("ben, a day later")
        async with (
            town.world.open(key) as transport,
            Peer.open_on(transport, key, "town", TEST) as again,
        ):
            await Joining(again.parts.overlay, [], nobody_here(tmp_path), home).enter(nursery)
            with trio.fail_after(5):
                while ann.peer_id not in {contact.id for contact in again.parts.overlay.table}:
                    await trio.sleep(0.1)


async def test_the_first_neighbour_is_written_down_at_once(
    open_town: OpenTown, autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """A peer that is killed in its first minute shall find the other one again."""
    async with open_town() as town:
        ann = await town.peer("ann")
        home = Home(tmp_path / "home")
        home.load_or_make_key()  # makes the directory
        nursery.start_soon(Joining(ann.parts.overlay, [], nobody_here(tmp_path), home).remember)
        await trio.sleep(2 * CONTACTS_SECONDS)
        assert home.load_peers("town") == ()
        ben = await town.peer("ben")
        await trio.sleep(2 * SETTLE_SECONDS)
        assert home.load_peers("town") == ben.addrs
        nursery.cancel_scope.cancel()


async def test_a_damaged_file_of_peers_is_named_and_does_not_stop_the_start(
    open_town: OpenTown, tmp_path: Path
) -> None:
    async with open_town() as town:
        ann = await town.peer("ann")
        home = Home(tmp_path / "home")
        home.load_or_make_key()
        home.peers_path.write_text("{")
        notices, said = Notices(), list[str]()
        Joining(ann.parts.overlay, [], nobody_here(tmp_path), home, notices)
        notices.listen(said.append)
        (line,) = said
        assert line.startswith(f"warning: cannot use {home.peers_path}: it is damaged; it is written anew")
