"""The network for programs that do not await: `Peer` with the same words, each call a plain one.

    with Swarm.open() as swarm:
        for offer in swarm.find(task="image-classification"):
            print(offer.model, offer.provider)
        print(swarm.invoke("task:image-classification", images))

The peer runs in a thread of its own (`thread.py`), so this works in a script, in a notebook whose own
event loop is running, and from several threads at once. `swarm.aio` is the same peer for asyncio.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from modelnet_p2p.changes import Change
from modelnet_p2p.names import PUBLIC_NETWORK
from modelnet_p2p.node.calls.outcome import Outcome
from modelnet_p2p.node.notices import Notice
from modelnet_p2p.node.overlay.driver import Bootstrap
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.searches import WATCH_SECONDS, Explained
from modelnet_p2p.node.swarm.notebook import Offers
from modelnet_p2p.node.swarm.streams import Stream, next_item
from modelnet_p2p.node.swarm.thread import Opening, PeerThread, Telling
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.node.gateway.settings import GatewaySettings
    from modelnet_p2p.node.swarm.aio import AsyncSwarm


class Swarm:
    """One participant of the network, synchronously. Close it, or use it as a `with` block."""

    def __init__(
        self,
        *,
        bootstrap: Sequence[str] = (),
        listen: Sequence[str] | None = None,
        home: Path | str | None = None,
        network: str = PUBLIC_NETWORK,
        lan: bool = False,
        tuning: str = "lan",
        gateway: str | GatewaySettings | None = None,
    ) -> None:
        """Opens a peer, as `Peer.open` does with the same arguments, and returns when it is there.

        Raises LocalError: bad-input, in-use (a port, or the home), bad-state.
        """
        self._begin(
            partial(
                Peer.open,
                bootstrap=bootstrap,
                listen=listen,
                home=home,
                network=network,
                lan=lan,
                tuning=tuning,
                gateway=gateway,
            )
        )

    def _begin(self, opening: Opening) -> None:
        self._thread = PeerThread(opening)
        # one that is dropped unclosed (a notebook's cell that ran again) leaves the network, too
        weakref.finalize(self, self._thread.stop_soon).atexit = False

    @classmethod
    def open(
        cls,
        *,
        bootstrap: Sequence[str] = (),
        listen: Sequence[str] | None = None,
        home: Path | str | None = None,
        network: str = PUBLIC_NETWORK,
        lan: bool = False,
        tuning: str = "lan",
        gateway: str | GatewaySettings | None = None,
    ) -> Self:
        """The same as `Swarm(…)`: `with Swarm.open() as swarm:`."""
        return cls(
            bootstrap=bootstrap,
            listen=listen,
            home=home,
            network=network,
            lan=lan,
            tuning=tuning,
            gateway=gateway,
        )

    @classmethod
    def open_on(cls, opening: Opening) -> Self:
        """A swarm over the peer that `opening` makes; it is called, and entered, in the swarm's thread."""
        swarm = cls.__new__(cls)
        swarm._begin(opening)
        return swarm

    def close(self) -> None:
        """Leave the network; harmless a second time, and done at exit where it was forgotten.

        Calls under way in other threads end with LocalError (not-running).
        """
        self._thread.close()

    def __enter__(self) -> Self:
        self._thread.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._thread.over else ""
        return f"<Swarm {self.id} of the network {self.network_name!r}{state}>"

    @property
    def aio(self) -> AsyncSwarm:
        """This same peer for an event loop: `await swarm.aio.invoke(…)`."""
        from modelnet_p2p.node.swarm.aio import AsyncSwarm

        return AsyncSwarm(self)

    @property
    def _peer(self) -> Peer:
        return self._thread.peer

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

    def bootstrap(self, addrs: Sequence[str]) -> Bootstrap:
        """Meet the peers at these multiaddrs, and those close to me through them; says who answered."""
        return self._thread.run(partial(self._peer.bootstrap, addrs))

    # --- finding ---

    def find(
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
        """Offers that match all that is given, best first: a list, which a notebook shows as a table.

        `model` is a name, `name@version` or a URI; `where` is a search, see `Peer.find`. `all` includes the
        offers of dead providers. Raises LocalError (bad-input), RemoteError (deadline, busy).
        """
        found = partial(self._peer.find, task, model, tag, where=where, limit=limit, all=all, timeout=timeout)
        return Offers(self._thread.run(found))

    def search(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> Iterator[Offer]:
        """The offers that `find` returns, as they are found; see `Peer.search`."""
        self._thread.check()
        found = self._peer.search(task, model, tag, where=where, limit=limit, all=all, timeout=timeout)
        while (got := self._thread.run(partial(next_item, found))) is not None:
            yield got[0]

    def watch(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        all: bool = False,
        interval: float = WATCH_SECONDS,
    ) -> Iterator[Change]:
        """What becomes of the offers that `find` returns, without end; see `Peer.watch`."""
        self._thread.check()
        news = self._peer.watch(task, model, tag, where=where, all=all, interval=interval)
        while (got := self._thread.run(partial(next_item, news))) is not None:
            yield got[0]

    def explain(
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
        """What `find` returns, with the reasons for each, and what was read and ruled out by what."""
        asked = partial(
            self._peer.explain, task, model, tag, where=where, limit=limit, all=all, timeout=timeout
        )
        return self._thread.run(asked)

    def show(self, model: str, *, timeout: float = 30.0) -> list[dict[str, object]]:
        """The signed records of a model, whoever is alive; raises NotFound, RemoteError (deadline, busy)."""
        return self._thread.run(partial(self._peer.show, model, timeout=timeout))

    # --- calling ---

    def invoke(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
    ) -> Value:
        """Call a model name, a `modelnet:` URI or `task:TASK`; its output, a list for a streaming model.

        Moves to another provider where that is safe. A Ctrl-C cancels the call, on the far side too. Raises
        NotFound, RemoteError with the code of what happened there, LocalError (bad-input). For `wire` see
        `Peer.invoke`.
        """
        return self._thread.run(
            partial(
                self._peer.invoke,
                target,
                input,
                params=params,
                provider=provider,
                timeout=timeout,
                wire=wire,
            )
        )

    def call(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
        on_item: Callable[[Value], object] | None = None,
    ) -> Outcome:
        """Like `invoke`, with all that is known of how it went: provider, attempts, times, trace.

        Each item of a streamed answer goes to `on_item`, a plain function that is called in this thread and
        may be slow: the model then waits.
        """
        call = partial(
            self._peer.call, target, input, params=params, provider=provider, timeout=timeout, wire=wire
        )
        if on_item is None:
            return self._thread.run(call)
        telling = Telling(lambda tell: call(on_item=tell))
        job = self._thread.begin(telling.run)
        try:
            while (item := self._thread.run(telling.next)) is not None:
                on_item(item[0])
        except BaseException:
            job.cancel()
            raise
        return job.result()

    def stream(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
    ) -> Stream:
        """The items of an answer as they come: `for item in swarm.stream(…)`.

        Leaving the loop early cancels the work on the far side. A model that does not stream gives its
        answer as the one item.
        """
        self._thread.check()
        items = self._peer.stream(target, input, params=params, provider=provider, timeout=timeout, wire=wire)
        return Stream(self, self._thread, items)

    def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, object]:
        """Round trips to a peer id or multiaddr; raises RemoteError when there is no answer."""
        return self._thread.run(partial(self._peer.ping, target, count, timeout=timeout))

    # --- serving ---

    def publish(
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
        """Serve a model and tell the network; returns when a majority of the holders has acknowledged.

        `source` is what `modelnet-peer publish` takes, or an importable function itself; `options` are
        those of its kind by name, as `{"quantise": "int8"}`. `on_event` is told of the progress, a line at
        a time, in the peer's thread: it has to be quick. Price, tier, languages and licence are as in
        `Peer.publish`. Raises LocalError (bad-input, unsafe), RemoteError (no majority).
        """
        return self._thread.run(
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

    def pull(self, model: str, *, timeout: float = 30.0, on_event: Notice | None = None) -> dict[str, object]:
        """Fetch a model's weights from those who share them; see `Peer.pull`."""
        return self._thread.run(partial(self._peer.pull, model, timeout=timeout, on_event=on_event))

    def unpublish(self, model: str) -> dict[str, object]:
        """Serve `model` no longer, and take its record back from the holders; raises NotFound."""
        return self._thread.run(partial(self._peer.unpublish, model))

    # --- telling of myself ---

    def status(self) -> dict[str, object]:
        """The contract's `status` object: who I am, what I serve, what I refused."""
        return self._thread.run(self._peer.status)

    def peers(self) -> list[dict[str, object]]:
        """The peers that I know: those connected, and those in my routing table."""
        return self._thread.run(self._peer.peers)
