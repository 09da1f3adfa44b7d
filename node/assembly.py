"""How a peer is put together: transport, overlay, calls, models, weights and state, each with what it needs.

Nothing is decided here. Each room is made once and handed those that it works with; what keeps running behind
them is started, and ended in the order that lets all of them finish.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.identity import SEED_BYTES, KeyPair
from modelnet_p2p.names import check_network, protocol
from modelnet_p2p.node.absence import Absence
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.calls.elsewhere import Elsewhere
from modelnet_p2p.node.calls.router import MAX_CANDIDATES, Router
from modelnet_p2p.node.calls.server import CallServer
from modelnet_p2p.node.clocks import Clocks
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.ending import Ending
from modelnet_p2p.node.hosting import Hosting, Sequences
from modelnet_p2p.node.joining import Joining, check_bootstraps
from modelnet_p2p.node.notices import Notices
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.overlay.driver import Bootstrap, Overlay, open_overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.overlay.watching import Watching
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.node.restoring import Restoring
from modelnet_p2p.node.revoking import Revoking
from modelnet_p2p.node.serving.models import Models, open_models
from modelnet_p2p.node.serving.policy.memory import Memory
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.node.transport.memory_stream import stream_pair
from modelnet_p2p.node.transport.registry import Handlers
from modelnet_p2p.node.upstreams.upstreams import Upstreams
from modelnet_p2p.node.weights.cache import Cache
from modelnet_p2p.node.weights.server import WeightServer
from modelnet_p2p.node.weights.sharing import Pulls, Sharing
from modelnet_p2p.offers import Offer
from modelnet_p2p.query import Query
from modelnet_p2p.tuning import Tuning, preset

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
EVERYWHERE = "/ip4/0.0.0.0/tcp/0"


class Parts:
    """The rooms of one peer. Made by `assembled`, which owns what is handed in."""

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
        """`name` is the network's."""
        rng = random.Random(os.urandom(16))
        self.peer_id = key.id
        self.network_name = name
        self.tuning = tuning
        self.network = overlay.network
        self.overlay = overlay
        self.models = models
        self.nursery = nursery
        self.started = trio.current_time()
        self.bootstrapped = Bootstrap((), ())
        self.restored = trio.Event()  # set when what an earlier run had published is served again
        self.owners = Owners(name)  # whose models bare names mean
        self.notices = Notices()  # what happens that the person who runs this peer should hear of

        # calls: answered, and made
        calls = protocol(name, "call")
        budget = Budget(key.id)
        self.elsewhere = Elsewhere(overlay, rng)
        self.call_server = CallServer(
            key.id, models, tuning, budget, wall_us=overlay.wall_us, elsewhere=self.elsewhere.name
        )
        self._mine = Handlers()  # answers my calls to myself, with the same guard as those of others
        self._mine.add(calls, self.call_server.handle)
        self.call_client = CallClient(self.network, calls, tuning, budget, self._loopback)
        self.clocks = Clocks(self.call_client, self.network, overlay.wall_us, tuning.ping_timeout, rng)

        # records: told, found, and who of their providers is alive
        self.memory = memory = Memory(rng.randrange, trio.current_time)
        sequences = Sequences(state)
        self.publisher = Publisher(overlay, key, sequences.take)
        self.finder = Finder(overlay, self.publisher, self.call_client, memory.rank, rng.shuffle)
        self.watching = Watching(overlay, key, self.publisher, nursery, rng)
        self.finder.watching = self.watching
        self.elsewhere.is_dead = self.watching.is_dead
        self.revoking = Revoking(overlay.server, self.owners, self.notices)

        # models: served, remembered, and their weights
        self.weights = WeightServer(tuning, models.at_work)
        self.sharing = Sharing(self.weights)
        self.hosting = Hosting(
            key, name, models, self.publisher, sequences, state, self.revoking, self.sharing
        )
        self.upstreams = Upstreams(self.hosting, models, state, self.notices, nursery)
        self.restoring = Restoring(self.hosting, models, self.publisher, state, name)

        # what needs all of these
        self.ending = Ending(
            overlay, self.revoking, self.finder, self.publisher, self.hosting, self.owners, nursery
        )
        self.absence = Absence(self.ending, self.finder, self.clocks, self.owners)
        why, condemns = self.absence.why, self.revoking.condemns
        too_much = self.finder.asked_too_much
        self.router = Router(
            self.call_client,
            self._standing,
            memory,
            self.owners,
            rng,
            why,
            condemns,
            too_much,
            nursery=nursery,
        )
        self.pulls = Pulls(
            key.id,
            self.network,
            protocol(name, "weights"),
            name,
            self.finder,
            self.router,
            self.owners,
            self.weights.shared,
        )

    def _loopback(self) -> Stream:
        """A stream to my own call server."""
        me = self.peer_id
        mine, theirs = stream_pair(me, me, protocol(self.network_name, "call"), trio.lowlevel.checkpoint)
        self.nursery.start_soon(self._mine.serve, theirs)
        return mine

    async def _standing(self, query: Query, tally: Tally) -> Sequence[Offer]:
        return await self.finder.standing(query, MAX_CANDIDATES, tally)

    def keep_weights_under(self, directory: Path) -> None:
        """Keep there what is fetched."""
        self.pulls.cache = self.sharing.cache = Cache(directory)

    async def restore(self) -> None:
        """Serve again what an earlier run had published; `restored` is set when that is done."""
        await self.restoring.restore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.restoring.keep)  # and not only once silent servers were waited for
            await self.upstreams.restore()
            self.restored.set()

    async def meet_on_lan(self) -> None:
        """Find the peers of the local network, and be found by them."""
        # not at the top: most peers are on no local network
        from modelnet_p2p.node.lan.mdns import interfaces, open_mdns
        from modelnet_p2p.node.lan.meeting import Lan

        await Lan(self.overlay, self.notices, open_mdns, interfaces).run()

    async def tidy(self) -> None:
        """Let go of idle streams now and then."""
        while True:
            await trio.sleep(self.tuning.idle_stream / 4)
            await self.call_client.close_idle()


