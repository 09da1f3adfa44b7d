"""How far this machine's clock is from those of the peers that it is connected to.

Records carry wall times, and a clock that is off by more than the protocol allows (`CLOCK_SKEW_US`) makes its
peer refuse what others say and others refuse what it says. Nothing is set right here: it is told. A ping's
answer brings the other side's time. The median of a few peers stands, so that one wrong clock, or one liar,
among three is not believed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import trio

from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.events import Call
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.calls.server import PING, UNIX_MS
from modelnet_p2p.node.transport.contract import Network

FIRST_SECONDS = 2.0  # after the start: by then the peers that were met are connected
ALONE_SECONDS = 30.0  # until it is tried again where nobody could be asked
AGAIN_SECONDS = 600.0  # a clock drifts by seconds a day; somebody may set it
MAX_ASKED = 5  # peers: two of them may be wrong
MAX_BODY_BYTES = 64 << 10  # of an answer: a ping's also has the loads of at most 64 models
MAX_MS = 1 << 53  # as whole numbers go in a record: in milliseconds, the year 287,396


class Clocks:
    """What the last round of questions said."""

    def __init__(
        self,
        client: CallClient,
        network: Network,
        wall_us: Callable[[], int],
        timeout: float,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._network = network
        self._wall_us = wall_us
        self._timeout = timeout
        self._rng = rng
        self._ahead: dict[PeerId, float] = {}  # seconds that this clock is ahead of each one's

    async def keep(self) -> None:
        """Ask again and again."""
        await trio.sleep(FIRST_SECONDS)
        while True:
            await self.ask()
            await trio.sleep(AGAIN_SECONDS if self._ahead else ALONE_SECONDS)

    async def ask(self) -> None:
        """Ask a few of the peers that are connected now; those that do not tell are left out."""
        connected = sorted(self._network.connected())
        told: dict[PeerId, float] = {}

        async def ask_one(peer: PeerId) -> None:
            ahead = await self._ahead_of(peer)
            if ahead is not None:
                told[peer] = ahead

        async with trio.open_nursery() as nursery:
            for peer in self._rng.sample(connected, min(MAX_ASKED, len(connected))):
                nursery.start_soon(ask_one, peer)
        self._ahead = told

    async def _ahead_of(self, peer: PeerId) -> float | None:
        began_us = self._wall_us()
        call = Call(target="", method=PING)
        try:
            result = await self._client.unary(peer, (), call, self._timeout, max_body=MAX_BODY_BYTES)
        except ModelnetError:
            return None  # gone, or it serves no calls
        told = result.value.get(UNIX_MS) if isinstance(result.value, dict) else None
        if type(told) is not int or not 0 <= told < MAX_MS:
            return None
        return (began_us + self._wall_us()) / 2e6 - told / 1e3

    def to_map(self) -> dict[str, object]:
        """For `status`: of how many peers, and the median of by how many seconds this clock is ahead."""
        ahead = self.ahead
        return {"peers": self.asked, "ahead_s": None if ahead is None else round(ahead, 3)}

    @property
    def asked(self) -> int:
        """Of how many peers the clock is known."""
        return len(self._ahead)

    @property
    def ahead(self) -> float | None:
        """The median of the seconds that this clock is ahead of theirs; None where nobody has told."""
        return median(self._ahead.values()) if self._ahead else None
