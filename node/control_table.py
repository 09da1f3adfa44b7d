"""What a command may ask of a peer: a closed table of methods, and what each does with `Peer`.

Nothing that a caller says is resolved in any other way. The table serves the control socket of a
running peer, and a temporary peer inside a command without any socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound
from modelnet_p2p.node.control_wire import ITEM, NOTICE

# Any: a value of the wire (None, bool, int, float, str, bytes, list, dict, array); the Exchange checks it
Value = Any
Emit = Callable[[str, Value], Awaitable[None]]  # (NOTICE or ITEM, value); waits for a slow reader


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
    control: str | None = None  # the socket it came by

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
    return {**await peer.status(), "control": request.control}


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
    if not offers:
        await _check_company(peer)
    for offer in offers:
        await emit(ITEM, offer.to_map())


async def _invoke(peer: Answering, request: Request, emit: Emit) -> Value:
    async def on_item(value: Value) -> None:
        await emit(ITEM, value)

    try:
        outcome = await peer.call(
            request.text("target"),
            request.value,
            params=request.mapping("params"),
            provider=request.maybe_text("provider"),
            timeout=request.number("timeout", 30.0),
            on_item=on_item,
        )
    except NotFound as error:
        if error.code is Code.NOT_FOUND:
            await _check_company(peer)
        raise
    return outcome_to_map(outcome)


async def _check_company(peer: Answering) -> None:
    """Raises LocalError (unreachable) for a peer that is alone: "nobody has it" is not for it to say."""
    if not any(line.get("connected") for line in await peer.peers()):
        raise LocalError(
            Code.UNREACHABLE,
            "this peer does not have it, and reaches no other peer to ask",
            hint="modelnet-peer join --bootstrap MULTIADDR, with an address that another peer's `id` prints",
        )


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
