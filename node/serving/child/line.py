"""One stream of calls as the worker sees it: a call comes in, is run, and its end goes out.

A call is the same whoever drives it: the event loop, for models that await, or the model's own thread, for
those that block it. The two differ in how they wait, and only there. Bytes that come during a call can only
be its end: the caller has left, and the call is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, TypeVar

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
from modelnet_p2p.node.serving.child.control import Control, Grant
from modelnet_p2p.node.serving.policy.places import copied, lift, lower
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import BadPayload, Buffer

log = logging.getLogger(__name__)

Sent = TypeVar("Sent", Item, Result)
# method, input, params, where items go, and who calls: empty where that makes no difference
Run = Callable[[str, Value, Mapping[str, Value], Emit, str], Awaitable[Value]]
Work: TypeAlias = Coroutine[object, None, None]

BROKEN = (OSError, RemoteProtocolError, LocalProtocolError)  # what reading a line raises when it is of no use


class Waits(Protocol):
    """How a call waits. Each raises CancelledError when its caller leaves meanwhile."""

    async def pause(self) -> None:
        """Others may go on, and what this one's last step held is let go of."""

    async def writable(self, line: Line) -> None:
        """Until the line's socket takes more."""

    async def answered(self, line: Line, grant: Grant) -> None:
        """Until the peer has answered a request for memory; raises OSError if it never will."""

    def say(self) -> None:
        """Tell the peer what memory was freed; this does not wait."""


class House:
    """What the lines of one worker share."""

    def __init__(self, run: Run, control: Control) -> None:
        self.run = run
        self.control = control
        self.handles = {control.sock.fileno()}  # that a process which the model forks must not hold open

    def open(self, sock: socket.socket, waits: Waits) -> Line:
        sock.setblocking(False)
        self.handles.add(sock.fileno())
        return Line(sock, self, waits)

    def close(self, line: Line) -> None:
        self.handles.discard(line.sock.fileno())
        line.sock.close()


class Line:
    """An `Exchange` on a socket of this process, and at most one call at a time."""

    def __init__(self, sock: socket.socket, house: House, waits: Waits) -> None:
        self.sock = sock
        self.waits = waits
        self.left = False  # the caller has: nothing more is read, and the call is cancelled
        self._house = house
        self._exchange = Exchange(Role.ANSWERER, max_body=MAX_BODY_BYTES)

    def take(self) -> Work | None:
        """What answers the call that has come; None if none has come whole yet.

        Raises one of BROKEN when nobody will listen any more, be it in the middle of a call.
        """
        while True:
            try:
                count = self.sock.recv_into(self._exchange.get_buffer())
            except BlockingIOError:
                return None
            self._exchange.received(count)
            event = self._exchange.next_event()
            if isinstance(event, Call):
                return self._answer(event)
            if count == 0:
                raise ConnectionAbortedError("its caller has closed it")

    def is_gone(self) -> bool:
        """During a call: whether its caller has left. It is asked before each token: it looks, then reads."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        try:
            self.take()
        except BROKEN as error:
            log.debug("a stream ended in a call: %s", error)
            return True
        return False

    async def _answer(self, call: Call) -> None:
        """Run one call and send its end, when nothing here holds its input any more."""
        work = self._outcome(call)
        del call
        end = await work
        if self._house.control.memory.held:
            await self.waits.pause()  # or the loop's own step still holds what the model raised or gave
        self.waits.say()
        await self._send_end(end)

    async def _outcome(self, call: Call) -> Result | Fault:
        try:
            method, params, value, caller = call.method, call.params, self._input(call), call.key
            del call
            return await self._packed(
                Result(await self._house.run(method, value, params, self._emit, caller))
            )
        except ModelnetError as error:
            return Fault.of(error)
        except asyncio.CancelledError:
            if self.left:
                raise
            return Fault(Code.MODEL_ERROR, "the model raised CancelledError")

    def _input(self, call: Call) -> Value:
        """The value of a call; raises LocalError, and ConnectionError for memory that nobody handed over."""
        number = call.extra.get("region")
        if number is None:
            return call.value
        if not isinstance(number, int) or not self._house.control.has(number):
            raise ConnectionAbortedError("a call in memory that was not handed over")
        try:
            return lower(call.value, self._house.control.memory.input(number))
        except BadPayload as error:
            raise LocalError(Code.INTERNAL, f"a call's tensors are not where it says: {error}") from None

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
            memory = self._house.control.memory.room(number)
        except LocalError as error:
            log.debug("an answer goes through the socket: %s", error.message)
            return event
        for _ in copied(lifted.arrays, offsets, memory[:size]):
            await self.waits.pause()
        return replace(event, value=lifted.message(offsets), extra={"region": number})

    async def _granted(self, size: int) -> int:
        """The memory for an answer of that size, 0 if there is none."""
        grant = self._house.control.ask()
        try:
            await self._send(Item(None, extra={"room": [grant.number, size]}))
            await self.waits.answered(self, grant)
        finally:
            self._house.control.drop(grant)
        return grant.region if grant.region and self._house.control.has(grant.region) else 0

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
            rest = memoryview(buffer)
            while rest:
                try:
                    rest = rest[self.sock.send(rest) :]
                except BlockingIOError:
                    await self.waits.writable(self)


def _unsendable(error: LocalProtocolError) -> LocalError:
    """What a model gives is its own fault, not its caller's."""
    code = Code.TOO_LARGE if error.code is Code.TOO_LARGE else Code.MODEL_ERROR
    message = f"the model's answer cannot be sent: {error.message}"
    return LocalError(code, message, hint=error.hint, retryable=False)
