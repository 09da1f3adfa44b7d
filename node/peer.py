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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import trio

import modelnet_p2p
from modelnet_p2p.dht.routing import RoutingTable
from modelnet_p2p.dht.server import KadServer
from modelnet_p2p.dht.store import OfferStore
from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound, RemoteError
from modelnet_p2p.identity import SEED_BYTES, KeyPair, PeerId
from modelnet_p2p.names import PUBLIC_NETWORK, ModelUri, check_network, protocol
from modelnet_p2p.node.calls.client import DEADLINE_GRACE, CallClient
from modelnet_p2p.node.calls.router import Memory, Outcome, Router, Target
from modelnet_p2p.node.calls.server import CallServer
from modelnet_p2p.node.home import Home
from modelnet_p2p.node.overlay.driver import Bootstrap, Overlay, open_overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.reports import rss_bytes, shown
from modelnet_p2p.node.runtime import Runtime
from modelnet_p2p.node.serving.backends.contract import Source
from modelnet_p2p.node.serving.drafting import draft_offer
from modelnet_p2p.node.serving.models import Models, Served, open_models
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.state import State
from modelnet_p2p.node.streaming import Items
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.node.transport.contract import Network
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.offers import Offer
from modelnet_p2p.offers import State as Life
from modelnet_p2p.payload import Value
from modelnet_p2p.query import Query
from modelnet_p2p.records import BadRecord, Identity, Refusal, admit
from modelnet_p2p.tuning import Tuning, preset

log = logging.getLogger(__name__)

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
EVERYWHERE = "/ip4/0.0.0.0/tcp/0"
MAX_CANDIDATES = 20  # offers that a call considers

Notice = Callable[[str], None]