@asynccontextmanager
async def assembled(
    transport: Network, key: KeyPair, network: str, tuning: Tuning, state: State | None = None
) -> AsyncIterator[Parts]:
    """A peer's parts on a transport that is open already; it knows nobody yet."""
    table = RoutingTable(key.id, tuning.k)
    kad = KadServer(key.id, network, table, OfferStore(secret=os.urandom(16)))
    serves = bool(transport.addrs)
    async with (
        open_overlay(transport, kad, table, tuning, network, _wall_us, serves=serves) as overlay,
        open_models(tuning) as models,
        trio.open_nursery() as nursery,
    ):
        parts = Parts(key, network, tuning, overlay, models, state, nursery)
        if serves:
            transport.handle(protocol(network, "call"), parts.call_server.handle)
            transport.handle(protocol(network, "weights"), parts.weights.handle)
        nursery.start_soon(parts.publisher.keep)
        nursery.start_soon(partial(parts.watching.run, serves=serves))
        nursery.start_soon(parts.tidy)
        nursery.start_soon(parts.revoking.keep)
        try:
            yield parts
        finally:
            parts.revoking.leave()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def joined(
    bootstrap: Sequence[str],
    listen: Sequence[str] | None,
    home: Path | str | None,
    network: str,
    lan: bool,
    tuning: str,
) -> AsyncIterator[Parts]:
    """A peer's parts on sockets and on this disk, which has met whom there is to meet; see `Peer.open`."""
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
            assembled(transport, key, network, settings, state) as parts,
        ):
            if place is not None:
                parts.owners.keep_under(place.owners_path)
                parts.ending.keep_under(place.revocations_path)
                parts.keep_weights_under(place.cache_path)
            joining = Joining(parts.overlay, bootstrap, runtime, place, parts.notices)
            if listening:
                runtime.announce(key.id.text, transport.addrs)
            try:
                if lan:
                    parts.nursery.start_soon(parts.meet_on_lan)
                parts.bootstrapped = await joining.enter(parts.nursery)
                for task in (joining.stay, joining.remember, parts.restore, parts.clocks.keep):
                    parts.nursery.start_soon(task)
                yield parts
            finally:
                runtime.withdraw()
                joining.note()


def _wall_us() -> int:
    return time.time_ns() // 1000
