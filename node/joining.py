"""How a peer gets into its network and stays in it: whom it asks first, and whom it remembers.

It asks the bootstraps that it was given; without any, the peers of this user and machine. Those that an
earlier run on this home had met are asked too, but not where a given one answers. What does not answer is
asked again: soon while nobody is known, now and then otherwise, so that two halves of a network that only
this bootstrap connects do not stay apart.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.overlay.driver import Bootstrap, Overlay
from modelnet_p2p.node.transport.addresses import split_p2p, texts, with_peer

log = logging.getLogger(__name__)

PATIENT_SECONDS = 60.0  # between two tries of a given bootstrap while other peers are known
CONTACTS_SECONDS = 60.0  # between two looks whether the peers known have changed, for the next run
SETTLE_SECONDS = 1.0  # from the first peer that comes to writing it down: others come right behind it
CONTACT_ADDRS = 3  # kept of each: the one dialled and two others


class Joining:
    """One peer's ways into one network."""

    def __init__(
        self,
        overlay: Overlay,
        given: Sequence[str],
        runtime: Runtime,
        home: Home | None,
        notices: Notices | None = None,
    ) -> None:
        self._overlay = overlay
        self._given = list(given)
        self._runtime = runtime
        self._home = home
        self._met = _remembered(home, overlay.name, notices or Notices()) if home else []
        self._noted: list[str] = []  # the addresses in peers.json
        self._missing: list[str] = []  # of the given ones

    async def enter(self, background: trio.Nursery) -> Bootstrap:
        """Ask whom there is to ask; how those fared that were given, or are of this user."""
        bootstrap = await self._overlay.bootstrap(self._given or self._runtime.others())
        self._note_missing(bootstrap)
        if not bootstrap.reached:
            await self._overlay.bootstrap(self._met)
        elif not self._given:  # the dead among those met need not hold up the start
            background.start_soon(self._overlay.bootstrap, self._met)
        return bootstrap

    async def stay(self) -> None:
        """Ask again those who did not answer, for as long as the peer lives."""
        tried = trio.current_time()
        while True:
            await trio.sleep(self._overlay.tuning.bootstrap_retry)
            now = trio.current_time()
            if len(self._overlay.table) == 0:
                asked = [*(self._given or self._runtime.others()), *self._met]
            elif self._missing and now - tried >= PATIENT_SECONDS:
                asked = self._missing
            else:
                continue
            tried = now
            self._note_missing(await self._overlay.bootstrap(asked))

    async def remember(self) -> None:
        """Keep the peers that are known for the next run on this home, the first ones right away."""
        came = trio.Event()
        self._overlay.on_newcomer(lambda _: came.set())
        self.note()
        if not self._noted:
            await came.wait()
            await trio.sleep(SETTLE_SECONDS)
        while True:
            self.note()
            await trio.sleep(CONTACTS_SECONDS)

    def note(self) -> None:
        """Write down where the peers in the table are; who knows nobody keeps what was kept."""
        connected = self._overlay.network.connected()
        contacts = sorted(self._overlay.table, key=lambda contact: contact.id not in connected)
        addrs = [with_peer(a, c.id) for c in contacts for a in texts(c.addrs)[:CONTACT_ADDRS]]
        if self._home is None or not addrs or addrs == self._noted:
            return
        try:
            self._home.save_peers(self._overlay.name, addrs)
            self._noted = addrs
        except LocalError as error:
            log.warning("the known peers are not kept: %s", error.message)

    def _note_missing(self, bootstrap: Bootstrap) -> None:
        reached = set(bootstrap.reached)
        tried = set(bootstrap.tried)
        self._missing = [a for a in self._given if a not in reached and (a in tried or a in self._missing)]


def check_bootstraps(addrs: Sequence[str]) -> None:
    """Raises LocalError (bad-input) for an address without a peer's id: nobody could tell who answers."""
    for addr in addrs:
        if split_p2p(addr)[0] is None:
            raise LocalError(
                Code.BAD_INPUT,
                f"the bootstrap address {addr} does not end in /p2p/ID",
                hint="copy the whole address that `modelnet-peer join` or `modelnet-peer id` prints",
            )


def _remembered(home: Home, network: str, notices: Notices) -> list[str]:
    """The addresses of an earlier run. They are a cache: a damaged one costs a warning, not the start."""
    try:
        return _sound(home.load_peers(network))
    except LocalError as error:
        notices.say(f"warning: {error.message}; it is written anew, and the peers in it are not asked")
        return []


def _sound(addrs: Sequence[str]) -> list[str]:
    """Those of remembered addresses that can be dialled: the file may have been damaged."""
    found: list[str] = []
    for addr in addrs:
        try:
            check_bootstraps([addr])
        except LocalError:
            continue
        found.append(addr)
    return found