class Peer:
    """One participant of the network. Made by `Peer.open`; all methods may run at the same time."""

    def __init__(
        self,
        key: KeyPair,
        name: str,
        tuning: Tuning,
        network: Network,
        overlay: Overlay,
        publisher: Publisher,
        models: Models,
        server: CallServer,
        client: CallClient,
        state: State | None,
        nursery: trio.Nursery,
        rng: random.Random,
    ) -> None:
        self.peer_id = key.id
        self.network_name = name
        self.bootstrapped = Bootstrap((), ())
        self._key = key
        self._tuning = tuning
        self._network = network
        self._overlay = overlay
        self._publisher = publisher
        self._models = models
        self._server = server
        self._client = client
        self._state = state
        self._nursery = nursery
        self._memory = Memory(rng)
        self._finder = Finder(overlay, publisher, client, self._memory.rank)
        self._router = Router(client, self._candidates, self._memory, rng)
        self._identities: dict[str, Identity] = {}  # by model name: what of mine is published
        self._started = trio.current_time()
        self._highest_seq = 0

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
    ) -> AsyncIterator[Peer]:
        """A peer that lives as long as the block.

        `bootstrap` are multiaddrs of peers to meet first, each with `/p2p/ID`; without any, the peers
        of this user, machine and network are met. `listen` are multiaddrs to listen on (None: loopback,
        or all interfaces with `lan`; empty: a client that only asks). With a `home` its key, its models
        and their sequence numbers survive; without, the peer is new each time. Raises LocalError:
        bad-input, in-use (a port, or the home), bad-state.
        """
        check_network(network)
        settings = preset(tuning)
        check_bootstraps(bootstrap)
        listening = [EVERYWHERE if lan else LOOPBACK] if listen is None else list(listen)
        rng = random.Random(os.urandom(16))
        place = Home(home) if home is not None else None
        runtime = Runtime(network, place)
        async with AsyncExitStack() as stack:
            stack.enter_context(single_error())
            stack.enter_context(runtime.lock())
            key = place.load_or_make_key() if place else KeyPair(os.urandom(SEED_BYTES))
            state = State.open(place) if place else None
            transport = await stack.enter_async_context(
                open_libp2p(key, listen=listening, tuning=settings, network=network)
            )
            table = RoutingTable(key.id, settings.k)
            kad = KadServer(key.id, network, table, OfferStore())
            overlay = await stack.enter_async_context(
                open_overlay(transport, kad, table, settings, network, _wall_us, serves=bool(listening))
            )
            models = await stack.enter_async_context(open_models(settings))
            server = CallServer(key.id, models, settings)
            if listening:
                transport.handle(protocol(network, "call"), server.handle)
            client = CallClient(transport, protocol(network, "call"), settings)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            publisher = Publisher(overlay, key, lambda: peer.take_seq())
            peer = cls(
                key,
                network,
                settings,
                transport,
                overlay,
                publisher,
                models,
                server,
                client,
                state,
                nursery,
                rng,
            )
            if listening:
                runtime.announce(peer.id, peer.addrs)
                stack.callback(runtime.withdraw)
            await peer._begin(bootstrap, runtime)
            yield peer

    async def _begin(self, bootstrap: Sequence[str], runtime: Runtime) -> None:
        def where() -> Sequence[str]:
            return bootstrap or runtime.others()

        self.bootstrapped = await self._overlay.bootstrap(where())
        self._nursery.start_soon(self._overlay.stay_joined, where)
        self._nursery.start_soon(self._publisher.keep)
        self._nursery.start_soon(self._tidy)
        self._nursery.start_soon(self._restore)

    @property
    def id(self) -> str:
        """My peer id in base58."""
        return self.peer_id.text

    @property
    def addrs(self) -> tuple[str, ...]:
        """Text multiaddrs, with `/p2p/ID`, at which others can dial me; empty for a client."""
        return self._network.addrs

    # --- finding ---

    async def find(
        self,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        *,
        limit: int = 20,
        all: bool = False,
        timeout: float = 30.0,
    ) -> list[Offer]:
        """Offers that match all that is given, best first; both seals of each were checked.

        `model` is a name, `name@version` or a URI. `all` includes the offers of dead providers. Raises
        LocalError (bad-input), RemoteError (deadline).
        """
        query = Query(network=self.network_name)
        if model is not None:
            query = Query.of_uri(ModelUri.parse(model), self.network_name)
        query = replace(query, task=task, tag=tag)
        with _within(timeout, "the search"):
            return await self._finder.find(query, max(1, limit), with_dead=all)

    async def search(
        self, task: str | None = None, model: str | None = None, tag: str | None = None, *, limit: int = 20
    ) -> AsyncIterator[Offer]:
        """The offers that `find` returns, one by one."""
        for offer in await self.find(task, model, tag, limit=limit):
            yield offer

    async def show(self, model: str) -> list[dict[str, object]]:
        """The signed records of a model, whoever is alive; raises NotFound."""
        query = Query.of_uri(ModelUri.parse(model), self.network_name)
        offers = await self._finder.offers(query, MAX_CANDIDATES)
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
    ) -> Value:
        """Call a model name, a `modelnet:` URI or `task:TASK`; its output, a list for a streaming model.

        Moves to another provider where that is safe (see `call`). Raises NotFound, RemoteError with the
        code of what happened there, LocalError (bad-input).
        """
        outcome = await self.call(target, input, params=params, provider=provider, timeout=timeout)
        return outcome.output

    async def call(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
        on_item: Callable[[Value], Awaitable[None]] | None = None,
    ) -> Outcome:
        """Like `invoke`, with all that is known of how it went: provider, attempts, times, trace.

        Each item of a streamed answer goes to `on_item`, which may be slow: the model then waits.
        """
        aim = self._target(target, provider)
        with _within(timeout + DEADLINE_GRACE, f"the call of {target}"):
            return await self._router.call(aim, input, params or {}, timeout, on_item)

    def stream(
        self,
        target: str,
        input: Value,
        *,
        params: Mapping[str, Value] | None = None,
        provider: str | None = None,
        timeout: float = 30.0,
    ) -> Items:
        """The items of an answer as they come: `async for item in peer.stream(…)`.

        Leaving the loop early cancels the work on the far side. A model that does not stream gives
        its answer as the one item.
        """
        aim = self._target(target, provider)
        return Items(self._nursery, lambda: self._router.open(aim, input, params or {}, timeout, "stream"))

    def _target(self, target: str, provider: str | None) -> Target:
        return Target.parse(target, self.network_name, PeerId.parse(provider) if provider else None)

    async def _candidates(self, query: Query) -> Sequence[Offer]:
        return await self._finder.find(query, MAX_CANDIDATES)

    async def ping(self, target: str, count: int = 3, *, timeout: float = 30.0) -> dict[str, object]:
        """Round trips to a peer id or multiaddr; raises RemoteError when there is no answer."""
        if target.startswith("/"):
            peer, addr = split_p2p(target)
            if peer is None:
                raise LocalError(Code.BAD_INPUT, f"{target} does not end in /p2p/ID")
            addrs: Sequence[str] = (addr,)
        else:
            peer = PeerId.parse(target)
            addrs = await self._overlay.find_peer(peer)
        trips: list[float] = []
        for _ in range(count):
            vital = await self._finder.ping(peer, addrs)
            if vital.rtt_ms is not None:
                trips.append(vital.rtt_ms)
        if not trips:
            where = ", ".join(addrs) or "no known address"
            raise RemoteError(Code.UNREACHABLE, f"peer {peer} does not answer at {where}", peer=peer.text)
        return {"peer": peer.text, "ok": len(trips) == count, "rtt_ms": trips}

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
        dry_run: bool = False,
        on_event: Notice | None = None,
    ) -> dict[str, object]:
        """Serve a model and tell the network; returns when a majority of the holders has acknowledged.

        `source` is `builtin:digits`, `MODULE:NAME`, a `.safetensors` file (with `module`), or an
        importable function itself. The worker runs with `interpreter`, `cwd` and `environ`, by default
        this process's. Raises LocalError (bad-input, unsafe), RemoteError (no majority).
        """
        if not self.addrs:
            raise LocalError(Code.BAD_INPUT, "a client cannot serve: it listens nowhere")
        wanted = Source(
            spec=source if isinstance(source, str) else _spec_of(source),
            module=module,
            model=model,
            task=task,
            tags=tuple(tags),
            interpreter=interpreter or sys.executable,
            cwd=cwd or os.getcwd(),
            environ=dict(os.environ if environ is None else environ),
        )
        return await self._serve(wanted, on_event or _quiet, dry_run=dry_run, remember=True)

    async def _serve(
        self, source: Source, notice: Notice, *, dry_run: bool = False, remember: bool
    ) -> dict[str, object]:
        notice(f"loading {source.spec}")
        served = await self._models.add(source)
        name = served.description.name
        seq = self.take_seq()
        draft = draft_offer(
            served.description,
            source.tags,
            key=self._key,
            network=self.network_name,
            seq=seq,
            now_unix=int(time.time()),
        )
        offer = Offer(draft, b"", self.addrs)
        report: dict[str, object] = {
            "model": offer.model,
            "uri": offer.uri,
            "provider": self.id,
            "owner": offer.owner,
            "digest": offer.digest,
            "task": offer.task,
            "seq": seq,
        }
        if dry_run:
            await self._models.remove(name)
            holders = {"asked": 0, "stored": 0}
            return {**report, "holders": holders, "expires_unix": None, "dry_run": True}
        before = self._identities.get(name)
        self._identities[name] = draft.identity
        if remember and self._state is not None:
            self._state.remember(name, source.to_map(), seq)
        notice(f"telling the network of {offer.model}")
        if before is not None and before != draft.identity:  # another version or owner of this name was mine
            await self._publisher.bury(self._publisher.entomb(before))
        published = await self._publisher.publish(draft)
        return {
            **report,
            "holders": {"asked": published.asked, "stored": published.stored},
            "expires_unix": published.sealed.expires_us // 1_000_000,
        }

    async def unpublish(self, model: str) -> dict[str, object]:
        """Serve `model` no longer, and take its record back from the holders; raises NotFound."""
        name = ModelUri.parse(model).name
        identity = self._identities.pop(name, None)
        if identity is None:
            raise NotFound(
                f"this peer does not serve {name!r}", hint="modelnet-peer status lists what it serves"
            )
        await self._models.remove(name)
        tombstone = self._publisher.entomb(identity)
        if self._state is not None:
            expires_unix = tombstone.expires_us // 1_000_000
            self._state.forget(name, tombstone.seq, tombstone.envelope, expires_unix)
        buried = await self._publisher.bury(tombstone)
        return {
            "model": name,
            "withdrawn": True,
            "seq": tombstone.seq,
            "holders": {"asked": buried.asked, "stored": buried.stored},
        }

    def take_seq(self) -> int:
        """A sequence number above all that I ever took; on disk before it is used, where I have a home."""
        if self._state is not None:
            return self._state.take_seq(time.time())
        self._highest_seq = max(self._highest_seq + 1, time.time_ns() // 1_000_000)
        return self._highest_seq

    async def _restore(self) -> None:
        """Serve again what an earlier run had published, and tell of what it had withdrawn."""
        if self._state is None:
            return
        self._state.settle(time.time())
        async with trio.open_nursery() as nursery:
            for model, owed in list(self._state.withdrawn.items()):
                nursery.start_soon(self._restore_tombstone, model, owed.envelope)
            for model, fields in list(self._state.published.items()):
                nursery.start_soon(self._restore_model, model, fields)

    async def _restore_tombstone(self, model: str, envelope: bytes) -> None:
        try:
            sealed = admit(envelope, network=self.network_name, now_us=_wall_us())
            await self._publisher.bury(sealed)
        except (BadRecord, ModelnetError) as error:
            log.warning("the withdrawal of %s could not be told again: %s", model, error)

    async def _restore_model(self, model: str, fields: Mapping[str, object]) -> None:
        try:
            await self._serve(Source.from_map(fields), _quiet, remember=False)
        except ValueError as error:
            log.warning("cannot serve %s again: %s", model, error)
        except ModelnetError as error:
            log.warning("cannot serve %s again: %s", model, error.message)

    # --- telling of myself ---

    async def status(self) -> dict[str, object]:
        """The contract's `status` object, without the control socket, which is the daemon's."""
        refused = {reason.value: self._overlay.server.refused[reason] for reason in Refusal}
        for reason, number in self._finder.refused.items():
            refused[reason] = refused.get(reason, 0) + number
        return {
            "peer": self.id,
            "addrs": list(self.addrs),
            "version": modelnet_p2p.__version__,
            "network": self.network_name,
            "uptime_s": trio.current_time() - self._started,
            "control": None,
            "connections": len(self._network.connected()),
            "table": len(self._overlay.table),
            "records": len(self._overlay.server.store),
            "rss_bytes": rss_bytes(),
            "models": [self._model_line(served) for served in self._models.all().values()],
            "refused": refused,
        }

    def _model_line(self, served: Served) -> dict[str, object]:
        name, version = served.description.name, served.description.version
        identity = self._identities.get(name)
        seq = self._publisher.seq(identity) if identity else None
        return {"model": f"{name}@{version}" if version else name, "seq": seq, **served.stats()}

    async def peers(self) -> list[dict[str, object]]:
        """The peers that I know: those connected, and those in my routing table."""
        connected = self._network.connected()
        known = {contact.id for contact in self._overlay.table} | connected
        return [self._peer_line(peer, peer in connected) for peer in sorted(known)]

    def _peer_line(self, peer: PeerId, connected: bool) -> dict[str, object]:
        vital = self._finder.vital(peer)
        state = vital.state if vital else Life.ALIVE if connected else Life.UNKNOWN
        return {
            "peer": peer.text,
            "addrs": list(self._overlay.known_addrs(peer)),
            "connected": connected,
            "rtt_ms": vital.rtt_ms if vital else None,
            "state": state.value,
        }

    async def _tidy(self) -> None:
        """Let go of idle streams now and then."""
        while True:
            await trio.sleep(self._tuning.idle_stream / 4)
            await self._client.close_idle()


def check_bootstraps(addrs: Sequence[str]) -> None:
    """Raises LocalError (bad-input) for an address without a peer's id: nobody could tell who answers."""
    for addr in addrs:
        if split_p2p(addr)[0] is None:
            raise LocalError(
                Code.BAD_INPUT,
                f"the bootstrap address {addr} does not end in /p2p/ID",
                hint="copy the whole address that `modelnet-peer join` or `modelnet-peer id` prints",
            )


@contextmanager
def _within(timeout: float, what: str) -> Iterator[None]:
    """The block ends in `timeout` seconds, by RemoteError (deadline) if not by itself."""
    with trio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise RemoteError(Code.DEADLINE, f"{what} took longer than {timeout:g} s", hint="a longer timeout")


def _quiet(line: str) -> None:
    log.debug("%s", line)


def _wall_us() -> int:
    return time.time_ns() // 1000


def _spec_of(function: Callable[..., object]) -> str:
    """`MODULE:NAME` of an importable function or class; the worker imports it by that name."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        raise LocalError(
            Code.BAD_INPUT,
            f"{function!r} cannot be imported by a worker process",
            hint="put it at the top level of a module of its own, and publish 'MODULE:NAME'",
        )
    return f"{module}:{name}"
