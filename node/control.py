"""The running peer's ear for this machine's commands: a Unix socket that only its user may open.

A closed table maps each method to something that `Peer` can do; nothing from the wire is ever
resolved otherwise. One call a connection: when the client hangs up, its call is cancelled. The
same table serves a temporary peer inside a command, without any socket (`dispatch`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import trio
from trio import TASK_STATUS_IGNORED

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import Call, Exchange, Fault, Item, RemoteProtocolError, Result, Role
from modelnet_p2p.node.control_wire import (
    BEAT,
    BEAT_SECONDS,
    INPUT,
    ITEM,
    MAX_BODY_BYTES,
    NOTICE,
    PARAMS,
    to_fault,
)
from modelnet_p2p.node.files import reason

MAX_CONVERSATIONS = 32  # commands of one user at once; more wait in the socket's backlog
CALL_SECONDS = 30.0  # for the client to send its call, a large tensor included
ACCEPT_PAUSE = 0.1  # seconds after a failed accept, so that a lack of descriptors is no busy loop
_log = logging.getLogger(__name__)

# Any: a value of the wire (None, bool, int, float, str, bytes, list, dict, array); the Exchange checks it
Value = Any
Emit = Callable[[str, Value], Awaitable[None]]  # (NOTICE or ITEM, value); waits for a slow reader


class Starting(Protocol):
    """The part of trio's TaskStatus that a service needs."""

    def started(self) -> None: ...


