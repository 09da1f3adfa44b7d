"""The offers that a search means, in batches: what lies under exact keys, then what stands behind cards.

Keys that many share hold cards; the offers behind them are read from their models' own keys, so that
what is returned was checked with both seals. Each batch is read when it is asked for: who has enough
stops asking, and nothing runs on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.reading import Reading
from modelnet_p2p.query import Query
from modelnet_p2p.records import Card, Identity, OfferRecord, Sealed

READ_AHEAD = 4  # records read for each offer wanted: some are withdrawn, expired, or do not match
MAX_MODELS_READ = 64  # models whose keys are read at once: each is a walk of its own
MAX_ROUNDS = 4  # of such reads, where most of what is read may not be meant
FIRST_MODELS = 8  # read first where the first offers are wanted soon
MAX_PROVIDERS_READ = 512  # of one such model: 64 times as many are 128 MiB at the very worst

Read = Callable[[Sequence[bytes], int], Awaitable[list[Reading]]]  # walks to these keys, at once


@dataclass(slots=True)
class Tally:
    """How a search went: where it looked, and what of the offers read there was not meant, and why."""

    keys: list[str] = field(default_factory=list)
    read: int = 0
    ruled_out: Counter[str] = field(default_factory=Counter)  # by the part of the question

    def sift(self, query: Query, sealeds: Iterable[Sealed], seen: set[Identity]) -> list[Sealed]:
        """Those that are meant and not yet `seen`, which they then are."""
        found = []
        for sealed in sealeds:
            if sealed.identity in seen:
                continue
            seen.add(sealed.identity)
            self.read += 1
            refusal = query.refusal(sealed.record)
            if refusal is None:
                found.append(sealed)
            else:
                self.ruled_out[refusal] += 1
        return found

    def to_map(self) -> dict[str, object]:
        return {"keys": self.keys, "read": self.read, "ruled_out": dict(self.ruled_out)}


@dataclass(frozen=True, slots=True)
class Batch:
    """Offers that are meant, and the walks that told of their providers' addresses."""

    sealeds: Sequence[Sealed]
    walks: Sequence[Reading]


class Batches:
    """One search's reading; `more` until it gives None."""

    def __init__(self, read: Read, query: Query, limit: int, tally: Tally, at_once: int) -> None:
        """`at_once` models are read at first. Raises LocalError (bad-input) for a question that is none."""
        self._read = read
        self._query = query
        self._indexes = query.indexes()
        self._most = limit * READ_AHEAD  # in one batch
        self._tally = tally
        self._at_once = at_once
        self._seen: set[Identity] = set()
        self._cards: list[Sealed] = []
        self._names: list[str] | None = None  # of models still to be read; None: the keys were not read yet
        tally.keys = [query.key_name(index) for index in self._indexes]

    async def more(self) -> Batch | None:
        """The next offers, none of them twice; may be empty. None at the end."""
        if self._names is None:
            return await self._first()
        if not self._names:
            return None
        now, self._names = self._names[: self._at_once], self._names[self._at_once :]
        self._at_once = MAX_MODELS_READ
        keys = Keys(self._query.network)
        walks = await self._read([provider_key(keys.model(name)) for name in now], MAX_PROVIDERS_READ)
        return self._batch(_behind(self._cards, walks), walks)

    async def _first(self) -> Batch:
        """What the keys themselves hold."""
        query = self._query
        # who asks for one version or owner must not lose it behind a crowd of others of the same name
        enough = max(self._most, MAX_PROVIDERS_READ if query.sifts else 0)
        walks = await self._read([query.key(index) for index in self._indexes], enough)
        pairs = list(zip(self._indexes, walks, strict=True))
        offers = [sealed for index, walk in pairs if not index.holds_cards for sealed in walk.in_turns]
        batch = self._batch(offers, walks)
        cards = [sealed for index, walk in pairs if index.holds_cards for sealed in walk.in_turns]
        told = self._tally.sift(query, cards, set(self._seen))
        self._tally.read -= len(told)  # they count when their offers are read
        self._cards = told if query.sifts else told[: self._most]
        names = list(dict.fromkeys(card.identity.name for card in self._cards))
        self._names = names[: MAX_MODELS_READ * (MAX_ROUNDS if query.sifts else 1)]
        return batch

    def _batch(self, sealeds: Sequence[Sealed], walks: Sequence[Reading]) -> Batch:
        return Batch(self._tally.sift(self._query, sealeds, self._seen)[: self._most], walks)


def _behind(cards: Sequence[Sealed], walks: Sequence[Reading]) -> list[Sealed]:
    """The offers that the cards stand for: the very bytes, or a newer version."""
    read = {sealed.identity: sealed for walk in walks for sealed in walk.records}
    found = []
    for card in cards:
        offer = read.get(card.identity)
        if not isinstance(card.record, Card) or offer is None or not isinstance(offer.record, OfferRecord):
            continue
        if offer.sha256 == card.record.offer_sha256 or offer.seq > card.seq:
            found.append(offer)
    return found
