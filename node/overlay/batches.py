"""The offers that a search means, in batches: what lies under exact keys, then what stands behind cards.

Keys that many share hold cards; the offers behind them are read from their models' own keys, so that
what is returned was checked with both seals. Each batch is read when it is asked for: who has enough
stops asking, and nothing runs on. Records outlive their providers by two hours, so what was read may be of
the dead alone: who goes on asking is given what else was read, and then what lies deeper under the keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.reading import Reading
from modelnet_p2p.query import Query
from modelnet_p2p.records import Card, Identity, OfferRecord, Refusal, Sealed

READ_AHEAD = 4  # records read for each offer wanted: some are withdrawn, expired, or do not match
LEAST_READ = 80  # records read for one offer wanted, as for a call: the best of these may be far better
DEEPER = 8  # times as many are read where those before were not enough: each look is a walk of its own ...
MAX_OFFERS_SIFTED = 4096  # ... up to this, as many as a holder keeps under a key: 16 MiB at the very worst
MAX_MODELS_READ = 64  # models, or providers, whose keys are read at once: each is a walk of its own
MAX_ROUNDS = 4  # of such reads, where most of what is read may not be meant, or be of the dead
FIRST_MODELS = 8  # read first where the first offers are wanted soon
MAX_PROVIDERS_READ = 512  # of one such model: 64 times as many are 128 MiB at the very worst
FIRST_SIFTED = 512  # records of a key that a search sifts at first: mostly enough, and some seven pages
MAX_SIFTED = 16_384  # ... of all keys, where too few were meant: 20 MiB of cards, whose seals take 2 s
OFFERS_A_WALK = 32  # more offers of one model than this for each that is wanted cost more than a walk each

Read = Callable[[Sequence[bytes], int], Awaitable[list[Reading]]]  # walks to these keys, at once


@dataclass(slots=True)
class Tally:
    """How a search went: where it looked, what of the cards and offers there was not meant, and why."""

    keys: list[str] = field(default_factory=list)
    cards: int = 0  # that were read
    cards_ruled_out: int = 0  # of them, by what they say and by their summaries
    read: int = 0  # offers
    messages: int = 0  # requests to holders
    ruled_out: Counter[str] = field(default_factory=Counter)  # by the part of the question
    untimely: int = 0  # records that were refused as over, or not yet valid, by this clock
    silent: int = 0  # offers that were meant, and not shown: their providers are dead

    def sift(self, query: Query, sealeds: Iterable[Sealed], seen: set[Identity]) -> list[Sealed]:
        """Those that are meant and not yet `seen`, which they then are."""
        found = []
        for sealed in sealeds:
            if sealed.identity in seen:
                continue
            seen.add(sealed.identity)
            card = isinstance(sealed.record, Card)
            self.cards += card
            self.read += not card
            refusal = query.refusal(sealed.record)
            if refusal is None:
                found.append(sealed)
            else:
                self.ruled_out[refusal] += 1
                self.cards_ruled_out += card
        return found

    @property
    def all_untimely(self) -> int:
        """How many were refused for their times where no sound offer was read, nor only cards of what is not
        meant; else 0: a record that is over lies about now and then. (A card says when it ends, not when it
        began: a clock that is behind takes it, and refuses the offer behind it.)"""
        others = self.read or (self.cards and self.cards == self.cards_ruled_out)
        return 0 if others else self.untimely

    def to_map(self) -> dict[str, object]:
        return {
            "keys": self.keys,
            "cards": self.cards,
            "cards_ruled_out": self.cards_ruled_out,
            "read": self.read,
            "messages": self.messages,
            "ruled_out": dict(self.ruled_out),
            "untimely": self.untimely,
            "silent": self.silent,
        }


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
        self._indexes = query.indexes()  # those that may hold more than was read
        self._most = most_read(limit)  # in one batch
        self._tally = tally
        self._at_once = at_once
        self._seen: set[Identity] = set()
        self._sifted: set[Identity] = set()  # cards, and offers whose cards are not needed any more
        self._cards: list[Sealed] = []
        self._left = Batch((), ())  # what was read and is more than one batch
        self._given = 0  # offers
        self._places: list[bytes] = []  # where the offers behind the cards are still to be read
        self._looks = self._depths()  # records to read of the keys, next time
        self._reads_left = MAX_MODELS_READ * MAX_ROUNDS
        tally.keys = [query.key_name(index) for index in self._indexes]

    def _depths(self) -> list[int]:
        """How far to read at first, and then. Who asks for what few have must not lose it behind a crowd of
        others under the same key, nor anybody a living one behind a crowd of the dead."""
        first, deepest = self._most, MAX_OFFERS_SIFTED
        if self._query.sifts:
            first = max(first, FIRST_SIFTED)
            if self._query.where is not None or self._query.finds_cards():
                return [first, MAX_SIFTED] if first < MAX_SIFTED else [first]
        # what is called by name is read in steps, so that few go through a crowd of 4 KiB offers
        depths = [first]
        while depths[-1] < deepest:
            depths.append(min(DEEPER * depths[-1], deepest))
        return depths

    async def more(self, *, some: bool = False) -> Batch | None:
        """The next offers, none of them twice; may be empty. None at the end.

        `some` that are not of the dead are known already: then no walk follows those that have found as many
        offers as `most_read` says.
        """
        if self._left.sealeds:
            return self._cut(self._left)
        if some and self._given >= self._most:
            return None
        if not self._places:
            return await self._look() if self._looks and self._reads_left else None
        now, self._places = self._places[: self._at_once], self._places[self._at_once :]
        self._at_once = MAX_MODELS_READ
        self._reads_left -= len(now)
        walks = await self._walk(now, MAX_PROVIDERS_READ)
        return self._batch(self._behind(walks), walks)

    async def _look(self) -> Batch:
        """What the keys themselves hold: at first some of it, then more, where that was not enough."""
        share = MAX_SIFTED // len(self._indexes)
        limit = min(self._looks.pop(0), max(self._most, FIRST_SIFTED, share))
        walks = await self._walk([self._query.key(index) for index in self._indexes], limit)
        pairs = list(zip(self._indexes, walks, strict=True))
        self._indexes = tuple(index for index, walk in pairs if len(walk.records) >= limit)
        if not self._indexes:
            self._looks.clear()
        offers = [sealed for index, walk in pairs if not index.holds_cards for sealed in walk.in_turns]
        batch = self._batch(offers, walks)
        self._sifted |= self._seen
        cards = [sealed for index, walk in pairs if index.holds_cards for sealed in walk.in_turns]
        told = self._tally.sift(self._query, cards, self._sifted)
        self._cards = sorted(told, key=self._doubt)
        self._places = self._behind_which(cards)[: self._reads_left]
        return batch

    def _behind_which(self, cards: Sequence[Sealed]) -> list[bytes]:
        """The keys where the offers of `self._cards` are read: their models', or their providers' where few
        of a model's many `cards` are left."""
        keys = Keys(self._query.network)
        crowd = Counter(card.identity.name for card in cards)
        wanted = Counter(card.identity.name for card in self._cards)
        names: dict[str, None] = {}
        for card in self._cards:
            name = card.identity.name
            crowded = self._query.sifts and crowd[name] > OFFERS_A_WALK * wanted[name]
            names[keys.peer(card.identity.provider) if crowded else keys.model(name)] = None
        return [provider_key(name) for name in names]

    def _behind(self, walks: Sequence[Reading]) -> list[Sealed]:
        """The offers that the cards stand for, the very bytes or a newer version; then those that lie beside
        them and whose cards were not read."""
        read = {sealed.identity: sealed for walk in walks for sealed in walk.records}
        found = []
        for card in self._cards:
            offer = read.get(card.identity)
            if offer is None or not isinstance(offer.record, OfferRecord):
                continue
            assert isinstance(card.record, Card)
            if offer.sha256 == card.record.offer_sha256 or offer.seq > card.seq:
                found.append(offer)
        return found + [offer for identity, offer in read.items() if identity not in self._sifted]

    def _doubt(self, card: Sealed) -> tuple[bool, bool]:
        """Whose offers are surely meant are read first, those that say nothing of it last."""
        silent = isinstance(card.record, Card) and card.record.marks is None
        return not self._query.surely_means(card.record), silent

    async def _walk(self, keys: Sequence[bytes], limit: int) -> list[Reading]:
        walks = await self._read(keys, limit)
        self._tally.messages += sum(walk.messages for walk in walks)
        self._tally.untimely += sum(walk.refused[Refusal.EXPIRED] for walk in walks)
        return walks

    def _batch(self, sealeds: Sequence[Sealed], walks: Sequence[Reading]) -> Batch:
        return self._cut(Batch(self._tally.sift(self._query, sealeds, self._seen), walks))

    def _cut(self, batch: Batch) -> Batch:
        """The beginning of it; the rest is for later."""
        now, later = batch.sealeds[: self._most], batch.sealeds[self._most :]
        self._left = Batch(later, batch.walks)
        self._given += len(now)
        return Batch(now, batch.walks)


def most_read(limit: int) -> int:
    """How many records are read at once for so many offers wanted."""
    return max(limit * READ_AHEAD, LEAST_READ)
