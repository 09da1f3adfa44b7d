"""This peer's weights: which of its models' files others may fetch, and what it fetches itself.

Brings together the room's parts and the rest of the peer: who holds a digest is found like any offer, and
what was fetched is published like any file, with the seal of its owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.target import Target
from modelnet_p2p.node.notices import Notice
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.weights.cache import Cache
from modelnet_p2p.node.weights.hashing import OnDisk, artifact_of
from modelnet_p2p.node.weights.holders import Holder
from modelnet_p2p.node.weights.kept import (
    digest_asked,
    found_line,
    kept_line,
    may_be_pulled,
    meant,
    named,
    pulled_source,
    uris_of,
)
from modelnet_p2p.node.weights.puller import Progress, Pulled, Puller, hashed
from modelnet_p2p.node.weights.server import WeightServer
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query

if TYPE_CHECKING:
    from modelnet_p2p.node.calls.router import Router
    from modelnet_p2p.node.overlay.finder import Finder
    from modelnet_p2p.node.owners import Owners
    from modelnet_p2p.node.transport.contract import Network

WEIGHTS = "weights"  # in an offer's `gives`: its provider hands out the files of its digest
MAX_LIARS = 256  # remembered: more have a hand in it than one can keep apart
MAX_HOLDERS_READ = 64  # offers of one digest that are looked at


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched: a digest, offers of it where some were found, the words that asked for it."""

    root: bytes
    offers: tuple[Offer, ...]
    text: str
    query: Query | None = None  # where a name was asked for: its owner is remembered then


class Sharing:
    """Which of this peer's models share their files."""

    def __init__(self, server: WeightServer) -> None:
        self._server = server
        self._roots: dict[str, bytes] = {}  # by model name
        self.cache: Cache | None = None

    async def examine(self, description: Description) -> OnDisk:
        """The files of that model, hashed; raises LocalError where they cannot be shared."""
        root = description.digest
        if root is None or not description.files:
            raise LocalError(
                Code.BAD_INPUT,
                f"{description.name} has no files that could be shared: it is code, or runs elsewhere",
                hint="publish it without --share-weights",
            )
        path = Path(description.files)
        cache = self.cache
        if cache is not None and path.is_relative_to(cache.folder(root)):
            found = await hashed(partial(cache.whole, root))  # checked when it was fetched
        else:
            found = await hashed(lambda told: artifact_of(path, told=told))
        if found is None or found.root != root:
            words = f"the files of {description.name} in {path} are not those that it was loaded from"
            raise LocalError(Code.BAD_STATE, words, hint="publish it again")
        return found

    def put(self, name: str, found: OnDisk | None) -> None:
        """From now on this model shares these files, or none."""
        if found is not None:
            self._server.share(found)
        if (before := self._roots.pop(name, None)) is not None:
            self._server.unshare(before)
        if found is not None:
            self._roots[name] = found.root


