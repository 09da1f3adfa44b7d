"""Peers of one local network find each other: each shows its card, and meets those who show one.

The decisions are here: whom to dial because of a card, how often, and what the person is told; what carries
cards is a *radio*, mDNS in life and a fake in tests. The radio is opened anew whenever the interfaces of
this machine change, and nothing here ever ends the peer: where there is no network, it goes on looking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from ipaddress import IPv4Interface

import trio

from modelnet_p2p.errors import LocalError, ModelnetError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.lan.card import Card, dialable, read_card, write_card
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.transport.addresses import tcp_endpoint, with_peer

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between two looks at the interfaces: a cable or a Wi-Fi that comes is used soon
QUIET_SECONDS = 10.0  # with nobody found: as long as somebody waits before he asks what is wrong
AGAIN_SECONDS = 30.0  # between two tries of a card whose peer is not connected
MAX_TRIES = 5  # in a row without an answer; then only a new card is tried
MAX_CARDS = 256  # remembered: as many as connections
MAX_MET = 32  # peers dialled because of their cards: who knows these finds the rest through them
MAX_DIALS = 8  # cards that are tried at the same time


@dataclass(frozen=True, slots=True)
class Heard:
    """A card was shown under this name; without one, its owner has taken it away."""

    name: str
    txt: bytes | None


# (interfaces, my card or None, my TCP port): the cards of others, as long as the block lasts
Radio = Callable[
    [Sequence[IPv4Interface], bytes | None, int],
    AbstractAsyncContextManager[trio.MemoryReceiveChannel[Heard]],
]


@dataclass(slots=True)
class _Shown:
    """A card of our network, and how its peer has answered."""

    card: Card
    tries: int = 0  # in a row without an answer
    trying: bool = False


class Lan:
    """One peer's part on the local network; `run` it for as long as the peer lives."""

    def __init__(
        self,
        overlay: Overlay,
        notices: Notices,
        radio: Radio,
        interfaces: Callable[[], tuple[IPv4Interface, ...]],
    ) -> None:
        self._overlay = overlay
        self._notices = notices
        self._radio = radio
        self._interfaces = interfaces
        self._around: tuple[IPv4Interface, ...] = ()
        self._shown: dict[str, _Shown] = {}  # by the name of the card
        self._trying = 0  # cards
        self._met: set[PeerId] = set()  # the peers that were told of
        self._warned = ""  # the last warning, so that it is said once

    async def run(self) -> None:
        """Show my card and meet others, on whatever networks this machine is, until cancelled."""
        self._around = self._interfaces()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._complain_if_quiet)
            while True:
                if self._around:
                    try:
                        await self._on_air()
                    except LocalError as error:
                        self._warn(
                            f"mDNS is not possible here ({error.message}): peers on other machines are not"
                            " found by themselves; name one: --bootstrap MULTIADDR"
                        )
                        await self._changed()
                else:
                    self._warn(
                        "this machine is on no network that carries multicast: peers on other machines are"
                        f" not found by themselves. Connect it (looked for every {LOOK_SECONDS:g} s), or name"
                        " one: --bootstrap MULTIADDR"
                    )
                    await self._changed()

    async def _on_air(self) -> None:
        """Until the interfaces change."""
        mine = self._mine()
        card = write_card(self._overlay.name, mine) if mine else None
        async with self._radio(self._around, card, _port(mine)) as heard:
            log.info("mdns-open interfaces=%s announced=%d", [str(i.ip) for i in self._around], len(mine))
            if self._warned:
                self._warned = ""
                where = ", ".join(str(one.ip) for one in self._around)
                self._notices.say(f"on the local network now, at {where}: looking for peers there")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, heard, nursery)
                nursery.start_soon(self._try_again, nursery)
                await self._changed()
                nursery.cancel_scope.cancel()
        self._shown.clear()  # heard again on what is there now

    async def _changed(self) -> None:
        """Wait until the interfaces are not what they were."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = self._interfaces()
            if now != self._around:
                self._around = now
                self._overlay.network.renew_addrs()
                return

    def _mine(self) -> list[str]:
        """My addresses that others on these networks can dial, those of the interfaces first."""
        here = {str(one.ip) for one in self._around}
        found = []
        for addr in self._overlay.network.addrs:
            endpoint = tcp_endpoint(addr)
            if endpoint is not None and not endpoint.host.startswith("127.") and endpoint.host != "::1":
                found.append((endpoint.host not in here, addr))
        return [addr for _, addr in sorted(found, key=lambda pair: pair[0])]

    # --- others ---

    async def _listen(self, heard: trio.MemoryReceiveChannel[Heard], nursery: trio.Nursery) -> None:
        async for one in heard:
            if one.txt is None:
                self._shown.pop(one.name, None)
            elif (card := read_card(one.txt)) is not None and self._note(one.name, card):
                self._try(one.name, nursery)
        nursery.cancel_scope.cancel()  # the radio has failed: it says why when it is closed

    def _note(self, name: str, card: Card) -> bool:
        """Remember a card of our network; False where there is nothing new to do about it."""
        known = self._shown.get(name)
        mine = card.peer == self._overlay.me
        if mine or card.network != self._overlay.name or (known is not None and known.card == card):
            return False
        if not dialable(card, self._around):
            log.info("lan-card-refused peer=%s cause=no address of a local network", card.peer.short)
            return False
        if known is None and len(self._shown) >= MAX_CARDS and not self._make_room():
            return False
        self._shown[name] = _Shown(card)
        return True

    def _make_room(self) -> bool:
        """Forget the card that was tried in vain most often, if there is one: it may well be a fake."""
        worst = max(self._shown, key=lambda name: self._shown[name].tries)
        if not self._shown[worst].tries:
            return False
        del self._shown[worst]
        return True

    async def _try_again(self, nursery: trio.Nursery) -> None:
        """Cards that were shown long ago are still true: their peers may only have been away."""
        while True:
            await trio.sleep(AGAIN_SECONDS)
            for name in list(self._shown):
                self._try(name, nursery)

    def _try(self, name: str, nursery: trio.Nursery) -> None:
        """Begin to meet the owner of a card, if that is due."""
        shown = self._shown[name]
        if shown.card.peer in self._overlay.network.connected():
            shown.tries = 0
            self._tell(shown.card)
        elif not shown.trying and shown.tries < MAX_TRIES and self._may_dial():
            shown.trying = True
            self._trying += 1
            nursery.start_soon(self._meet, shown, nursery)

    def _may_dial(self) -> bool:
        if self._trying >= MAX_DIALS:
            return False
        connected = self._overlay.network.connected()
        met = sum(one.card.peer in connected for one in self._shown.values())
        return met + self._trying < MAX_MET

    async def _meet(self, shown: _Shown, nursery: trio.Nursery) -> None:
        card = shown.card
        alone = len(self._overlay.table) == 0
        try:
            await self._overlay.meet(card.peer, dialable(card, self._around))
            shown.tries = 0
        except ModelnetError as error:
            shown.tries += 1
            log.info("lan-dial-failed peer=%s tries=%d cause=%s", card.peer.short, shown.tries, error.code)
            return
        finally:
            shown.trying = False
            self._trying -= 1
            self._try_untried(nursery)
        self._tell(card)
        if alone:
            await self._overlay.look_around()

    def _try_untried(self, nursery: trio.Nursery) -> None:
        """A place has become free: cards that came while all were taken need not wait longer."""
        for name in [name for name, one in self._shown.items() if not one.tries]:
            if self._trying >= MAX_DIALS:
                return
            self._try(name, nursery)

    # --- the person ---

    def _tell(self, card: Card) -> None:
        """Of each peer once, whichever of the two has dialled."""
        if card.peer not in self._met and len(self._met) < MAX_MET:
            self._met.add(card.peer)
            where = dialable(card, self._around)[0]
            self._notices.say(f"met on the local network: {with_peer(where, card.peer)}")

    def _warn(self, line: str) -> None:
        if line != self._warned:
            self._warned = line
            log.warning("%s", line)
            self._notices.say(f"warning: {line}")

    async def _complain_if_quiet(self) -> None:
        await trio.sleep(QUIET_SECONDS)
        if self._met or self._warned or self._overlay.network.connected():
            return
        port = _port(self._mine())
        self._notices.say(
            f"nobody of the network {self._overlay.name!r} is on this local network yet; looking goes on."
            " Another machine runs `modelnet-peer join --lan`? Then compare --network, and let its firewall"
            f" and this one's pass UDP 5353 and TCP {port}"
        )


def _port(addrs: Sequence[str]) -> int:
    """The TCP port of the first address, 0 where there is none."""
    endpoint = tcp_endpoint(addrs[0]) if addrs else None
    return endpoint.port if endpoint else 0
