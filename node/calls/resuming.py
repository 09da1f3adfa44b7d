"""One answer from more than one provider: a stream whose provider dies goes on at another of the same digest.

Only where the model says that it repeats itself (`deterministic`), and only if it then does: what the
other provider gives first is compared with what was delivered already, item by item by one running hash,
and left out. Where it differs, the stream ends with the loss: nothing delivered is changed or repeated.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Collection
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, NotFound, RemoteError
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node.calls.outcome import Begun, OnBegin, OnItem, Outcome
from modelnet_p2p.node.calls.tries import is_loss
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value, encode_value

log = logging.getLogger(__name__)

MAX_RESUMED = 3  # providers that may die under one answer


class CallOnce(Protocol):
    """One call of a target, of none of the providers in `avoid`, within that many seconds."""

    def __call__(
        self, target: str, timeout: float, avoid: Collection[str], on_begin: OnBegin, on_item: OnItem
    ) -> Awaitable[Outcome]: ...


async def relay(call: CallOnce, target: str, timeout: float, on_begin: OnBegin, on_item: OnItem) -> Outcome:
    """Call `target`; each item goes to `on_item`, which may be slow: the model then waits. The one answer of
    a model that does not stream is an item, too.

    `on_begin` is told once, when the first provider has begun to answer. Raises what the call raises, and
    after the first item RemoteError where nobody could go on.
    """
    until = trio.current_time() + timeout
    answer, dead = _Answer(on_begin, on_item), list[str]()
    lost: RemoteError | None = None
    crashed = False  # a model's process died while it was at this call: another one may be its fault
    while True:
        answer.offer = None
        left = until - trio.current_time()
        if lost is not None and left <= 0:  # nobody could begin in no time
            raise lost
        try:
            outcome = await call(target, left, dead, answer.begin, answer.add)
            await answer.end(outcome)
            return outcome
        except (RemoteError, NotFound) as error:
            offer = answer.offer
            if offer is None or isinstance(error, NotFound):  # nobody else began
                raise lost or error from error
            if not (answer.keeps and is_loss(error) and len(dead) < MAX_RESUMED) or answer.differs:
                raise
            if crashed and error.code is Code.MODEL_ERROR:
                raise
            lost, crashed = error, crashed or error.code is Code.MODEL_ERROR
            dead.append(offer.provider)
            target = str(
                ModelUri(offer.record.name, offer.record.version, offer.record.owner, offer.record.digest)
            )
            log.info("%s was lost after %d items; another one is asked", offer.provider[-8:], answer.items)


def resumable(offer: Offer) -> bool:
    """Whether another provider of the very same model would give the very same answer."""
    return offer.record.digest is not None and "deterministic" in offer.record.gives


class _Answer:
    """What a caller has had of an answer: how many items, and one hash of them all."""

    def __init__(self, on_begin: OnBegin, on_item: OnItem) -> None:
        self.items = 0
        self.keeps = False  # whether the hash is
        self.differs = False  # who went on with it did not repeat it
        self.offer: Offer | None = None  # of whoever has begun to answer now
        self._on_begin = on_begin
        self._on_item = on_item
        self._began = False  # who was asked first
        self._hash = hashlib.sha256()
        self._left = 0  # items to come that were delivered before ...
        self._again = self._hash  # ... and the hash of those that have

    async def begin(self, begun: Begun) -> None:
        self.offer = begun.offer
        if not self._began:
            await self._on_begin(begun)
            self._began, self.keeps = True, resumable(begun.offer)
        else:
            self._left, self._again = self.items, hashlib.sha256()

    async def add(self, item: Value) -> None:
        """Pass it on, unless it was before; raises RemoteError where those are others now."""
        if self._left:
            self._left -= 1
            _feed(self._again, item)
            if not self._left and self._again.digest() != self._hash.digest():
                raise self._on_difference()
            return
        self.items += 1
        if self.keeps:
            _feed(self._hash, item)
        await self._on_item(item)

    async def end(self, outcome: Outcome) -> None:
        """It has ended well; raises RemoteError where less came than before."""
        if self._left:
            raise self._on_difference()
        if not self.items and self.offer is not None and "items" not in self.offer.record.gives:
            await self._on_item(outcome.output)

    def _on_difference(self) -> RemoteError:
        self.differs = True
        provider = self.offer.provider if self.offer is not None else ""
        return RemoteError(
            Code.MODEL_ERROR,
            f"the provider was lost after {self.items} items, and {provider} does not repeat them",
            peer=provider,
            hint="ask again from the start, with a seed if answers are drawn",
            retryable=True,
        )


def _feed(into: hashlib._Hash, item: Value) -> None:
    for buffer in encode_value(item).buffers:
        into.update(buffer)
    into.update(b"|")
