"""A home of one's own, a peer that only pretends behind a real control socket, and the commands."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.node.cli import main
from modelnet_p2p.node.control.server import serve
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.owners import Owners

BOB = "12D3KooWBob"
CAROL = {"peer": "carol", "addrs": ["/ip4/9"], "connected": True, "rtt_ms": 1.5, "state": "alive"}


@dataclass
class FakePeer:
    """Has what the control table asks of a peer, with known answers, and remembers what it was asked."""

    id: str = BOB
    network_name: str = "public"
    addrs: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/4001/p2p/" + BOB,)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    known: list[dict[str, Any]] = field(default_factory=lambda: [dict(CAROL)])
    silent: int = 0  # offers that are hidden, for nobody answers there
    owners: Owners = field(default_factory=lambda: Owners("public"))
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)  # fates of revoked keys

    @property
    def revoking(self) -> Any:
        def check(key: object, what: str, hint: str = "") -> None:
            if str(key) in self.ended:
                raise LocalError(Code.FORBIDDEN, f"{what} {key} was revoked", hint=hint)

        return SimpleNamespace(fate=lambda key: self.ended.get(str(key)), check=check)

    async def status(self) -> dict[str, Any]:
        model = {
            "model": "acme/echo",
            "state": "serving",
            "seq": 7,
            "in_flight": 0,
            "queued": 0,
            "calls": 1,
            "faults": 0,
        }
        return {
            "peer": self.id,
            "addrs": list(self.addrs),
            "network": "public",
            "uptime_s": 61,
            "rss_bytes": 1 << 20,
            "models": [model],
            "refused": {"forged": 2, "stale": 0},
        }

    def known_tasks(self) -> list[str]:
        return ["x-acme/greeting", "text-classification"]

    def known_models(self) -> list[str]:
        return ["acme/echo", "carol/summarise"]

    async def known_tags(self, task: str | None = None, model: str | None = None) -> list[str]:
        if task is None and model is None:
            return ["english", "loud"]
        self.asked.append(("known_tags", (task, model)))
        return ["german", "small"]

    async def peers(self) -> list[dict[str, Any]]:
        return self.known

    async def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, Any]:
        self.asked.append(("ping", (target, count, timeout)))
        ok = target != "nobody"
        return {"peer": target, "ok": ok, "rtt_ms": [0.5] * count if ok else []}

    async def show(self, model: str, *, timeout: float = 30.0) -> list[dict[str, Any]]:
        self.asked.append(("show", (model, timeout)))
        if model == "nothing":
            return []
        return [{"model": model, "provider": BOB, "verified": True, "envelope": "AA==", "record": {"seq": 7}}]

    async def find(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> Sequence[Any]:
        asked = (task, model, tag, limit, all, timeout)
        self.asked.append(("find", (*asked, where) if where else asked))
        if model in ("nothing", "acme/ended"):
            return []
        if model == "two-owners":
            raise NotFound("two owners claim it", code=Code.AMBIGUOUS)
        line = {
            "model": "acme/echo",
            "task": task,
            "state": "alive",
            "rtt_ms": 1.0,
            "load": 0.5,
            "provider": BOB,
        }
        return [SimpleNamespace(to_map=lambda: line)]

    async def explain(self, **asked: Any) -> Any:
        offers = await self.find(**asked)
        return SimpleNamespace(offers=offers, tally=None, to_map=lambda: {"silent": self.silent})

    async def call(
        self,
        target: str,
        input: Any,
        *,
        params: Mapping[str, Any] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
        on_item: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Any:
        self.asked.append(("invoke", (target, input, params, provider, *([wire] if wire else []))))
        assert on_item is not None
        output: Any = input
        match target:
            case "tokens":
                for word in ("to", "ken", "s"):
                    await on_item(word)
                output = None
            case "sleeper":
                try:
                    await trio.sleep_forever()
                finally:
                    self.cancelled.set()
            case "broken":
                raise RemoteError(Code.MODEL_ERROR, "ValueError: no\nsecond \x1b[31mline", peer="carol")
            case "broken-off":
                await on_item("half a ")
                raise RemoteError(Code.UNREACHABLE, "it is gone", peer="carol", retryable=False)
            case "nothing":
                raise NotFound("nobody offers it")
            case "bug":
                raise ZeroDivisionError("oh")
            case "digits":
                output = {"label": [3], "scores": np.arange(10, dtype=np.float32).reshape(1, 10)}
        hop = {"provider": BOB, "digest": None, "bytes_in": 1, "bytes_out": 2, "ms": 0.5}
        return SimpleNamespace(
            output=output, model=target, digest=None, provider=BOB, attempts=1,
            total_ms=1.0, queue_ms=0.0, model_ms=0.5, trace=[hop],
        )  # fmt: skip

    async def why_none(self, **question: Any) -> NotFound | None:
        if question["model"] != "acme/ended":
            return None
        return NotFound("its owner's key was revoked", hint="modelnet-peer owner trust acme/ended OWNER")

    async def revoke(self, envelope: bytes, **asked: Any) -> dict[str, Any]:
        self.asked.append(("revoke", (envelope, asked)))
        fate = {"revoked": self.id, "issued_unix": 86_400, "reason": "stolen", "successor": None}
        return {**fate, "models": ["acme/x"], "keys": 5, "holders": {"asked": 3, "stored": 2}}

    async def publish(self, source: str, **asked: Any) -> dict[str, Any]:
        asked["on_event"]("loading the model")
        self.asked.append(("publish", (source, asked)))
        return {"model": asked["model"] or "acme/echo", "uri": "modelnet:acme/echo", "task": "x", "seq": 8,
                "holders": {"asked": 1, "stored": 1}}  # fmt: skip

    async def unpublish(self, model: str) -> dict[str, Any]:
        if model != "acme/echo":
            raise NotFound(f"{model} is not published here")
        return {"model": model, "withdrawn": True, "seq": 9, "holders": {"asked": 1, "stored": 1}}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An empty home with a runtime directory beside it, both named in the environment."""
    # not tmp_path: it may be too long for a Unix socket
    base = Path(tempfile.mkdtemp(prefix="mn-"))
    (base / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base / "run"))
    monkeypatch.setenv("MODELNET_HOME", str(base / "home"))
    for name in (
        "MODELNET_BOOTSTRAP",
        "MODELNET_NETWORK",
        "MODELNET_LISTEN",
        "MODELNET_LOG",
        "MODELNET_TUNING",
    ):
        monkeypatch.delenv(name, raising=False)
    yield Home(base / "home")
    shutil.rmtree(base)


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def cli(home: Home, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run one command in this process, whose log is afterwards what it was: some commands set it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*argv: str) -> Ran:
        status = main(argv)
        out, err = capsys.readouterr()
        return Ran(status, out, err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@contextmanager
def served(peer: FakePeer, home: Home) -> Iterator[FakePeer]:
    """`peer` behind its control socket, in a thread with a trio of its own."""
    runtime = Runtime("public", home)
    ready = threading.Event()
    handles: dict[str, Any] = {}

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, peer, runtime.socket_path)
            handles.update(token=trio.lowlevel.current_trio_token(), scope=nursery.cancel_scope)
            ready.set()

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield peer
    finally:
        handles["token"].run_sync_soon(handles["scope"].cancel)
        thread.join(5)


@pytest.fixture
def bob(home: Home) -> Iterator[FakePeer]:
    with served(FakePeer(), home) as peer:
        yield peer
