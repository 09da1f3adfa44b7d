"""A swarm for programs that run an event loop of their own: asyncio, a notebook's, or any that anyio knows.

    async with AsyncSwarm.open() as swarm:
        print(await swarm.invoke("task:image-classification", images))

The peer stays in its thread, where trio runs: its work does not hold up the caller's loop, nor the other way
round. Cancelling the task that awaits cancels the call, on the far side too. Who writes for trio uses `Peer`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
from anyio.to_thread import run_sync

from modelnet_p2p.changes import Change
from modelnet_p2p.names import PUBLIC_NETWORK
from modelnet_p2p.node.calls.outcome import Outcome
from modelnet_p2p.node.notices import Notice
from modelnet_p2p.node.overlay.driver import Bootstrap
from modelnet_p2p.node.searches import WATCH_SECONDS, Explained
from modelnet_p2p.node.swarm.notebook import Offers
from modelnet_p2p.node.swarm.streams import AsyncStream, next_item
from modelnet_p2p.node.swarm.sync import Swarm
from modelnet_p2p.node.swarm.thread import Telling
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.node.gateway.settings import GatewaySettings


class AsyncSwarm:
    """One participant of the network, for an event loop that is not its own."""

    def __init__(self, swarm: Swarm) -> None:
        """`swarm.aio`, or `AsyncSwarm.open()`."""
        self._swarm = swarm
        self._thread = swarm._thread
        self._peer = swarm._peer

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        bootstrap: Sequence[str] = (),
        listen: Sequence[str] | None = None,
        home: Path | str | None = None,
        network: str = PUBLIC_NETWORK,
        lan: bool = False,
        tuning: str = "lan",
        gateway: str | GatewaySettings | None = None,
    ) -> AsyncIterator[Self]:
        """A peer that lives as long as the block; see `Peer.open`."""
        opening = partial(
            Swarm,
            bootstrap=bootstrap,
            listen=listen,
            home=home,
            network=network,
            lan=lan,
            tuning=tuning,
            gateway=gateway,
        )
        async with cls(await run_sync(opening)) as swarm:
            yield swarm

    async def aclose(self) -> None:
        """Leave the network; harmless a second time."""
        with anyio.CancelScope(shield=True):  # also where the block was left by a cancellation
            await run_sync(self._swarm.close)

    async def __aenter__(self) -> Self:
        self._thread.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{self._swarm!r}.aio"

    @property
    def id(self) -> str:
        """My peer id in base58."""
        return self._peer.id

    @property
    def addrs(self) -> tuple[str, ...]:
        """Text multiaddrs, with `/p2p/ID`, at which others can dial me; empty for a client."""
        return self._peer.addrs

    @property
    def network_name(self) -> str:
        """The network that I am in."""
        return self._peer.network_name

    async def bootstrap(self, addrs: Sequence[str]) -> Bootstrap:
        """As `Peer.bootstrap`."""
        return await self._thread.run_async(partial(self._peer.bootstrap, addrs))

    # --- finding ---

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
    ) -> Offers:
        """As `Peer.find`: a list, which a notebook shows as a table."""
        found = partial(self._peer.find, task, model, tag, where=where, limit=limit, all=all, timeout=timeout)
        return Offers(await self._thread.run_async(found))

    async def search(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> AsyncIterator[Offer]:
        """As `Peer.search`: the offers that `find` returns, as they are found."""
        self._thread.check()
        found = self._peer.search(task, model, tag, where=where, limit=limit, all=all, timeout=timeout)
        while (got := await self._thread.run_async(partial(next_item, found))) is not None:
            yield got[0]

    async def watch(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        all: bool = False,
        interval: float = WATCH_SECONDS,
    ) -> AsyncIterator[Change]:
        """As `Peer.watch`: what becomes of the offers that `find` returns, without end."""
        self._thread.check()
        news = self._peer.watch(task, model, tag, where=where, all=all, interval=interval)
        while (got := await self._thread.run_async(partial(next_item, news))) is not None:
            yield got[0]

    async def explain(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> Explained:
        """As `Peer.explain`."""
        asked = partial(
            self._peer.explain, task, model, tag, where=where, limit=limit, all=all, timeout=timeout
        )
        return await self._thread.run_async(asked)

    async def show(self, model: str, *, timeout: float = 30.0) -> list[dict[str, object]]:
        """As `Peer.show`."""
        return await self._thread.run_async(partial(self._peer.show, model, timeout=timeout))

    # --- calling ---

    async def invoke(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
    ) -> Value:
        """As `Peer.invoke`."""
        call = partial(
            self._peer.invoke, target, input, params=params, provider=provider, timeout=timeout, wire=wire
        )
        return await self._thread.run_async(call)

    async def call(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
        on_item: Callable[[Value], Awaitable[None]] | None = None,
    ) -> Outcome:
        """As `Peer.call`; `on_item` is awaited in the caller's loop."""
        call = partial(
            self._peer.call, target, input, params=params, provider=provider, timeout=timeout, wire=wire
        )
        if on_item is None:
            return await self._thread.run_async(call)
        telling = Telling(lambda tell: call(on_item=tell))
        job = self._thread.begin(telling.run)
        try:
            while (item := await self._thread.run_async(telling.next)) is not None:
                await on_item(item[0])
            return await self._thread.run_async(job.wait)
        except BaseException:
            job.cancel()
            raise

    def stream(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
    ) -> AsyncStream:
        """As `Peer.stream`: `async for item in swarm.aio.stream(…)`."""
        self._thread.check()
        items = self._peer.stream(target, input, params=params, provider=provider, timeout=timeout, wire=wire)
        return AsyncStream(self._swarm, self._thread, items)

    async def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, object]:
        """As `Peer.ping`."""
        return await self._thread.run_async(partial(self._peer.ping, target, count, timeout=timeout))

    # --- serving ---

    async def publish(
        self,
        source: str | Callable[..., object],
        *,
        model: str | None = None,
        task: str | None = None,
        tags: Sequence[str] = (),
        module: str | None = None,
        interpreter: str | None = None,
        cwd: str | None = None,
        environ: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        manifest: bytes | None = None,
        share_weights: bool | None = None,
        price: Mapping[str, float | str] | None = None,
        tier: str | None = None,
        languages: Sequence[str] = (),
        licence: str | None = None,
        dry_run: bool = False,
        on_event: Notice | None = None,
    ) -> dict[str, object]:
        """As `Peer.publish`; `on_event` is called in the peer's thread: it has to be quick."""
        return await self._thread.run_async(
            partial(
                self._peer.publish,
                source,
                model=model,
                task=task,
                tags=tags,
                module=module,
                interpreter=interpreter,
                cwd=cwd,
                environ=environ,
                options=options,
                manifest=manifest,
                share_weights=share_weights,
                price=price,
                tier=tier,
                languages=languages,
                licence=licence,
                dry_run=dry_run,
                on_event=on_event,
            )
        )

    async def pull(
        self, model: str, *, timeout: float = 30.0, on_event: Notice | None = None
    ) -> dict[str, object]:
        """Fetch a model's weights from those who share them; see `Peer.pull`."""
        return await self._thread.run_async(
            partial(self._peer.pull, model, timeout=timeout, on_event=on_event)
        )

    async def unpublish(self, model: str) -> dict[str, object]:
        """As `Peer.unpublish`."""
        return await self._thread.run_async(partial(self._peer.unpublish, model))

    # --- telling of myself ---

    async def status(self) -> dict[str, object]:
        """As `Peer.status`."""
        return await self._thread.run_async(self._peer.status)

    async def peers(self) -> list[dict[str, object]]:
        """As `Peer.peers`."""
        return await self._thread.run_async(self._peer.peers)
