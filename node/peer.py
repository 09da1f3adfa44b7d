"""A peer: the whole of it behind a handful of methods.

    async with Peer.open() as peer:
        for offer in await peer.find(task="image-classification"):
            print(offer.model, offer.provider)
        print(await peer.invoke("task:image-classification", images))

This page is what a program sees of it; what it is made of is put together in `node/assembly.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import PUBLIC_NETWORK, ModelUri
from modelnet_p2p.node import reports
from modelnet_p2p.node.assembly import Parts, assembled, joined
from modelnet_p2p.node.calls.outcome import OnBegin, OnItem, Outcome
from modelnet_p2p.node.calls.router import MAX_CANDIDATES, Fit
from modelnet_p2p.node.calls.target import Target
from modelnet_p2p.node.deadlines import check_timeout, within
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.joining import check_bootstraps
from modelnet_p2p.node.notices import Notice, quiet
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.overlay.driver import Bootstrap
from modelnet_p2p.node.searches import WATCH_SECONDS, Explained, Found, Watch, check_limit, looking, tags_of
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.node.sources import source_of
from modelnet_p2p.node.streaming import Items
from modelnet_p2p.node.transport.contract import Network
from modelnet_p2p.node.weights.puller import Progress
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value, check_wire
from modelnet_p2p.query import Query
from modelnet_p2p.tuning import Tuning

if TYPE_CHECKING:
    from modelnet_p2p.node.gateway.settings import GatewaySettings


class Peer:
    """One participant of the network. Made by `Peer.open`; all methods may run at the same time."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts  # what it is made of: for this package, its tests and benches
        self.peer_id = parts.peer_id
        self.network_name = parts.network_name
        self.owners = parts.owners
        self.notices = parts.notices
        self.revoking = parts.revoking
        self.clocks = parts.clocks
        self.restored = parts.restored
        self.gateway: str | None = None  # where its HTTP gateway listens, such as http://127.0.0.1:8765

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
    ) -> AsyncIterator[Peer]:
        """A peer that lives as long as the block.

        `bootstrap` are multiaddrs of peers to meet first, each with `/p2p/ID`; without any, the peers
        of this user, machine and network are met. `listen` are multiaddrs to listen on (None: loopback,
        or all interfaces with `lan`; empty: a client that only asks). With `lan` it finds the peers of
        the local network that do the same, by mDNS, and is found by them. With a `home` its key, its models,
        their sequence numbers and the owners of the names that it called survive; without, the peer is new
        each time. With a `gateway`, `HOST:PORT`, it answers HTTP there (docs/gateway.md). Raises LocalError:
        bad-input, in-use (a port, or the home), bad-state, unsafe (a gateway open to others without a key).
        """
        async with joined(bootstrap, listen, home, network, lan, tuning) as parts:
            peer = cls(parts)
            async with _gateway(peer, gateway):
                yield peer

    @classmethod
    @asynccontextmanager
    async def open_on(
        cls, transport: Network, key: KeyPair, network: str, tuning: Tuning, state: State | None = None
    ) -> AsyncIterator[Peer]:
        """A peer on a transport that is open already, which knows nobody yet."""
        async with assembled(transport, key, network, tuning, state) as parts:
            yield cls(parts)

    @property
    def id(self) -> str:
        """My peer id in base58."""
        return self.peer_id.text

    @property
    def addrs(self) -> tuple[str, ...]:
        """Text multiaddrs, with `/p2p/ID`, at which others can dial me; empty for a client."""
        return self.parts.network.addrs

    @property
    def bootstrapped(self) -> Bootstrap:
        """Which bootstraps were tried last, and who of them answered."""
        return self.parts.bootstrapped

    async def bootstrap(self, addrs: Sequence[str]) -> Bootstrap:
        """Meet the peers at these multiaddrs, and those close to me through them; says who answered."""
        check_bootstraps(addrs)
        self.parts.bootstrapped = await self.parts.overlay.bootstrap(addrs)
        return self.parts.bootstrapped

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
    ) -> list[Offer]:
        """Offers that match all that is given, best first; both seals of each were checked.

        `model` is a name, `name@version` or a URI; `where` is a search such as `task:text-generation and
        (language:de or language:fr) and parameters<=7B and not licence:gpl*`. `all` includes the offers of
        dead providers. Raises LocalError (bad-input), RemoteError (deadline, busy).
        """
        query = Query.asked(task, model, tag, where, network=self.network_name)
        with self.parts.finder.within(timeout):
            return await self.parts.finder.find(query, check_limit(limit), with_dead=all)

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
    ) -> Found:
        """The offers that `find` returns, as they are found: `async for offer in peer.search(…)`.

        Each part of what was read comes best first; `timeout` is for the wait for the next. Leaving the loop
        ends the search. Raises LocalError (bad-input), RemoteError (deadline, busy).
        """
        query = Query.asked(task, model, tag, where, network=self.network_name)
        return Found(self.parts.finder.search(query, check_limit(limit), with_dead=all), timeout)

    def watch(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        all: bool = False,
        interval: float = WATCH_SECONDS,
    ) -> Watch:
        """What becomes of the offers that `find` returns: `async for change in peer.watch(…)`, without end.

        At first each has appeared. Looks every `interval` seconds (less often where that takes many
        requests), at 256 offers at most; raises LocalError (bad-input).
        """
        query = Query.asked(task, model, tag, where, network=self.network_name)
        query.indexes()
        parts = self.parts
        return Watch(looking(parts.finder, parts.network, query, interval, with_dead=all), interval)

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
        """What `find` returns, with the reasons for each, and what was read and ruled out by what."""
        query, tally = Query.asked(task, model, tag, where, network=self.network_name), Tally()
        with self.parts.finder.within(timeout):
            offers = await self.parts.finder.find(query, check_limit(limit), with_dead=all, tally=tally)
        return Explained(query, tuple(offers), tally, tuple(self.parts.memory.reasons(offers)))

    async def why_none(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
        tally: Tally,
        timeout: float,
    ) -> NotFound | None:
        """Why a search that found nothing did not, where there is a reason to tell: a revoked key, other
        versions, a wrong clock. `tally` is that of its `explain`, `timeout` what is left of its time."""
        query = Query.asked(task, model, tag, where, network=self.network_name)
        with trio.move_on_after(max(0.0, timeout)):
            return await self.parts.absence.why(query, model or where or task or tag or "", tally)
        return None

    async def show(self, model: str, *, timeout: float = 30.0) -> list[dict[str, object]]:
        """The signed records of a model, whoever is alive; raises NotFound, RemoteError (deadline, busy)."""
        query, tally = Query.of_uri(ModelUri.parse(model), self.network_name), Tally()
        with self.parts.finder.within(timeout):
            offers = await self.parts.finder.offers(query, MAX_CANDIDATES, tally)
            if not offers and (error := await self.parts.absence.why(query, model, tally)) is not None:
                raise error
        if not offers:
            raise NotFound(f"nobody offers {model!r}", hint="modelnet-peer find --task TASK")
        return [reports.shown(offer) for offer in offers]

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
        """Call a model name, a `modelnet:` URI or `task:TASK`; its output, a list for a streaming model.

        `wire` "float16" or "int8" lets large float tensors travel so, both ways; they come out in their own
        dtype, less exact (how much: docs/protocol.md). One that does not fit raises LocalError (bad-input).

        Moves to another provider where that is safe (see `call`). Raises NotFound, RemoteError with the
        code of what happened there, LocalError (bad-input).
        """
        outcome = await self.call(target, input, params=params, provider=provider, timeout=timeout, wire=wire)
        return outcome.output

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
        """Like `invoke`, with all that is known of how it went: provider, attempts, times, trace.

        Each item of a streamed answer goes to `on_item`, which may be slow: the model then waits.
        """
        aim = self._target(target, provider)
        check_wire(wire)
        check_timeout(timeout)
        return await self.parts.router.call(aim, input, params or {}, timeout, on_item, wire)

    def stream(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        wire: str = "",
    ) -> Items:
        """The items of an answer as they come: `async for item in peer.stream(…)`.

        Leaving the loop early cancels the work on the far side. A model that does not stream gives
        its answer as the one item.
        """
        aim = self._target(target, provider)
        check_timeout(timeout)
        check_wire(wire)
        return Items(
            self.parts.nursery,
            lambda: self.parts.router.open(aim, input, params or {}, timeout, "stream", wire),
        )

    async def call_fitting(
        self,
        target: str,
        fit: Fit,
        on_begin: OnBegin,
        on_item: OnItem,
        *,
        timeout: float = 30.0,
        wire: str = "",
        avoid: Collection[str] = (),
        repeatable: bool = False,
    ) -> Outcome:
        """A call whose input depends on who is asked: `fit` gives it, with the parameters, for each offer.

        `on_begin` is told once a provider has begun to answer; providers in `avoid` are not asked;
        `repeatable`: to ask again after a loss does no harm. The rest is as in `call`.
        """
        aim = self._target(target, None)
        check_wire(wire)
        check_timeout(timeout)
        return await self.parts.router.call(
            aim,
            None,
            {},
            timeout,
            on_item,
            wire,
            on_begin=on_begin,
            fit=fit,
            avoid=avoid,
            repeatable=repeatable,
        )

    def _target(self, target: str, provider: str | None) -> Target:
        return Target.parse(target, self.network_name, PeerId.parse(provider) if provider else None)

    async def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, object]:
        """Round trips to a peer id or multiaddr; raises RemoteError when there is no answer."""
        with within(timeout, f"the ping of {target}"):
            return await reports.ping(target, count, self.parts.overlay, self.parts.finder)

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
        """Serve a model and tell the network; returns when a majority of the holders has acknowledged.

        `source` is what `modelnet-peer publish` takes (`builtin:digits`, `MODULE:NAME`, `FILE.onnx`, …), the
        name, URI or digest of a model that `pull` has fetched, or an importable function itself; `options`
        are those of its kind by name, as `{"quantise": "int8"}`. The worker runs with `interpreter`, `cwd`
        and `environ`, by default this process's. `manifest` is a seal that the model's owner made of it
        (`owner sign`): the offer is then of that owner's model. With `share_weights` others may fetch the
        files of its digest; None: only what was fetched from others.

        What a search may ask of the offer: `price` in whole units by name, as `{"usd_per_call": 0.002}`;
        `tier`, one of device, edge and cloud; `languages`, codes such as `de` or `pt-BR`, before those that
        the model says; `licence`, an SPDX expression, in place of the model's own. Nobody collects a price.
        Raises LocalError (bad-input, unsafe), RemoteError (no majority).
        """
        if not self.addrs:
            raise LocalError(Code.BAD_INPUT, "a client cannot serve: it listens nowhere")
        wanted = await source_of(
            source,
            self.parts.pulls,
            self.revoking,
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
            terms=Terms.given(price, tier, languages, licence),
        )
        place = self.parts.upstreams if is_address(wanted.spec) else self.parts.hosting
        if dry_run:
            return await place.rehearse(wanted, on_event or quiet)
        answer = await place.publish(wanted, on_event or quiet)
        if place is self.parts.hosting:
            await self.parts.upstreams.yield_name(str(answer["model"]).partition("@")[0])
        return answer

    async def pull(
        self,
        model: str,
        *,
        timeout: float = 30.0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_event: Notice | None = None,
    ) -> dict[str, object]:
        """Fetch a model's weights from those who share them, into the `cache/` of this peer's home.

        `model` is a name, a URI or a digest (`sha256:…`); `timeout` is for finding it. Every piece is checked
        against the digest that the owner has sealed. Interrupted, it goes on later where it stopped; what is
        here already is not fetched again. The answer says where it lies (`path`) and who gave how much.
        Raises NotFound (also: ambiguous), LocalError (bad-input: no digest; bad-state: a full disk; in-use),
        RemoteError (nobody is left who has it).
        """
        return await self.parts.pulls.pull(model, timeout, on_progress, on_event or quiet)

    async def kept_weights(self) -> list[dict[str, object]]:
        """What `pull` has fetched, whole or not, a line for each digest."""
        return await self.parts.pulls.lines()

    def keep_weights_under(self, directory: Path) -> None:
        """Keep there what is fetched."""
        self.parts.keep_weights_under(directory)

    async def unpublish(self, model: str) -> dict[str, object]:
        """Serve `model` no longer, and take its record back from the holders; raises NotFound."""
        answer = await self.parts.upstreams.withdraw(model)
        return await self.parts.hosting.withdraw(model) if answer is None else answer

    async def revoke(
        self, envelope: bytes, *, models: Sequence[str] = (), timeout: float = 30.0
    ) -> dict[str, object]:
        """Tell the network, for good, that a key is over; `owner revoke` seals such an envelope.

        It is kept on disk first, then told where that key is looked up and where its records lie: under the
        `models` named, and those that this peer can find. Raises LocalError (bad-input, bad-state),
        RemoteError (no majority yet: it is told again).
        """
        if not self.addrs:
            raise LocalError(Code.BAD_INPUT, "a client cannot tell others again: it listens nowhere")
        return await self.parts.ending.revoke(envelope, models, timeout)

    def keep_revocations_under(self, directory: Path) -> None:
        """Remember revoked keys there, and tell again what was told from there; LocalError (bad-state)."""
        self.parts.ending.keep_under(directory)

    # --- telling of myself ---

    async def status(self) -> dict[str, object]:
        """The contract's `status` object, without the control socket, which is the daemon's."""
        return reports.status(self.parts, self.gateway)

    def known_models(self) -> list[str]:
        """Names of models, mine first, then those of the records that I keep for others."""
        return reports.known_models(self.parts)

    def known_tasks(self) -> list[str]:
        """Names of tasks, of the records that I keep for others."""
        return reports.known_tasks(self.parts)

    async def known_tags(self, task: str | None = None, model: str | None = None) -> list[str]:
        """Tags of the offers of this task and model, the most frequent first, as far as a moment's look sees
        them; where neither is given those of my own offers, then of the records that I keep for others."""
        if task is None and model is None:
            return reports.known_tags(self.parts)
        query = Query.asked(task, model, network=self.network_name)
        return await tags_of(self.parts.finder, query)

    async def peers(self) -> list[dict[str, object]]:
        """The peers that I know: those connected, and those in my routing table."""
        return reports.known_peers(self.parts.overlay, self.parts.finder)


@asynccontextmanager
async def _gateway(peer: Peer, wanted: str | GatewaySettings | None) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if wanted is not None:
            # not at the top: most peers have none, and it brings Starlette and hypercorn
            from modelnet_p2p.node.gateway.serving import open_gateway

            await stack.enter_async_context(open_gateway(peer, wanted))
        yield
