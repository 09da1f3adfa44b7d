"""What passes between a walk and the tasks that ask for it: replies, and what is known without one."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import trio

from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Message


class Silence(Enum):
    """What a walk is told of a request that has no reply."""

    HELD = 0  # yet: it has to wait, for its peer is asked too much
    BUSY = 1  # the peer had others of our requests to answer first
    FAILED = 2  # the peer could not be asked, or did not answer


Answer = tuple[PeerId, Message | Silence]
Answers = trio.MemorySendChannel[Answer]
Incoming = trio.MemoryReceiveChannel[Answer]


class Machine(Protocol):
    """What `run` drives: any walk of `dht/walks/finding.py`, or a check of `dht/table/checking.py`."""

    @property
    def unfinished(self) -> bool: ...

    def poll(self, now: float) -> Send | Wait | Done: ...
    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None: ...
    def on_failure(self, peer: PeerId, now: float) -> None: ...
    def on_held(self, peer: PeerId) -> None: ...
    def on_busy(self, peer: PeerId, now: float) -> None: ...


async def hear(walk: Machine, incoming: Incoming, until: float) -> None:
    """Hand the walk all answers that are there; where none is, the first that comes until then."""
    try:
        answer = incoming.receive_nowait()
    except trio.WouldBlock:
        with trio.move_on_at(until) as scope:
            answer = await incoming.receive()
        if scope.cancelled_caught:
            return
    while True:
        match answer:
            case peer, Silence.HELD:
                walk.on_held(peer)
            case peer, Silence.BUSY:
                walk.on_busy(peer, trio.current_time())
            case peer, Silence.FAILED:
                walk.on_failure(peer, trio.current_time())
            case peer, Message() as reply:
                walk.on_reply(peer, reply, trio.current_time())
        try:
            answer = incoming.receive_nowait()
        except trio.WouldBlock:
            return


def tell(answers: Answers, peer: PeerId, reply: Message | Silence) -> None:
    try:
        answers.send_nowait((peer, reply))
    except trio.ClosedResourceError:
        pass  # the walk was over before this answer came
    except trio.BrokenResourceError:
        pass
