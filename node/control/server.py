"""The running peer's ear for this machine's commands: a Unix socket that only its user may open.

One call a connection: when the client hangs up, its call is cancelled. What a call may ask is in
`control/table.py`; whatever else a client sends, or how it goes, the peer stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.exchange import Call, Exchange, Fault, Item, RemoteProtocolError, Result, Role
from modelnet_p2p.node.control.table import Request, dispatch
from modelnet_p2p.node.control.wire import (
    BEAT,
    BEAT_SECONDS,
    INPUT,
    MAX_BODY_BYTES,
    NETWORK,
    PARAMS,
    SILENCE_SECONDS,
    to_fault,
)
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.single_error import own_error

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer

MAX_CONVERSATIONS = 32  # commands of one user at once; more wait in the socket's backlog
ACCEPT_PAUSE = 0.1  # seconds after a failed accept, so that a lack of descriptors is no busy loop
_log = logging.getLogger(__name__)

Value = Any  # a value of the wire; the Exchange checks it


class Starting(Protocol):
    """The part of trio.TaskStatus that a service needs; the stubs of trio-typing do not know that name."""

    def started(self, value: None, /) -> None: ...


async def serve(peer: Peer, path: Path, *, task_status: Starting) -> None:
    """Answer commands on a Unix socket at `path` (mode 0600) until cancelled.

    The caller holds the home's lock, so a socket left there is a dead peer's and is replaced.
    """
    limit = trio.Semaphore(MAX_CONVERSATIONS)
    async with _listen(path) as listener, trio.open_nursery() as nursery:
        task_status.started(None)
        while True:
            await limit.acquire()
            try:
                connection, _ = await listener.accept()
            except OSError as error:  # the client was gone already, or descriptors ran out: go on soon
                _log.warning("control accept failed: %s", reason(error))
                limit.release()
                await trio.sleep(ACCEPT_PAUSE)
                continue
            nursery.start_soon(_converse, peer, trio.SocketStream(connection), str(path), limit)


@asynccontextmanager
async def _listen(path: Path) -> AsyncIterator[trio.socket.SocketType]:
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with listener:
        try:
            path.unlink(missing_ok=True)
            await listener.bind(str(path))
            os.chmod(path, 0o600)  # and its directory is the user's alone, so no moment was open
            listener.listen(MAX_CONVERSATIONS)
        except OSError as error:
            raise LocalError(
                Code.BAD_STATE, f"cannot open the control socket {path}: {reason(error)}"
            ) from error
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def _converse(peer: Peer, stream: trio.SocketStream, control: str, limit: trio.Semaphore) -> None:
    """One call of one client; whatever it sends or however it goes, the peer stays."""
    exchange = Exchange(Role.ANSWERER, max_body=MAX_BODY_BYTES)
    try:
        async with stream:
            call = await _receive_call(stream, exchange)
            if call is not None:
                await _Conversation(peer, stream, exchange, control).answer(call)
    finally:
        limit.release()


async def _receive_call(stream: trio.SocketStream, exchange: Exchange) -> Call | None:
    """The one call of a connection, None if what arrives is none."""
    try:
        while (event := exchange.next_event()) is None:
            with trio.fail_after(SILENCE_SECONDS):  # a large tensor takes its time, but comes on
                n = await stream.socket.recv_into(exchange.get_buffer())
            exchange.received(n)
            if n == 0 and not exchange.in_frame:
                return None
    except trio.TooSlowError:
        _log.info("a control client stopped in the middle of its call")
        return None
    except OSError as error:
        _log.debug("a control client hung up: %s", reason(error))
        return None
    except RemoteProtocolError as error:
        _log.warning("a control client broke the protocol: %s", error.message)
        return None
    return event if isinstance(event, Call) else None


class _Conversation:
    """The answer to one call: beats, notices and items as they come, then result or fault."""

    def __init__(self, peer: Peer, stream: trio.SocketStream, exchange: Exchange, control: str) -> None:
        self._peer = peer
        self._control = control
        self._stream = stream
        self._exchange = exchange
        self._scope = trio.CancelScope()  # of all of it: cancelled as soon as the client hangs up
        self._sending = trio.Lock()  # frames of the call and of its beats never mix
        self._over = False  # its end was sent: nothing follows that

    async def answer(self, call: Call) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._beat)
                await self._finish(await self._end_of(call))
                nursery.cancel_scope.cancel()

    async def _end_of(self, call: Call) -> Result | Fault:
        try:
            return Result(
                await dispatch(self._peer, call.method, _request_of(call, self._control), self._emit)
            )
        except Exception as error:  # noqa: BLE001  the guard of this stream handler: see below
            cause = own_error(error)
            if cause is not None:
                return to_fault(cause)
            # a bug that one command meets must not take the peer down
            _log.exception("control: %s failed", call.method[:40])
            words = f"{type(error).__name__}: {error}"
            return Fault(Code.INTERNAL, words, hint="its traceback is in the running peer's log")

    async def _finish(self, end: Result | Fault) -> None:
        try:
            await self._send(end)
        except LocalError as error:  # the result is no value, or too large; nothing of it was sent
            await self._send(to_fault(error))

    async def _emit(self, kind: str, value: Value) -> None:
        await self._send(Item({kind: value}))

    async def _send(self, event: Item | Result | Fault) -> None:
        async with self._sending:
            if self._over:  # a beat that waited for its turn while the end was sent
                return
            try:
                buffers = self._exchange.send(event)
                self._over = not isinstance(event, Item)
                for buffer in buffers:
                    await self._stream.send_all(memoryview(buffer))
            except trio.BrokenResourceError:
                self._scope.cancel()
                await trio.lowlevel.checkpoint()

    async def _beat(self) -> None:
        seconds = 0
        while True:
            await trio.sleep(BEAT_SECONDS)
            seconds += 1
            await self._emit(BEAT, seconds)

    async def _watch(self) -> None:
        """The client says nothing after its call: whatever arrives now is that it hung up."""
        try:
            await self._stream.receive_some(1)
        except trio.BrokenResourceError:
            pass
        self._scope.cancel()


def _request_of(call: Call, control: str) -> Request:
    value = call.value
    if not isinstance(value, dict) or not isinstance(value.get(PARAMS), dict):
        raise LocalError(Code.BAD_INPUT, "a control call holds its parameters in a map")
    network = value.get(NETWORK)
    if network is not None and not isinstance(network, str):
        raise LocalError(Code.BAD_INPUT, "the network's name must be a string")
    return Request(value[PARAMS], value.get(INPUT), control, network)
