"""A walk on its way: how it hears what it is answered, and what it counts as silence."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol

import trio

from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Message

LATE_SECONDS = 0.05  # that an instant passes unseen: less is a busy loop, more is one that stood still
MAX_GRACE = 1.0  # seconds, at most, in which what came meanwhile is read


class Silence(Enum):
    """What a walk is told of a request that has no reply."""

    HELD = 0  # yet: it has to wait, for its peer is asked too much
    BUSY = 1  # the peer had others of our requests to answer first
    FAILED = 2  # the peer could not be asked, or did not answer


Answer = tuple[PeerId, Message | Silence]
Tell = Callable[[PeerId, Message | Silence], None]


def unheard(peer: PeerId, reply: Message | Silence) -> None:
    """For a message whose answer does not matter."""


class Machine(Protocol):
    """What is driven: any walk of `dht/walks/finding.py`, or a check of `dht/table/checking.py`."""

    @property
    def unfinished(self) -> bool: ...

    def poll(self, now: float) -> Send | Wait | Done: ...
    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None: ...
    def on_failure(self, peer: PeerId, now: float) -> None: ...
    def on_held(self, peer: PeerId) -> None: ...
    def on_busy(self, peer: PeerId, now: float) -> None: ...


class WalkClock:
    """Monotonic seconds as one walk counts them: while this loop stands still nobody is silent.

    What came meanwhile is read only after the deadlines that have passed, so the first of these is put off,
    once: by as long as nobody looked, and as long again for reading.
    """

    def __init__(self) -> None:
        self._behind = 0.0
        self._put_off = -math.inf
        self._passed = -math.inf  # what it is at least: rounded, the difference may fall short of it

    def now(self) -> float:
        return max(trio.current_time() - self._behind, self._passed)

    def instant(self, at: float) -> float:
        """When it will be `at` by this clock, in trio's time."""
        return at + self._behind

    def on_passed(self, at: float) -> None:
        """It is `at` or later, and nobody looked before."""
        late = self.now() - at
        if late > LATE_SECONDS and at > self._put_off:
            self._put_off = at
            self._behind += late + min(late, MAX_GRACE)
        else:
            self._passed = at


class Course:
    """One walk, the answers that come in for it, and its time. Close it when nobody listens any more."""

    def __init__(self, walk: Machine) -> None:
        self.walk = walk
        self._clock = WalkClock()
        # unbounded: a walk has at most one open request per peer, and few of those
        self._answers, self._incoming = trio.open_memory_channel[Answer](math.inf)

    def poll(self) -> Send | Wait | Done:
        return self.walk.poll(self._clock.now())

    def tell(self, peer: PeerId, reply: Message | Silence) -> None:
        """What `peer` answered; nothing happens where nobody listens any more."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            self._answers.send_nowait((peer, reply))

    async def hear(self, until: float = math.inf) -> None:
        """Hand the walk all answers that are there; where none is, the first that comes until then."""
        try:
            answer = self._incoming.receive_nowait()
        except trio.WouldBlock:
            with trio.move_on_at(self._clock.instant(until)) as scope:
                answer = await self._incoming.receive()
            if scope.cancelled_caught:
                self._clock.on_passed(until)
                return
        while True:
            self._hand_over(*answer)
            try:
                answer = self._incoming.receive_nowait()
            except trio.WouldBlock:
                return

    def close(self) -> None:
        self._answers.close()
        self._incoming.close()

    def _hand_over(self, peer: PeerId, reply: Message | Silence) -> None:
        match reply:
            case Silence.HELD:
                self.walk.on_held(peer)
            case Silence.BUSY:
                self.walk.on_busy(peer, self._clock.now())
            case Silence.FAILED:
                self.walk.on_failure(peer, self._clock.now())
            case Message():
                self.walk.on_reply(peer, reply, self._clock.now())
