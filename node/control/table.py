"""What a command may ask of a peer: a closed table of methods, and what each does with `Peer`.

Nothing that a caller says is resolved in any other way. The table serves the control socket of a
running peer, and a temporary peer inside a command without any socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from shlex import quote
from typing import TYPE_CHECKING, Any

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.control.wire import ITEM, NOTICE
from modelnet_p2p.node.owners import forget, trust
from modelnet_p2p.node.revoking import KeyIsOver
from modelnet_p2p.node.serving.source import checked_options

if TYPE_CHECKING:
    from modelnet_p2p.node.calls.outcome import Outcome
    from modelnet_p2p.node.peer import Peer
    from modelnet_p2p.node.weights.puller import Progress

# Any: a value of the wire (None, bool, int, float, str, bytes, list, dict, array); the Exchange checks it
Value = Any
Emit = Callable[[str, Value], Awaitable[None]]  # (NOTICE or ITEM, value); waits for a slow reader
PROGRESS_SECONDS = 0.2  # between two lines that say how far a download is: a bar moves smoothly by them
MAX_NAMES = 200  # of models, for a shell that completes one: more are no help to anybody


@dataclass(frozen=True, slots=True)
class Request:
    """One command's wish: its parameters by name, and for invoke the input beside them."""

    params: Mapping[str, Value]
    value: Value = None
    control: str | None = None  # the socket it came by
    network: str | None = None  # None: that of the peer that is asked

    def text(self, name: str) -> str:
        value = self.maybe_text(name)
        if value is None:
            raise LocalError(Code.BAD_INPUT, f"{name!r} is missing")
        return value

    def maybe_text(self, name: str) -> str | None:
        value: str | None = self._typed(name, str)
        return value

    def maybe_bytes(self, name: str) -> bytes | None:
        value: bytes | None = self._typed(name, bytes)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.params.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise LocalError(Code.BAD_INPUT, f"{name!r} must be a number above 0")
        return value

    def flag(self, name: str) -> bool:
        return bool(self._typed(name, bool))

    def maybe_flag(self, name: str) -> bool | None:
        value: bool | None = self._typed(name, bool)
        return value

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


async def _id(peer: Peer, request: Request, emit: Emit) -> Value:
    return {"peer": str(peer.id), "addrs": list(peer.addrs)}


async def _status(peer: Peer, request: Request, emit: Emit) -> Value:
    return {**await peer.status(), "control": request.control}


async def _models(peer: Peer, request: Request, emit: Emit) -> Value:
    """Names in sight; with a task or a model the tags are those of its offers, which takes a walk."""
    prefix = request.maybe_text("prefix") or ""
    fitting = (name for name in peer.known_models() if name.startswith(prefix))
    tags = await peer.known_tags(request.maybe_text("task"), request.maybe_text("model"))
    return {
        "models": list(islice(fitting, MAX_NAMES)),
        "tasks": peer.known_tasks()[:MAX_NAMES],
        "tags": tags[:MAX_NAMES],
    }


async def _peers(peer: Peer, request: Request, emit: Emit) -> Value:
    for line in await peer.peers():
        await emit(ITEM, line)


async def _ping(peer: Peer, request: Request, emit: Emit) -> Value:
    return await peer.ping(
        request.text("target"), int(request.number("count", 3)), timeout=request.number("timeout", 30.0)
    )


async def _show(peer: Peer, request: Request, emit: Emit) -> Value:
    for line in await peer.show(request.text("model"), timeout=request.number("timeout", 30.0)):
        await emit(ITEM, line)


async def _find(peer: Peer, request: Request, emit: Emit) -> Value:
    began, timeout = trio.current_time(), request.number("timeout", 30.0)
    found = await peer.explain(
        **_question(request),
        limit=int(request.number("limit", 20)),
        all=request.flag("all"),
        timeout=timeout,
    )
    if not found.offers:
        left = began + timeout - trio.current_time()
        if (error := await peer.why_none(**_question(request), tally=found.tally, timeout=left)) is not None:
            raise error
        await _check_company(peer)
    for offer in found.offers:
        why = {"why": found.why(offer)} if request.flag("explain") else {}
        await emit(ITEM, {**offer.to_map(), **why})
    return found.to_map()


async def _watch(peer: Peer, request: Request, emit: Emit) -> Value:
    """Without end: until the caller hangs up."""
    if not await _has_company(peer):
        await emit(NOTICE, "this peer reaches no other one yet: so far it sees its own models alone")
    news = peer.watch(**_question(request), all=request.flag("all"), interval=request.number("interval", 5.0))
    async for change in news:
        await emit(ITEM, change.to_map())


def _question(request: Request) -> dict[str, str | None]:
    return {name: request.maybe_text(name) for name in ("task", "model", "tag", "where")}


async def _invoke(peer: Peer, request: Request, emit: Emit) -> Value:
    async def on_item(value: Value) -> None:
        await emit(ITEM, value)

    try:
        outcome = await peer.call(
            request.text("target"),
            request.value,
            params=request.mapping("params"),
            provider=request.maybe_text("provider"),
            timeout=request.number("timeout", 30.0),
            wire=request.maybe_text("wire") or "",
            on_item=on_item,
        )
    except NotFound as error:
        if error.code is Code.NOT_FOUND and not isinstance(error, KeyIsOver):
            await _check_company(peer)
        raise
    return outcome_to_map(outcome)


