"""A peer: the whole of it behind a handful of methods.

    async with Peer.open() as peer:
        for offer in await peer.find(task="image-classification"):
            print(offer.model, offer.provider)
        print(await peer.invoke("task:image-classification", images))

This page only puts the rooms together: transport, overlay, models, calls, state.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import modelnet_p2p
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import SEED_BYTES, KeyPair, PeerId
from modelnet_p2p.names import PUBLIC_NETWORK, ModelUri, check_network, protocol
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.calls.elsewhere import Elsewhere
from modelnet_p2p.node.calls.router import Fit, Outcome, Router, Running
from modelnet_p2p.node.calls.server import CallServer
from modelnet_p2p.node.calls.target import Target
from modelnet_p2p.node.clocks import Clocks
from modelnet_p2p.node.deadlines import check_timeout, within
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.ending import Ending
from modelnet_p2p.node.hosting import Hosting, Notice, Sequences
from modelnet_p2p.node.joining import Joining, check_bootstraps
from modelnet_p2p.node.manifests import full_name, sealed_manifest
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.overlay.driver import Bootstrap, Overlay, open_overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.overlay.watching import Watching
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.node.reports import known_peers, ping, refused, rss_bytes, shown
from modelnet_p2p.node.restoring import Restoring
from modelnet_p2p.node.revoking import Revoking
from modelnet_p2p.node.searches import LOOK_SECONDS, MAX_WATCHED, WATCH_SECONDS, Explained, Found, Watch
from modelnet_p2p.node.serving.backends.contract import Source, checked_options
from modelnet_p2p.node.serving.models import Models, open_models
from modelnet_p2p.node.serving.own_script import importable
from modelnet_p2p.node.serving.policy.memory import Memory
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.streaming import Items
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.node.transport.memory_stream import stream_pair
from modelnet_p2p.node.transport.registry import Handlers
from modelnet_p2p.node.upstreams.upstreams import Upstreams
from modelnet_p2p.node.weights.cache import Cache
from modelnet_p2p.node.weights.puller import Progress
from modelnet_p2p.node.weights.server import WeightServer
from modelnet_p2p.node.weights.sharing import Pulls, Sharing
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value, check_wire
from modelnet_p2p.query import Query
from modelnet_p2p.tuning import Tuning, preset

if TYPE_CHECKING:
    from modelnet_p2p.node.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
EVERYWHERE = "/ip4/0.0.0.0/tcp/0"
MAX_CANDIDATES = 20  # offers that a call considers
MAX_NAMES_READ = 4096  # of the records kept for others: read at once, and in milliseconds


class Peer:
    """One participant of the network. Made by `Peer.open`; all methods may run at the same time."""

    def __init__(
        self,
        key: KeyPair,
        name: str,
        tuning: Tuning,
        overlay: Overlay,
        models: Models,
        state: State | None,
        nursery: trio.Nursery,
    ) -> None:
        """`open_on` and nobody else makes peers: it owns what is handed in here."""
        rng = random.Random(os.urandom(16))
        self.peer_id = key.id
        self.network_name = name
        self.bootstrapped = Bootstrap((), ())
        self.owners = Owners(name)  # whose models bare names mean
        self.notices = Notices()  # what happens that the person who runs this peer should hear of
        self.gateway: str | None = None  # where its HTTP gateway listens, such as http://127.0.0.1:8765
        self.restored = trio.Event()  # set when what an earlier run had published is served again
        self._tuning = tuning
        self._network = overlay.network
        self._overlay = overlay
        self._nursery = nursery
        budget = Budget(key.id)
        self._elsewhere = Elsewhere(overlay, rng)
        self._server = CallServer(
            key.id, models, tuning, budget, wall_us=overlay.wall_us, elsewhere=self._elsewhere.name
        )
        self._mine = Handlers()  # answers my calls to myself, with the same guard as those of others
        self._mine.add(protocol(name, "call"), self._server.handle)
        self._client = CallClient(self._network, protocol(name, "call"), tuning, budget, self._loopback)
        self._memory = Memory(rng.randrange, trio.current_time)
        self.clocks = Clocks(self._client, self._network, overlay.wall_us, tuning.ping_timeout, rng)
        sequences = Sequences(state)
        self._publisher = Publisher(overlay, key, sequences.take)
        self._finder = Finder(overlay, self._publisher, self._client, self._memory.rank, rng.shuffle)
        self._watching = Watching(overlay, key, self._publisher.keys, nursery, rng)
        self._finder.watching = self._watching
        self._elsewhere.is_dead = self._watching.is_dead
        self.revoking = Revoking(overlay.server, self.owners, self.notices)
        self._weights = WeightServer(tuning, models.at_work)
        self._sharing = Sharing(self._weights)
        self._hosting = Hosting(
            key, name, models, self._publisher, sequences, state, self.revoking, self._sharing
        )
        self._upstreams = Upstreams(self._hosting, models, state, self.notices, nursery)
        self._restoring = Restoring(self._hosting, models, self._publisher, state, name)
        self._ending = Ending(
            overlay, self.revoking, self._finder, self._publisher, self._hosting, self.owners, nursery
        )
        self._router = Router(
            self._client,
            self._candidates,
            self._memory,
            self.owners,
            rng,
            self._ending.why,
            self.revoking.condemns,
        )
        self._pulls = Pulls(
            key.id,
            self._network,
            protocol(name, "weights"),
            name,
            self._finder,
            self._router,
            self.owners,
            self._weights.shared,
        )
        self._started = trio.current_time()

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
        check_network(network)
        check_bootstraps(bootstrap)
        settings = preset(tuning)
        listening = [EVERYWHERE if lan else LOOPBACK] if listen is None else list(listen)
        place = Home(home) if home is not None else None
        runtime = Runtime(network, place)
        with single_error(), runtime.lock():
            key = place.load_or_make_key() if place else KeyPair(os.urandom(SEED_BYTES))
            state = State.open(place) if place else None
            async with (
                open_libp2p(key, listen=listening, tuning=settings, network=network) as transport,
                cls.open_on(transport, key, network, settings, state) as peer,
            ):
                if place is not None:
                    peer.owners.keep_under(place.owners_path)
                    peer.keep_revocations_under(place.revocations_path)
                    peer.keep_weights_under(place.cache_path)
                joining = Joining(peer._overlay, bootstrap, runtime, place, peer.notices)
                if listening:
                    runtime.announce(peer.id, peer.addrs)
                try:
                    if lan:
                        peer._nursery.start_soon(peer._meet_on_lan)
                    peer.bootstrapped = await joining.enter(peer._nursery)
                    for task in (joining.stay, joining.remember, peer._restore, peer.clocks.keep):
                        peer._nursery.start_soon(task)
                    async with _gateway(peer, gateway):
                        yield peer
                finally:
                    runtime.withdraw()
                    joining.note()

    @classmethod
    @asynccontextmanager
    async def open_on(
        cls, transport: Network, key: KeyPair, network: str, tuning: Tuning, state: State | None = None
    ) -> AsyncIterator[Peer]:
        """A peer on a transport that is open already, which knows nobody yet."""
        table = RoutingTable(key.id, tuning.k)
        kad = KadServer(key.id, network, table, OfferStore(secret=os.urandom(16)))
        serves = bool(transport.addrs)
        async with (
            open_overlay(transport, kad, table, tuning, network, _wall_us, serves=serves) as overlay,
            open_models(tuning) as models,
            trio.open_nursery() as nursery,
        ):
            peer = cls(key, network, tuning, overlay, models, state, nursery)
            if serves:
                transport.handle(protocol(network, "call"), peer._server.handle)
                transport.handle(protocol(network, "weights"), peer._weights.handle)
            nursery.start_soon(peer._publisher.keep)
            nursery.start_soon(partial(peer._watching.run, serves=serves))
            nursery.start_soon(peer._tidy)
            nursery.start_soon(peer.revoking.keep)
            try:
                yield peer
            finally:
                peer.revoking.leave()
            nursery.cancel_scope.cancel()

    async def _meet_on_lan(self) -> None:
        # not at the top: most peers are on no local network
        from modelnet_p2p.node.lan.mdns import interfaces, open_mdns
        from modelnet_p2p.node.lan.meeting import Lan

        await Lan(self._overlay, self.notices, open_mdns, interfaces).run()

    async def _restore(self) -> None:
        await self._restoring.restore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._restoring.keep)  # and not only once silent servers were waited for
            await self._upstreams.restore()
            self.restored.set()

    def _loopback(self) -> Stream:
        """A stream to my own call server."""
        me = self.peer_id
        mine, theirs = stream_pair(me, me, protocol(self.network_name, "call"), trio.lowlevel.checkpoint)
        self._nursery.start_soon(self._mine.serve, theirs)
        return mine

    @property
    def id(self) -> str:
        """My peer id in base58."""
        return self.peer_id.text

    @property
    def addrs(self) -> tuple[str, ...]:
        """Text multiaddrs, with `/p2p/ID`, at which others can dial me; empty for a client."""
        return self._network.addrs

    async def bootstrap(self, addrs: Sequence[str]) -> Bootstrap:
        """Meet the peers at these multiaddrs, and those close to me through them; says who answered."""
        check_bootstraps(addrs)
        self.bootstrapped = await self._overlay.bootstrap(addrs)
        return self.bootstrapped

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
        dead providers. Raises LocalError (bad-input), RemoteError (deadline).
        """
        query = Query.asked(task, model, tag, where, network=self.network_name)
        with within(timeout, "the search"):
            return await self._finder.find(query, max(1, limit), with_dead=all)

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
        ends the search. Raises LocalError (bad-input), RemoteError (deadline).
        """
        query = Query.asked(task, model, tag, where, network=self.network_name)
        return Found(self._finder.search(query, max(1, limit), with_dead=all), timeout)

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

        async def look(tally: Tally) -> Sequence[Offer] | None:
            with within(interval + LOOK_SECONDS, "the search"):
                offers = await self._finder.find(
                    query, MAX_WATCHED, with_dead=all, thorough=True, tally=tally
                )
            return offers if offers or self._network.connected() else None

        return Watch(look, interval)

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
        with within(timeout, "the search"):
            offers = await self._finder.find(query, max(1, limit), with_dead=all, tally=tally)
        return Explained(query, tuple(offers), tally)

    async def why_none(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        where: str | None = None,
    ) -> NotFound | None:
        """Why a search that found nothing did not, if it is because of a revoked key."""
        query = Query.asked(task, model, tag, where, network=self.network_name)
        return await self._ending.why(query, model or where or task or tag or "")

    async def show(self, model: str, *, timeout: float = 30.0) -> list[dict[str, object]]:
        """The signed records of a model, whoever is alive; raises NotFound, RemoteError (deadline)."""
        query = Query.of_uri(ModelUri.parse(model), self.network_name)
        with within(timeout, "the search"):
            offers = await self._finder.offers(query, MAX_CANDIDATES)
            if not offers and (error := await self._ending.why(query, model)) is not None:
                raise error
        if not offers:
            raise NotFound(f"nobody offers {model!r}", hint="modelnet-peer find --task TASK")
        return [shown(offer) for offer in offers]

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
        return await self._router.call(aim, input, params or {}, timeout, on_item, wire)

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
            self._nursery, lambda: self._router.open(aim, input, params or {}, timeout, "stream", wire)
        )

    def open_call(
        self,
        target: str,
        input: Value = None,
        *,
        params: Mapping[str, Value] | None = None,
        timeout: float = 30.0,
        method: str = "stream",
        wire: str = "",
        fit: Fit | None = None,
        avoid: Collection[str] = (),
        repeatable: bool = False,
    ) -> AbstractAsyncContextManager[Running]:
        """The call once a provider has begun to answer: `async with peer.open_call(…) as running`.

        Iterate over it for the items, then read its `outcome`; leaving the block early cancels the work on
        the far side. `fit` says what each provider is asked, where that depends on its offer; providers in
        `avoid` are not asked; `repeatable`: to ask again after a loss does no harm. Raises as `call` does.
        """
        aim = self._target(target, None)
        check_wire(wire)
        check_timeout(timeout)
        return self._router.open(
            aim, input, params or {}, timeout, method, wire, fit=fit, avoid=avoid, repeatable=repeatable
        )

    def _target(self, target: str, provider: str | None) -> Target:
        return Target.parse(target, self.network_name, PeerId.parse(provider) if provider else None)

    async def _candidates(self, query: Query) -> Sequence[Offer]:
        return await self._finder.find(query, MAX_CANDIDATES)

    async def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, object]:
        """Round trips to a peer id or multiaddr; raises RemoteError when there is no answer."""
        with within(timeout, f"the ping of {target}"):
            return await ping(target, count, self._overlay, self._finder)

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
        dry_run: bool = False,
        on_event: Notice | None = None,
    ) -> dict[str, object]:
        """Serve a model and tell the network; returns when a majority of the holders has acknowledged.

        `source` is what `modelnet-peer publish` takes (`builtin:digits`, `MODULE:NAME`, `FILE.onnx`, …), or
        an importable function itself; `options` are those of its kind by name, as `{"quantise": "int8"}`.
        The worker runs with `interpreter`, `cwd` and `environ`, by default this process's. `manifest` is a
        seal that the model's owner made of it (`owner sign`): the offer is then of that owner's model.
        Raises LocalError (bad-input, unsafe), RemoteError (no majority).
        `source` is `builtin:digits`, `MODULE:NAME`, a `.safetensors` file (with `module`), the name, URI or
        digest of a model that `pull` has fetched, or an importable function itself. The worker runs with
        `interpreter`, `cwd` and `environ`, by default this process's. `manifest` is a seal that the model's
        owner made of it (`owner sign`): the offer is then of that owner's model. With `share_weights` others
        may fetch the files of its digest; None: only what was fetched from others. Raises LocalError
        (bad-input, unsafe), RemoteError (no majority).
        """
        if not self.addrs:
            raise LocalError(Code.BAD_INPUT, "a client cannot serve: it listens nowhere")
        pulled = await self._pulls.source(source, cwd) if isinstance(source, str) else None
        if pulled is not None:
            source, sealed = pulled
            manifest = manifest or sealed
            share_weights = True if share_weights is None else share_weights
        spec, environ = (
            (source, dict(os.environ if environ is None else environ))
            if isinstance(source, str)
            else importable(source, os.environ if environ is None else environ)
        )
        if manifest is not None:
            named = sealed_manifest(manifest)
            self.revoking.check(named.owner, "the key of its owner")
            model, task = model or full_name(named), task or named.task
        wanted = Source(
            spec=spec,
            module=module,
            model=model,
            task=task,
            tags=tuple(tags),
            interpreter=interpreter or sys.executable,
            cwd=cwd or os.getcwd(),
            environ=environ,
            manifest=manifest,
            options=checked_options(options or {}),
            share_weights=bool(share_weights),
        )
        place = self._upstreams if is_address(spec) else self._hosting
        if dry_run:
            return await place.rehearse(wanted, on_event or _quiet)
        return await place.publish(wanted, on_event or _quiet)

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
        return await self._pulls.pull(model, timeout, on_progress, on_event or _quiet)

    async def kept_weights(self) -> list[dict[str, object]]:
        """What `pull` has fetched, whole or not, a line for each digest."""
        return await self._pulls.lines()

    def keep_weights_under(self, directory: Path) -> None:
        """Keep there what is fetched."""
        self._pulls.cache = self._sharing.cache = Cache(directory)

    async def unpublish(self, model: str) -> dict[str, object]:
        """Serve `model` no longer, and take its record back from the holders; raises NotFound."""
        answer = await self._upstreams.withdraw(model)
        return await self._hosting.withdraw(model) if answer is None else answer

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
        return await self._ending.revoke(envelope, models, timeout)

    def keep_revocations_under(self, directory: Path) -> None:
        """Remember revoked keys there, and tell again what was told from there; LocalError (bad-state)."""
        self._ending.keep_under(directory)

    # --- telling of myself ---

    async def status(self) -> dict[str, object]:
        """The contract's `status` object, without the control socket, which is the daemon's."""
        return {
            "peer": self.id,
            "addrs": list(self.addrs),
            "version": modelnet_p2p.__version__,
            "network": self.network_name,
            "uptime_s": trio.current_time() - self._started,
            "control": None,
            "gateway": self.gateway,
            "connections": len(self._network.connected()),
            "table": len(self._overlay.table),
            "network_size": self._network_size(),
            "records": len(self._overlay.server.store),
            "rss_bytes": rss_bytes(),
            "models": [*self._hosting.lines(), *self._upstreams.lines()],
            "refused": refused(self._overlay, self._finder),
            "clock": self.clocks.to_map(),
            **self._hosting.pace().to_map(),
        }

    def _network_size(self) -> int | None:
        """About how many peers there are, me among them; None while nobody else is known."""
        others = self._overlay.density.peers
        return None if others is None else round(others) + 1

    def known_models(self) -> list[str]:
        """Names of models, mine first, then those of the records that I keep for others."""
        kept = (s.identity.name for _, s in self._overlay.server.store.records() if s.identity.name)
        return [*dict.fromkeys([*self._hosting.names(), *islice(kept, MAX_NAMES_READ)])]

    def known_tasks(self) -> list[str]:
        """Names of tasks, of the records that I keep for others."""
        kept = (s.record.task for _, s in self._overlay.server.store.records() if s.identity.name)
        return list(dict.fromkeys(islice(kept, MAX_NAMES_READ)))

    async def peers(self) -> list[dict[str, object]]:
        """The peers that I know: those connected, and those in my routing table."""
        return known_peers(self._overlay, self._finder)

    async def _tidy(self) -> None:
        """Let go of idle streams now and then."""
        while True:
            await trio.sleep(self._tuning.idle_stream / 4)
            await self._client.close_idle()


@asynccontextmanager
async def _gateway(peer: Peer, wanted: str | GatewaySettings | None) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if wanted is not None:
            # not at the top: most peers have none, and it brings Starlette and hypercorn
            from modelnet_p2p.node.gateway.serving import open_gateway

            await stack.enter_async_context(open_gateway(peer, wanted))
        yield


def _quiet(line: str) -> None:
    log.debug("%s", line)


def _wall_us() -> int:
    return time.time_ns() // 1000