class Answering(Protocol):
    """What the table needs of a peer; `Peer` has it, and so has any object of a test."""

    @property
    def id(self) -> str: ...
    @property
    def addrs(self) -> tuple[str, ...]: ...
    async def status(self) -> dict[str, Any]: ...
    async def peers(self) -> list[dict[str, Any]]: ...
    async def ping(self, target: str, count: int = 3) -> dict[str, Any]: ...
    async def show(self, model: str) -> list[dict[str, Any]]: ...
    async def find(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> Sequence[Any]: ...
    async def call(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        on_item: Callable[[Value], Awaitable[None]] | None = None,
    ) -> Any: ...
    async def publish(
        self,
        source: str,
        *,
        model: str | None = None,
        task: str | None = None,
        tags: Sequence[str] = (),
        module: str | None = None,
        interpreter: str | None = None,
        cwd: str | None = None,
        environ: Mapping[str, str] | None = None,
        dry_run: bool = False,
        on_event: Callable[[str], None] | None = None,
    ) -> dict[str, Any]: ...
    async def unpublish(self, model: str) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One command's wish: its parameters by name, and for invoke the input beside them."""

    params: Mapping[str, Value]
    value: Value = None

    def text(self, name: str) -> str:
        value = self.maybe_text(name)
        if value is None:
            raise LocalError(Code.BAD_INPUT, f"{name!r} is missing")
        return value

    def maybe_text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.params.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise LocalError(Code.BAD_INPUT, f"{name!r} must be a number above 0")
        return value

    def flag(self, name: str) -> bool:
        return bool(self._typed(name, bool))

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._typed(name, list) or []
        if not all(isinstance(value, str) for value in values):
            raise LocalError(Code.BAD_INPUT, f"{name!r} must be a list of strings")
        return tuple(values)

    def mapping(self, name: str) -> dict[str, Value] | None:
        value: dict[str, Value] | None = self._typed(name, dict)
        return value

    def _typed(self, name: str, kind: type) -> Any:  # Any: of the kind asked for, or None
        value = self.params.get(name)
        if value is not None and not isinstance(value, kind):
            raise LocalError(Code.BAD_INPUT, f"{name!r} must be a {kind.__name__}")
        return value


async def _id(peer: Answering, request: Request, emit: Emit) -> Value:
    return {"peer": str(peer.id), "addrs": list(peer.addrs)}


async def _status(peer: Answering, request: Request, emit: Emit) -> Value:
    return await peer.status()


async def _peers(peer: Answering, request: Request, emit: Emit) -> Value:
    for line in await peer.peers():
        await emit(ITEM, line)


async def _ping(peer: Answering, request: Request, emit: Emit) -> Value:
    return await peer.ping(request.text("target"), int(request.number("count", 3)))


async def _show(peer: Answering, request: Request, emit: Emit) -> Value:
    for line in await peer.show(request.text("model")):
        await emit(ITEM, line)


async def _find(peer: Answering, request: Request, emit: Emit) -> Value:
    offers = await peer.find(
        request.maybe_text("task"),
        request.maybe_text("model"),
        request.maybe_text("tag"),
        limit=int(request.number("limit", 20)),
        all=request.flag("all"),
        timeout=request.number("timeout", 30.0),
    )
    for offer in offers:
        await emit(ITEM, offer.to_map())


async def _invoke(peer: Answering, request: Request, emit: Emit) -> Value:
    async def on_item(value: Value) -> None:
        await emit(ITEM, value)

    outcome = await peer.call(
        request.text("target"),
        request.value,
        params=request.mapping("params"),
        provider=request.maybe_text("provider"),
        timeout=request.number("timeout", 30.0),
        on_item=on_item,
    )
    return outcome_to_map(outcome)


async def _publish(peer: Answering, request: Request, emit: Emit) -> Value:
    async with _notices(emit) as notice:
        return await peer.publish(
            request.text("source"),
            model=request.maybe_text("model"),
            task=request.maybe_text("task"),
            tags=request.texts("tags"),
            module=request.maybe_text("module"),
            interpreter=request.maybe_text("interpreter"),
            cwd=request.maybe_text("cwd"),
            environ=request.mapping("environ"),
            dry_run=request.flag("dry_run"),
            on_event=notice,
        )


async def _unpublish(peer: Answering, request: Request, emit: Emit) -> Value:
    return await peer.unpublish(request.text("model"))


METHODS: dict[str, Callable[[Answering, Request, Emit], Awaitable[Value]]] = {
    "id": _id,
    "status": _status,
    "peers": _peers,
    "ping": _ping,
    "show": _show,
    "find": _find,
    "invoke": _invoke,
    "publish": _publish,
    "unpublish": _unpublish,
}


async def dispatch(peer: Answering, method: str, request: Request, emit: Emit) -> Value:
    """Do what `method` says on `peer`; raises ModelnetError, `unknown-method` for one not in the table."""
    if method not in METHODS:
        raise LocalError(
            Code.UNKNOWN_METHOD,
            f"the running peer does not know the command {method[:40]!r}",
            hint="it may be of another version: restart it with modelnet-peer join",
        )
    return await METHODS[method](peer, request, emit)


def outcome_to_map(outcome: Any) -> dict[str, Value]:  # Any: an Outcome of a call, or a test's
    """The last line of `invoke`, its output still a value."""
    return {
        "done": True,
        "output": outcome.output,
        "model": outcome.model,
        "digest": outcome.digest,
        "provider": outcome.provider,
        "attempts": outcome.attempts,
        "ms": {"total": outcome.total_ms, "queue": outcome.queue_ms, "model": outcome.model_ms},
        "trace": [dict(hop) for hop in outcome.trace],
    }


@asynccontextmanager
async def _notices(emit: Emit) -> AsyncIterator[Callable[[str], None]]:
    """A synchronous callback whose lines are emitted in order while the block runs."""
    # 64 lines wait for a slow terminal; a line more is dropped, for progress must not hold up the work
    sender, receiver = trio.open_memory_channel[str](64)

    def notice(line: str) -> None:
        try:
            sender.send_nowait(line)
        except trio.WouldBlock:
            pass

    async def pump() -> None:
        async for line in receiver:
            await emit(NOTICE, line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        with sender:
            yield notice


async def serve(peer: Answering, path: Path, *, task_status: Starting = TASK_STATUS_IGNORED) -> None:
    """Answer commands on a Unix socket at `path` (mode 0600) until cancelled.

    The caller holds the home's lock, so a socket left there is a dead peer's and is replaced.
    """
    limit = trio.Semaphore(MAX_CONVERSATIONS)
    async with _listen(path) as listener, trio.open_nursery() as nursery:
        task_status.started()
        while True:
            await limit.acquire()
            try:
                connection, _ = await listener.accept()
            except OSError as error:  # the client was gone already, or descriptors ran out: go on soon
                _log.warning("control accept failed: %s", reason(error))
                limit.release()
                await trio.sleep(ACCEPT_PAUSE)
                continue
            nursery.start_soon(_converse, peer, trio.SocketStream(connection), limit)


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


async def _converse(peer: Answering, stream: trio.SocketStream, limit: trio.Semaphore) -> None:
    """One call of one client; whatever it sends or however it goes, the peer stays."""
    exchange = Exchange(Role.ANSWERER, max_body=MAX_BODY_BYTES)
    try:
        async with stream:
            call = None
            with trio.move_on_after(CALL_SECONDS):
                call = await _receive_call(stream, exchange)
            if call is not None:
                await _Conversation(peer, stream, exchange).answer(call)
    finally:
        limit.release()


async def _receive_call(stream: trio.SocketStream, exchange: Exchange) -> Call | None:
    """The one call of a connection, None if what arrives is none."""
    try:
        while (event := exchange.next_event()) is None:
            n = await stream.socket.recv_into(exchange.get_buffer())
            exchange.received(n)
            if n == 0 and not exchange.in_frame:
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

    def __init__(self, peer: Answering, stream: trio.SocketStream, exchange: Exchange) -> None:
        self._peer = peer
        self._stream = stream
        self._exchange = exchange
        self._scope = trio.CancelScope()  # of all of it: cancelled as soon as the client hangs up
        self._sending = trio.Lock()  # frames of the call and of its beats never mix

    async def answer(self, call: Call) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._beat)
                await self._finish(await self._end_of(call))
                nursery.cancel_scope.cancel()

    async def _end_of(self, call: Call) -> Result | Fault:
        try:
            return Result(await dispatch(self._peer, call.method, _request_of(call), self._emit))
        except Exception as error:  # noqa: BLE001  the guard of this stream handler: see below
            cause = cause_of(error)
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
            try:
                for buffer in self._exchange.send(event):
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


def _request_of(call: Call) -> Request:
    value = call.value
    if not isinstance(value, dict) or not isinstance(value.get(PARAMS), dict):
        raise LocalError(Code.BAD_INPUT, "a control call holds its parameters in a map")
    return Request(value[PARAMS], value.get(INPUT))


def cause_of(error: BaseException) -> ModelnetError | None:
    """The first of this library's own errors in `error`, which may be a group of them; None for a bug."""
    if isinstance(error, ModelnetError):
        return error
    if isinstance(error, BaseExceptionGroup):
        causes = [cause_of(one) for one in error.exceptions]
        return None if None in causes else causes[0]
    return None


def raise_cause(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise what a group of exceptions stands for: nurseries wrap even a single one."""
    cause = cause_of(group)
    if cause is not None:
        raise cause from group
    if group.subgroup(KeyboardInterrupt) is not None:
        raise KeyboardInterrupt from None
    raise group