async def _check_company(peer: Peer) -> None:
    """Raises LocalError (unreachable) for a peer that is alone: "nobody has it" is not for it to say."""
    if not await _has_company(peer):
        raise LocalError(
            Code.UNREACHABLE,
            "this peer does not have it, and reaches no other peer to ask",
            hint="modelnet-peer join --bootstrap MULTIADDR, with an address that another peer's `id` prints",
        )


async def _has_company(peer: Peer) -> bool:
    return any(line.get("connected") for line in await peer.peers())


async def _publish(peer: Peer, request: Request, emit: Emit) -> Value:
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
            options=checked_options(request.mapping("options") or {}),
            manifest=request.maybe_bytes("manifest"),
            share_weights=request.maybe_flag("share_weights"),
            price=request.mapping("price"),
            tier=request.maybe_text("tier"),
            languages=request.texts("languages"),
            licence=request.maybe_text("licence"),
            dry_run=request.flag("dry_run"),
            on_event=notice,
        )


async def _pull(peer: Peer, request: Request, emit: Emit) -> Value:
    async with _notices(emit) as notice, _progress(emit) as on_progress:
        return await peer.pull(
            request.text("model"),
            timeout=request.number("timeout", 30.0),
            on_progress=on_progress,
            on_event=notice,
        )


async def _kept(peer: Peer, request: Request, emit: Emit) -> Value:
    for line in await peer.kept_weights():
        await emit(ITEM, line)


async def _unpublish(peer: Peer, request: Request, emit: Emit) -> Value:
    return await peer.unpublish(request.text("model"))


async def _owners(peer: Peer, request: Request, emit: Emit) -> Value:
    for known in peer.owners.all():
        fate = peer.revoking.fate(known.owner)
        await emit(ITEM, {**known.to_map(), **({"revoked": fate} if fate else {})})


async def _trust(peer: Peer, request: Request, emit: Emit) -> Value:
    hint = "ask the owner which key is used now"
    peer.revoking.check(PeerId.parse(request.text("owner")), "that owner's key", hint=hint)
    return trust(peer.owners, request.text("model"), request.text("owner"))


async def _forget(peer: Peer, request: Request, emit: Emit) -> Value:
    return forget(peer.owners, request.text("model"))


async def _revoke(peer: Peer, request: Request, emit: Emit) -> Value:
    envelope = request.maybe_bytes("envelope")
    if envelope is None:
        raise LocalError(Code.BAD_INPUT, "'envelope' is missing")
    return await peer.revoke(
        envelope, models=request.texts("models"), timeout=request.number("timeout", 30.0)
    )


METHODS: dict[str, Callable[[Peer, Request, Emit], Awaitable[Value]]] = {
    "id": _id,
    "status": _status,
    "models": _models,
    "peers": _peers,
    "ping": _ping,
    "show": _show,
    "find": _find,
    "watch": _watch,
    "invoke": _invoke,
    "publish": _publish,
    "pull": _pull,
    "kept": _kept,
    "unpublish": _unpublish,
    "owners": _owners,
    "trust": _trust,
    "forget": _forget,
    "revoke": _revoke,
}


async def dispatch(peer: Peer, method: str, request: Request, emit: Emit) -> Value:
    """Do what `method` says on `peer`; raises ModelnetError, `unknown-method` for one not in the table."""
    if method not in METHODS:
        raise LocalError(
            Code.UNKNOWN_METHOD,
            f"the running peer does not know the command {method[:40]!r}",
            hint="it may be of another version: restart it with modelnet-peer join",
        )
    if request.network not in (None, peer.network_name):
        raise _other_network(request.network or "", peer.network_name)
    return await METHODS[method](peer, request, emit)


def _other_network(asked: str, mine: str) -> LocalError:
    ask_it, another = quote(mine), quote(asked)
    return LocalError(
        Code.BAD_INPUT,
        f"the peer on this home is of the network {mine!r}, not of {asked!r}",
        hint=f"ask it with --network {ask_it}, or start one of the other network beside it:"
        f" modelnet-peer join --network {another} --home DIR",
    )


def outcome_to_map(outcome: Outcome) -> dict[str, Value]:
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
async def _progress(emit: Emit) -> AsyncIterator[Callable[[Progress], None]]:
    """A synchronous callback; the newest of what it hears is emitted now and then while the block runs."""
    newest: list[Progress] = []  # one or none
    come = trio.Event()  # replaced when it was seen

    def on_progress(progress: Progress) -> None:
        newest[:] = [progress]
        come.set()

    async def pump() -> None:
        nonlocal come
        while True:
            await come.wait()
            come = trio.Event()
            if newest:
                await emit(ITEM, _progress_line(newest.pop()))
            await trio.sleep(PROGRESS_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump)
        yield on_progress
        if newest:
            await emit(ITEM, _progress_line(newest.pop()))
        nursery.cancel_scope.cancel()


def _progress_line(progress: Progress) -> dict[str, Value]:
    return {
        "event": "progress",
        "here": progress.here,
        "size": progress.size,
        "from": {peer: share.bytes for peer, share in progress.shares.items()},
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
