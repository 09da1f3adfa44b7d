"""Tells the holders of deaths, and of their refutation: walks to them, and says it over a line to each.

Whom to tell, and when there is room for another walk, decides `dht/liveness/tidings.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import trio

from modelnet_p2p.beats import Beat, Obituary
from modelnet_p2p.dht.liveness.tidings import Errand, Tidings
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.overlay.driver import Overlay

log = logging.getLogger(__name__)


class Telling:
    """What one watcher tells. `tell(peer, message)` says whether it is on its way."""

    def __init__(
        self, overlay: Overlay, tell: Callable[[PeerId, Obituary | Beat], bool], nursery: trio.Nursery
    ) -> None:
        self._overlay = overlay
        self._nursery = nursery
        self._tidings = Tidings(tell)

    def on_death(self, obituary: Obituary, keys: Collection[bytes]) -> None:
        """The holders of `keys`, which are those of the dead one, are told from now on."""
        connected, seeds = self._overlay.network.connected(), self._overlay.seeds
        near = {key: [seed.id for seed in seeds(key) if seed.id in connected] for key in keys}
        self._tidings.on_death(obituary, near, self._overlay.density.region)
        self._set_out()

    def on_refuted(self, beat: Beat) -> None:
        """Whoever was told that this peer is dead is told that it lives."""
        self._tidings.on_refuted(beat)

    def _set_out(self) -> None:
        """Take the walks that there is room for."""
        while (errand := self._tidings.poll(self._overlay.density.region)) is not None:
            try:
                self._nursery.start_soon(self._walk, errand)
            except RuntimeError:  # closed: this peer is leaving, and its watcher ends a little later
                log.debug("nobody is told of it any more")

    async def _walk(self, errand: Errand) -> None:
        def on_ours(peer: PeerId) -> None:
            self._tidings.on_answer(errand, peer)
            self._set_out()

        self._tidings.on_end(errand, await self._overlay.find_closest(errand.key, on_ours))
        self._set_out()