class Pulls:
    """Fetches what others share, and finds what was fetched."""

    def __init__(
        self,
        me: PeerId,
        network: Network,
        protocol: str,
        name: str,
        finder: Finder,
        router: Router,
        owners: Owners,
        shared: Callable[[bytes], OnDisk | None],
    ) -> None:
        """`shared` are the files that this peer gives out itself, by digest."""
        self._me = me
        self._network = network
        self._protocol = protocol
        self._name = name
        self._finder = finder
        self._router = router
        self._owners = owners
        self._shared = shared
        self._liars: dict[str, None] = {}  # peers that sent wrong bytes: not asked again while this peer runs
        self.cache: Cache | None = None

    async def pull(
        self,
        model: str,
        timeout: float,
        tell: Callable[[Progress], None],
        notice: Notice,
    ) -> dict[str, object]:
        """Fetch the weights that `model` (name, URI or digest) means into the cache; the `pull` object.

        `timeout` is for finding it. Raises NotFound, LocalError, RemoteError.
        """
        cache = self.kept()
        notice(f"looking for {model}")
        wanted = await self._wanted(cache, model, timeout)
        notice("looking at what is here already")
        found = self._shared(wanted.root) or await hashed(partial(cache.whole, wanted.root))
        pulled: Pulled | None = None
        if found is None:
            holders = await self._holders(wanted, timeout)
            count = f"{len(holders)} peer{'' if len(holders) == 1 else 's'}"
            notice(f"fetching from {count}" if holders else "nobody shares it now")
            puller = Puller(self._network, self._protocol, cache)
            pulled = await puller.pull(wanted.root, holders, tell, notice)
            self._remember(pulled.liars)
            found = await hashed(partial(cache.whole, wanted.root))
            assert found is not None  # it was made whole just now
        here = cache.folder(wanted.root).is_dir()  # else it is given out from another place
        for offer in wanted.offers if here else ():
            await trio.to_thread.run_sync(cache.keep_manifest, wanted.root, offer.record.manifest_envelope)
        seals = cache.manifests(wanted.root)
        line = found_line(found, meant(seals, wanted.text) or seals)
        if wanted.query is not None and wanted.offers:
            self._owners.used(wanted.query, wanted.offers[0].record.owner, time.time())
        return line | (_fetched(pulled) if pulled is not None else {})

    def _remember(self, liars: Sequence[str]) -> None:
        self._liars |= dict.fromkeys(liars)
        while len(self._liars) > MAX_LIARS:
            del self._liars[next(iter(self._liars))]

    async def hidden(self, text: str, cwd: str | None) -> str:
        """What its publisher should know where a file or directory is called like something that was fetched.

        Empty where nothing is.
        """
        cache, path = self.cache, Path(cwd or ".") / text
        if cache is None or not may_be_pulled(text) or not path.exists():
            return ""
        uris: list[str] = []
        with suppress(LocalError):  # it is no name after all
            uris = await trio.to_thread.run_sync(uris_of, cache, text)
        if not uris:
            return ""
        kind = "directory" if path.is_dir() else "file"
        commands = " or ".join(f"modelnet-peer publish {quote(uri)}" for uri in uris)
        return f"{text} is the {kind} {path} here, and not what was pulled by that name; for that: {commands}"

    async def source(self, text: str, cwd: str | None) -> tuple[str, bytes | None] | None:
        """What to publish where `text` means something that was fetched, and its owner's seal.

        None for anything else. A file or directory of that name comes first.
        """
        cache = self.cache
        if cache is None or not may_be_pulled(text) or (Path(cwd or ".") / text).exists():
            return None
        found = await trio.to_thread.run_sync(pulled_source, cache, text)
        if found is None:
            return None
        spec, seal = found
        return spec, seal.envelope if seal else None

    async def lines(self) -> list[dict[str, object]]:
        """The lines of `pull --list`."""
        kept = await trio.to_thread.run_sync(self.kept().all)
        return [kept_line(one, self._shared(one.root) is not None) for one in kept]

    def kept(self) -> Cache:
        if self.cache is None:
            raise LocalError(
                Code.BAD_STATE,
                "this peer has no home, where weights could be kept",
                hint="give it one: home=DIR",
            )
        return self.cache

    async def _wanted(self, cache: Cache, model: str, timeout: float) -> Wanted:
        root = digest_asked(model)
        if root is not None:
            offers: Sequence[Offer] = ()
            # the digest is enough; its owner's seal is asked for beside it
            with suppress(ModelnetError), self._finder.within(timeout):
                offers = await self._finder.offers(self._query(root), MAX_HOLDERS_READ)
            return Wanted(root, _one_each(offers), model)
        target = Target.parse(model, self._name)
        try:
            offers = await self._router.find(target, trio.current_time() + timeout)
            failed = None
        except RemoteError as error:
            offers, failed = (), error
        if not offers:
            kept = await trio.to_thread.run_sync(named, cache, model)
            if kept is None:
                hint = f"modelnet-peer find --model {model} --all"
                raise failed or NotFound(f"nobody alive offers {model!r}", hint=hint)
            return Wanted(kept.root, (), model)
        return Wanted(_one_digest(model, offers), _one_each(offers), model, target.query)

    async def _holders(self, wanted: Wanted, timeout: float) -> list[Holder]:
        """Who shares that digest, whoever's model it is: the bytes are the same. Best first."""
        with self._finder.within(timeout):
            offers = await self._finder.find(self._query(wanted.root), MAX_HOLDERS_READ)
        offers = [*offers, *wanted.offers]
        sharing = [
            offer
            for offer in offers
            if WEIGHTS in offer.record.gives
            and offer.state is not State.DEAD
            and offer.record.digest == wanted.root
            and offer.record.provider != self._me
            and offer.provider not in self._liars
        ]
        return list(
            {offer.record.provider: Holder(offer.record.provider, offer.addrs) for offer in sharing}.values()
        )

    def _query(self, root: bytes) -> Query:
        return Query(digest=root, network=self._name)


def _one_digest(model: str, offers: Sequence[Offer]) -> bytes:
    """The digest of what was found; LocalError (bad-input) for code, NotFound (ambiguous) for several."""
    roots = list(dict.fromkeys(offer.record.digest for offer in offers if offer.record.digest is not None))
    if not roots:
        raise LocalError(
            Code.BAD_INPUT,
            f"{model} has no digest: it is code or a service, and has no weights to fetch",
            hint=f"it can be called: modelnet-peer invoke {model}",
        )
    if len(roots) > 1:
        lines = ", ".join(
            dict.fromkeys(f"{offer.model} {offer.digest}" for offer in offers if offer.digest is not None)
        )
        raise NotFound(
            f"{model!r} means several weights: {lines}", code=Code.AMBIGUOUS, hint="name one: pull sha256:…"
        )
    return roots[0]


def _one_each(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """One offer for each owner and name."""
    return tuple({(o.record.owner, o.record.name, o.record.version): o for o in offers}.values())


def _fetched(pulled: Pulled) -> dict[str, object]:
    """The part of the `pull` object that tells what came, and from whom; the most generous first."""
    shares = sorted(pulled.shares.items(), key=lambda item: -item[1].bytes)
    return {
        "fetched": pulled.fetched,
        "seconds": round(pulled.seconds, 3),
        "from": [{"peer": peer, "pieces": share.pieces, "bytes": share.bytes} for peer, share in shares],
        "liars": list(pulled.liars),
    }
