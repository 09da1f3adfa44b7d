"""How a peer and its worker share memory for calls: lent with a call, granted for an answer, taken back.

A call carries its large tensors in a region that was handed to the worker before; for a large answer the
worker asks, in the call's own stream, and is granted one through the control socket. Notes and calls take
different sockets, but what was written first can be read first: whoever misses something looks there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import trio

from modelnet_p2p.events import Call, Item, Result
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.serving.policy.notes import Note, NoteKind
from modelnet_p2p.node.serving.policy.places import copied, lift, lower
from modelnet_p2p.node.serving.policy.scarcity import is_scarce
from modelnet_p2p.node.serving.worker.link import Control
from modelnet_p2p.node.serving.worker.regions import TIDY_SECONDS, Lease, Pool, Quota, Region
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import BadPayload


class Shares:
    """What one call shares with the worker: at most one region lent with it and one granted for an answer."""

    __slots__ = ("is_sent", "lent", "room")

    def __init__(self) -> None:
        self.lent: Region | None = None
        self.room: Lease | None = None
        self.is_sent = False

    def sent(self) -> None:
        """The worker has all of the call: it says itself when nothing there looks at its input any more."""
        self.is_sent = True

    def found(self, event: Item | Result) -> Value:
        """The value of an event whose tensors may lie in the memory that was granted for it, which is used up
        by it. Raises BadPayload for tensors anywhere else."""
        number = event.extra.get("region") if event.extra else None
        if number is None:
            return event.value
        room, self.room = self.room, None
        if room is None or number != room.region.number:
            raise BadPayload("an answer in memory that was not granted for it")
        return lower(event.value, room.memory)


class Sharing:
    """The memory of one worker, and the notes about it."""

    def __init__(self, control: Control, quota: Quota) -> None:
        self._control = control
        self._pool = Pool(quota)
        self._listening: trio.CancelScope | None = None  # around the wait for notes; cut short to tidy memory

    def allocate(self, size: int) -> memoryview | None:
        """Memory for the input of a call; None where there is none to be had."""
        lease = self._lease(size, inbound=True)
        return None if lease is None else lease.memory

    def _lease(self, size: int, *, inbound: bool) -> Lease | None:
        lease = self._pool.lease(size, inbound=inbound)
        if lease is not None and self._listening is not None and self._listening.deadline == float("inf"):
            self._listening.deadline = trio.current_time() + TIDY_SECONDS  # there is something to tidy now
        return lease

    async def listen(self) -> None:
        """Takes notes and keeps the memory tidy until the worker ends; raises OSError, BadNote."""
        while True:
            patience = TIDY_SECONDS if self._pool.regions else float("inf")
            with trio.move_on_after(patience) as self._listening:
                notes = await self._control.receive()
                if notes is None:
                    return
                self._on_notes(notes)
            self._pool.tidy(trio.current_time())
            await self._tell_forgotten()

    def _on_notes(self, notes: Iterator[Note]) -> None:
        for note in notes:
            self._pool.freed(note.number, worn=note.kind is NoteKind.WORN)

    def catch_up(self, shares: Shares) -> None:
        """A call ended in order: what was freed of its memory was said before. Raises OSError, BadNote."""
        if shares.lent is not None:
            self._on_notes(self._control.heard())

    async def lend(self, call: Call, shares: Shares) -> Call:
        """`call` with its large tensors in memory that the worker maps. Raises OSError when it is gone.

        Where they lie in such memory already, nothing is copied; where there is none, they stay in the call.
        """
        lifted = lift(call.value)
        if lifted is None:
            return call
        found = self._pool.holding(lifted.arrays)
        if found is not None:
            region, offsets = found
        else:
            offsets, size = lifted.layout()
            lease = self._lease(size, inbound=False) if size <= MAX_BODY_BYTES else None
            if lease is None:
                return call
            region = lease.region
            for _ in copied(lifted.arrays, offsets, lease.memory):
                await trio.lowlevel.checkpoint()
        if not await self._hand_over(region):
            return call
        region.lent += 1
        shares.lent = region
        return replace(call, value=lifted.message(offsets), extra={"region": region.number})

    def take_back(self, shares: Shares) -> None:
        """The worker has stopped a call that did not end in order."""
        if shares.lent is not None and not shares.is_sent:
            self._pool.freed(shares.lent.number)

    async def grant(self, asked: object, shares: Shares) -> None:
        """Memory for an answer, if there is any, in place of what was granted before and not used.

        Raises OSError when the worker is gone, BadPayload when it asks for what no answer needs.
        """
        match asked:
            case [int(request), int(size)] if 0 <= request < 1 << 32 and 0 < size <= MAX_BODY_BYTES:
                shares.room = None
                shares.room = self._lease(size, inbound=False)
            case _:
                raise BadPayload("it asks for memory that no answer needs")
        if shares.room is not None and not await self._hand_over(shares.room.region):
            shares.room = None
        number = shares.room.region.number if shares.room is not None else 0
        await self._control.send(Note(NoteKind.GRANT, request, number))

    async def _hand_over(self, region: Region) -> bool:
        """Once, before the worker is told of it; False when no descriptor can be sent now. Raises OSError."""
        await self._tell_forgotten()
        if region.handle is not None:
            try:
                await self._control.send(Note(NoteKind.MEMORY, region.number, region.size), region.handle)
            except OSError as error:
                if is_scarce(error):
                    return False
                raise
            region.close_handle()
        return True

    async def _tell_forgotten(self) -> None:
        while self._pool.forgotten:
            number, told = self._pool.forgotten.pop(), False
            try:
                await self._control.send(Note(NoteKind.FORGET, number))
                told = True
            finally:
                if not told:
                    self._pool.forgotten.append(number)

    def close(self) -> None:
        """The worker is gone."""
        self._pool.close()
