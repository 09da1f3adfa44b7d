"""One key's records as their holders tell them: in turns, so that nobody who tells much hides the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from modelnet_p2p.dht.holding.revocations import Revocations
from modelnet_p2p.dht.table.density import Density
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.patience import Patience
from modelnet_p2p.dht.walks.shards import ShardReads
from modelnet_p2p.dht.walks.turns import MAX_ADDRS, Turns
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.records import Sealed
from modelnet_p2p.tuning import Tuning

__all__ = ["MAX_ADDRS", "Reading", "Standpoint", "read_on"]

SHARDS_AT_ONCE = 8  # of a split key: one after the other, 16 would take half a minute
MAX_TAKEN = 16_384  # records of a key and its shards that one reader keeps: 64 MiB at the very worst


class Standpoint(Protocol):
    """What a read needs to know of the peer that reads: an `Overlay`, or a peer of the simulator."""

    @property
    def me(self) -> PeerId: ...

    @property
    def name(self) -> str: ...  # of its network

    @property
    def tuning(self) -> Tuning: ...

    @property
    def patience(self) -> Patience: ...

    @property
    def density(self) -> Density: ...

    def seeds(self, key: bytes) -> list[Contact]: ...

    def now(self) -> float: ...

    def wall_us(self) -> int: ...


class Reading(Collect):
    """A read that remembers in which place of its holder's answer each record and address stood."""

    # `Collect` merges in the order of arrival: whoever answers first with most would be all that is seen
    def __init__(
        self,
        key: bytes,
        overlay: Standpoint,
        limit: int | None,
        revocations: Revocations | None = None,
    ) -> None:
        super().__init__(
            key,
            overlay.seeds(key),
            me=overlay.me,
            network=overlay.name,
            tuning=overlay.tuning,
            now=overlay.now(),
            now_us=overlay.wall_us(),
            limit=limit,
            patience=overlay.patience.seconds,
            region=overlay.density.region,
            revocations=revocations,
        )
        self._me = overlay.me
        self._turns = Turns()

    def on_local(self, sealeds: Iterable[Sealed], contacts: Iterable[Contact]) -> None:
        sealeds, contacts = list(sealeds), list(contacts)
        super().on_local(sealeds, contacts)
        self._turns.on_told(self._me, [sealed.envelope for sealed in sealeds], contacts)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        super().on_reply(peer, reply, now)
        sound = [envelope for envelope in reply.records or () if envelope in self._admitted]
        self._turns.on_told(peer, sound, reply.providers)

    def take(self, shard: Reading) -> None:
        """What one of this key's shards holds belongs to it, too."""
        if len(self.proofs) < MAX_TAKEN:
            self.proofs.update(shard.proofs)
        for sealed in shard.records:
            if len(self._merged) < MAX_TAKEN:
                self._merge(sealed)
        self._turns.take(shard._turns, MAX_TAKEN)
        self.refused.update(shard.refused)
        self.messages += shard.messages

    @property
    def in_turns(self) -> list[Sealed]:
        """The live records: the first of every holder and network, then the second, and so on."""
        return self._turns.of(self.records)

    def addresses(self, provider: PeerId) -> tuple[bytes, ...]:
        """Where this provider is said to be, the first address of every teller first."""
        return self._turns.addresses(provider)


async def read_on(
    found: Reading,
    limit: int | None,
    shuffle: Callable[[list[str]], None],
    read: Callable[[Sequence[bytes], int | None], Awaitable[Sequence[Reading]]],
) -> None:
    """Take in the shards of a key that turned out to be split: one, then as many at once as are needed."""
    if not found.split:
        return
    shards, at_once = ShardReads(found.target, limit, shuffle), 1
    while places := [at for _ in range(at_once) if (at := shards.next(len(found.records))) is not None]:
        for at, shard in zip(places, await read(places, limit), strict=True):
            shards.on_read(split=shard.split, at=at)
            found.take(shard)
            each = max(1, len(shard.records))
        missing = MAX_TAKEN if limit is None else limit - len(found.records)
        at_once = max(1, min(SHARDS_AT_ONCE, missing // each))
