"""Copies of what others hold, kept for seconds on the way to a key that everybody reads.

Who has read a key hands its records to the closest peer on its way that did not hold them; the next who
comes by finds them there, and needs two true holders beside it instead of the three nearest. A copy is
nobody's promise: it lives for a minute at most, shorter the farther its keeper is from the key, is not
renewed by being handed in again, takes no room from what is stored, and ends once the key is stored here.

Source: Maymounkov, Mazières: Kademlia (2002), section 2.3, caching along the lookup path
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.records import Identity, Sealed, newest

LIFE_SECONDS = 60.0  # of a copy among the k closest to its key: a withdrawn offer is read no longer than that
LEAST_LIFE_SECONDS = 5.0  # of one far away; shorter ones cost more messages than they save
MAX_KEYS = 256  # with copies: more than are hot at a time
MAX_RECORDS = 16  # of one key, as many as one message hands over: enough for a first choice
KEYS_PER_SENDER = 8  # that one reader's copies may fill at a time
KEYS_PER_GROUP = 32  # ... and one IP network's: an eighth of all


@dataclass(slots=True)
class Copies:
    """Those of one key."""

    until: float  # monotonic seconds
    sender: PeerId
    group: str | None
    held: dict[Identity, tuple[Sealed, Contact]] = field(default_factory=dict)


class Cache:
    """Nothing in here was promised to anybody. Records were admitted before."""

    def __init__(self) -> None:
        self._keys: dict[bytes, Copies] = {}
        self._senders: Counter[PeerId] = Counter()
        self._groups: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def has_room(self, key: bytes, sender: PeerId, group: str | None, now: float) -> bool:
        """Whether copies of this reader would be kept: asked before their seals are checked."""
        self._expire(now)
        return key in self._keys or (
            len(self._keys) < MAX_KEYS
            and self._senders[sender] < KEYS_PER_SENDER
            and (group is None or self._groups[group] < KEYS_PER_GROUP)
        )

    def put(
        self,
        key: bytes,
        sealed: Sealed,
        contact: Contact,
        *,
        sender: PeerId,
        group: str | None,
        farther: int,
        now: float,
    ) -> bool:
        """Keep a copy, if there is room; an older version never replaces a newer one.

        `contact` is where its provider is said to be, a hint. `farther` is how many peers are known here
        that lie nearer to the key, in whole ks.
        """
        if not self.has_room(key, sender, group, now):
            return False
        copies = self._keys.get(key)
        if copies is None:
            until = now + max(LIFE_SECONDS / (1 << min(farther, 8)), LEAST_LIFE_SECONDS)
            copies = self._keys[key] = Copies(until, sender, group)
            self._senders[sender] += 1
            if group is not None:
                self._groups[group] += 1
        known = copies.held.get(sealed.identity)
        if known is None and len(copies.held) >= MAX_RECORDS:
            return False
        if known is None or newest(known[0], sealed) is sealed:
            copies.held[sealed.identity] = (sealed, contact)
        return True

    def get(self, key: bytes, now: float) -> tuple[tuple[Sealed, ...], tuple[Contact, ...]]:
        """The copies under `key`, and where their providers are said to be."""
        self._expire(now)
        copies = self._keys.get(key)
        if copies is None:
            return (), ()
        pairs = [(sealed, contact) for sealed, contact in copies.held.values()]
        told = {contact.id: contact for sealed, contact in pairs if not sealed.is_tombstone}
        return tuple(sealed for sealed, _ in pairs), tuple(told.values())

    def drop(self, key: bytes) -> None:
        """The key is stored here now: what is held is the truth, and copies of it are not."""
        copies = self._keys.pop(key, None)
        if copies is None:
            return
        self._senders[copies.sender] -= 1
        if not self._senders[copies.sender]:
            del self._senders[copies.sender]
        if copies.group is not None:
            self._groups[copies.group] -= 1
            if not self._groups[copies.group]:
                del self._groups[copies.group]

    def banish(self, signer: PeerId) -> None:
        """Drop the copies of every key under which something of this signer lies."""
        for key, copies in list(self._keys.items()):
            if any(signer in (one.provider, one.owner) for one in copies.held):
                self.drop(key)

    def _expire(self, now: float) -> None:
        for key in [key for key, copies in self._keys.items() if copies.until <= now]:
            self.drop(key)
