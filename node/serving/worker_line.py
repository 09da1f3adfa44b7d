"""One stream of calls as the worker sees it: a call comes in, is run in a task, and its end goes out.

The loop tells of bytes by a callback that stays registered, so that a call costs one task and no more. Bytes
that come during a call can only be its end: the caller has left, and the call is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import (
    Call,
    Exchange,
    Fault,
    Item,
    LocalProtocolError,
    RemoteProtocolError,
    Result,
    Role,
)
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES, Emit
from modelnet_p2p.node.serving.policy.places import copied, lift, lower
from modelnet_p2p.node.serving.worker_memory import WorkerMemory
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import BadPayload, Buffer

log = logging.getLogger(__name__)

Sent = TypeVar("Sent", Item, Result)
Run = Callable[[str, Value, Mapping[str, Value], Emit], Awaitable[Value]]


@dataclass(frozen=True, slots=True)
class House:
    """What the lines of one worker share."""

    run: Run
    memory: WorkerMemory
    more: Callable[[], None]  # reads what the peer has said on the control socket so far
    tell_spent: Callable[[], None]  # says there what memory was freed
    ask: Callable[[], tuple[int, asyncio.Future[int]]]  # a number for a request, and what will be granted


class Line:
    """An `Exchange` on a socket of this process, and at most one call at a time."""

    def __init__(self, sock: socket.socket, house: House, on_end: Callable[[Line], None]) -> None:
        self._sock = sock
        self._house = house
        self._on_end = on_end
        self._exchange = Exchange(Role.ANSWERER, max_body=MAX_BODY_BYTES)
        self._work: asyncio.Task[None] | None = None
        self._left = False  # the caller has: nothing more is read, and the call is cancelled
        self._loop = asyncio.get_running_loop()
        self.handle = sock.fileno()
        self._loop.add_reader(sock, self._on_readable)

    def _on_readable(self) -> None:
        try:
            count = self._sock.recv_into(self._exchange.get_buffer())
            self._exchange.received(count)
            event = self._exchange.next_event()
        except BlockingIOError:
            return
        except (RemoteProtocolError, LocalProtocolError, OSError) as error:
            log.debug("a stream ended: %s", error)
            self.leave()
            return
        if isinstance(event, Call):
            self._work = self._loop.create_task(self._answer(event))
            self._work.add_done_callback(self._on_done)
        elif count == 0:
            self.leave()

    def leave(self) -> None:
        """Nobody listens any more: cancel the call, close the stream when it has stopped."""
        if not self._left:
            self._left = True
            self._loop.remove_reader(self._sock)
            if self._work is None:
                self._close()
            else:
                self._work.cancel()

    async def ended(self) -> None:
        """Returns when the call that is on, if any, has stopped."""
        if self._work is not None:
            await asyncio.wait({self._work})

    def _close(self) -> None:
        self._sock.close()
        self._on_end(self)

    def _on_done(self, work: asyncio.Task[None]) -> None:
        if self._work is work:  # its caller may have sent the next call already
            self._work = None
        error = None if work.cancelled() else work.exception()
        if error is not None:
            level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
            log.log(level, "a stream ended: %r", error)
        if self._left and self._work is None:
            self._close()
        elif error is not None:
            self.leave()

    async def _answer(self, call: Call) -> None:
        """Run one call and send its end, when nothing here holds its input any more."""
        work = self._outcome(call)
        del call
        end = await work
        if self._house.memory.held:
            await asyncio.sleep(
                0
            )  # the loop's own step, which ends here, holds what the model raised or gave
        self._house.tell_spent()
        await self._send_end(end)

    async def _outcome(self, call: Call) -> Result | Fault:
        try:
            method, params, value = call.method, call.params, self._input(call)
            del call
            return await self._packed(Result(await self._house.run(method, value, params, self._emit)))
        except ModelnetError as error:
            return Fault.of(error)
        except asyncio.CancelledError:
            if self._left:
                raise
            return Fault(Code.MODEL_ERROR, "the model raised CancelledError")

    def _input(self, call: Call) -> Value:
        """The value of a call; raises LocalError, and ConnectionError for memory that nobody handed over."""
        number = call.extra.get("region")
        if number is None:
            return call.value
        if not isinstance(number, int) or not self._has(number):
            raise ConnectionAbortedError("a call in memory that was not handed over")
        try:
            return lower(call.value, self._house.memory.input(number))
        except BadPayload as error:
            raise LocalError(Code.INTERNAL, f"a call's tensors are not where it says: {error}") from None

    def _has(self, number: int) -> bool:
        """Whether that memory was handed over. It was before the call was sent, though on another socket."""
        if not self._house.memory.knows(number):
            self._house.more()
        return self._house.memory.knows(number)

    async def _emit(self, value: Value) -> None:
        await self._send(await self._packed(Item(value)))

    async def _packed(self, event: Sent) -> Sent:
        """`event`, with its large tensors in memory of the peer's where it has some for them."""
        lifted = lift(event.value)
        if lifted is None:
            return event
        offsets, size = lifted.layout()
        if size > MAX_BODY_BYTES or not (number := await self._granted(size)):
            return event
        try:
            memory = self._house.memory.room(number)
        except LocalError as error:
            log.debug("an answer goes through the socket: %s", error.message)
            return event
        for _ in copied(lifted.arrays, offsets, memory[:size]):
            await asyncio.sleep(0)
        return replace(event, value=lifted.message(offsets), extra={"region": number})

    async def _granted(self, size: int) -> int:
        """The memory for an answer of that size, 0 if there is none."""
        request, granted = self._house.ask()
        try:
            await self._send(Item(None, extra={"room": [request, size]}))
            number = await granted
        finally:
            granted.cancel()
        return number if number and self._has(number) else 0

    async def _send(self, item: Item) -> None:
        """Raises OSError when nobody listens, LocalError for a value that cannot be sent."""
        try:
            buffers = self._exchange.send(item)
        except LocalProtocolError as error:
            raise _unsendable(error) from error
        await self._write(buffers)

    async def _send_end(self, end: Result | Fault) -> None:
        try:
            buffers = self._exchange.send(end)
        except LocalProtocolError as error:
            buffers = self._exchange.send(Fault.of(_unsendable(error)))
        await self._write(buffers)

    async def _write(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            try:
                sent = self._sock.send(buffer)
            except BlockingIOError:
                sent = 0
            if sent < len(buffer):
                await self._loop.sock_sendall(self._sock, memoryview(buffer)[sent:])


def _unsendable(error: LocalProtocolError) -> LocalError:
    """What a model gives is its own fault, not its caller's."""
    code = Code.TOO_LARGE if error.code is Code.TOO_LARGE else Code.MODEL_ERROR
    message = f"the model's answer cannot be sent: {error.message}"
    return LocalError(code, message, hint=error.hint, retryable=False)
