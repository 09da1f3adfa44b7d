"""The providers that are asked for one call, one after the other, and when it may move on.

At most once per provider. Another one is asked after `busy`, after `unreachable` before the call was sent,
and after a loss before the first item if the offer says that repeating is harmless (`idempotent`); if the
model's process died beside other calls, one more, and no third: this call may be what it dies of. One that
could not be reached where it was remembered is asked again where it is found now. A busy one may name
another, who is then asked first, without a new search. Where the last one to be found says that it serves
the model no longer, it is sought once more, for it may have moved. A call that names its provider never
moves.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, ModelnetError, NotFound, RemoteError
from modelnet_p2p.node.calls.client import Progress, no_answer
from modelnet_p2p.node.calls.target import Target
from modelnet_p2p.node.deadlines import too_late
from modelnet_p2p.offers import Offer
from modelnet_p2p.query import Query

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5  # providers asked for one call; were all of these dead, the sixth is no better bet


class Finds(Protocol):
    """Where offers come from, and where it is noted what became of them."""

    def recall(self, query: Query) -> Sequence[Offer] | None: ...

    async def find(self, target: Target, until: float) -> Sequence[Offer]: ...

    async def find_at(self, target: Target, provider: str, like: Offer) -> Offer | None: ...

    def note(self, target: Target, offer: Offer, error: RemoteError) -> None: ...


class Tries:
    """The offers that are asked for one call, one after the other."""

    def __init__(
        self,
        finds: Finds,
        target: Target,
        until: float,
        avoid: Collection[str] = (),
        *,
        repeatable: bool = False,
    ) -> None:
        """Those in `avoid` are left out; `repeatable`: to ask twice does no harm, whatever the offer says."""
        self.number = 0  # of providers asked
        self.progress = Progress()  # with the last one
        self._last: RemoteError | None = None
        self._finds = finds
        self._target = target
        self._until = until
        self._offers = finds.recall(target.query)
        self._fresh = self._offers is None
        self._gone = False  # said one of those that were found just now
        self._again = False  # it was sought once more for that
        self._asked: set[str] = set(avoid)
        self._repeatable = repeatable
        self._asking: Offer | None = None
        self._hint: tuple[str, Offer] | None = None  # a provider that a busy one named, and that busy one
        self._crashed = False  # a model's process died while it was at this call
        self._hinted = False  # one hint is followed: a chain of them could lead anywhere

    @property
    def last(self) -> ModelnetError:
        """Why nobody answered; whom a busy one named is left in it only if nobody has asked there."""
        if self._last is not None:
            if self._last.instead in self._asked:
                self._last.instead = ""
            return self._last
        query = self._target.query  # also if the only one to be found says that it does so no more
        at = f" at peer {query.provider}" if query.provider else ""
        hint = "modelnet-peer find --task TASK lists who offers what"
        return NotFound(f"nobody alive offers {self._target.text!r}{at}", hint=hint)

    async def next(self) -> Offer | None:
        """Whom to ask now; None: there is nobody else, or no time, and `last` says why."""
        self._asking = None
        if self.number >= MAX_ATTEMPTS:
            return None
        offer = await self._follow_hint()
        if offer is None:
            if self._offers is None:
                self._offers = await self._finds.find(self._target, self._until)
            offer = next_candidate(self._target, self._offers, self._asked)
        if offer is None and self._gone and not self._target.pinned:
            self._gone, self._again = False, True
            self._offers = await self._finds.find(self._target, self._until)
            offer = next_candidate(self._target, self._offers, self._asked)
        if offer is None or (self.number and trio.current_time() >= self._until):
            return None
        self.number += 1
        self._asked.add(offer.provider)
        self.progress = Progress()
        self._asking = offer
        return offer

    async def _follow_hint(self) -> Offer | None:
        """The offer of whom a busy provider named, if it has one that is meant; else all goes on without."""
        hint, self._hint = self._hint, None
        if hint is None:
            return None
        provider, busy = hint
        found = next((offer for offer in self._offers or () if offer.provider == provider), None)
        if found is None:
            found = await self._finds.find_at(self._target, provider, busy)
        if found is None:
            self._seek_anew()
        return found

    def _seek_anew(self) -> None:
        """What was remembered disappoints."""
        if not self._fresh:
            self._fresh, self._offers = True, None

    def go_on(self, offer: Offer, error: RemoteError, *, begun: bool) -> bool:
        """The call of `offer` failed; whether the next one may be asked."""
        self._finds.note(self._target, offer, error)
        if begun or not may_move(error, self.progress, offer, self._repeatable):
            return False
        if error.code is Code.MODEL_ERROR:
            if self._crashed:
                return False
            self._crashed = True
        log.info("%s did not answer %s: %s", offer.provider[-8:], self._target.text, error.message)
        self._last = self._last if error.code is Code.NOT_FOUND else error
        self._gone = self._gone or (error.code is Code.NOT_FOUND and self._fresh and not self._again)
        if self._may_follow(error):
            self._hint, self._hinted = (error.instead, offer), True
            return True
        if not self._fresh and not self.progress.sent:  # also where this provider is now
            self._asked.discard(offer.provider)
        self._seek_anew()
        return True

    def _may_follow(self, error: RemoteError) -> bool:
        is_new = bool(error.instead) and error.instead not in self._asked
        return error.code is Code.BUSY and is_new and not self._hinted and not self._target.pinned

    def too_late(self, timeout: float) -> RemoteError:
        """The call's time was over, whatever it was at."""
        if self._asking is None:
            return search_too_long(self._target, "")
        error = no_answer(self._asking.record.provider, timeout)
        self._finds.note(self._target, self._asking, error)
        return error


def next_candidate(target: Target, offers: Sequence[Offer], asked: Collection[str]) -> Offer | None:
    """The first offer of a provider that was not asked yet; a call that names its provider has but one."""
    if target.pinned and asked:
        return None
    return next((offer for offer in offers if offer.provider not in asked), None)


def may_move(error: RemoteError, progress: Progress, offer: Offer, repeatable: bool = False) -> bool:
    """Whether another provider may be asked after this failure without doing the work twice."""
    if error.code in (Code.BUSY, Code.NOT_FOUND):  # refused, or no longer served there: it has not begun
        return True
    if not progress.sent:  # nothing can have run there
        return True
    harmless = repeatable or offer.record.idempotent
    return is_loss(error) and progress.items == 0 and harmless


def is_loss(error: RemoteError) -> bool:
    """Whether who answered is gone: the provider, the connection to it, or the model's process, where other
    calls may be the cause. One that died at a lone call would die of it elsewhere, too."""
    return error.code is Code.UNREACHABLE or (error.code is Code.MODEL_ERROR and error.retryable)


def search_too_long(target: Target, because: str) -> RemoteError:
    words = f"the search for {target.text!r} took longer than the call's time"
    return too_late(words, "a longer timeout", because)
