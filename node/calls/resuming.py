"""One answer from more than one provider: a stream whose provider dies goes on at another of the same digest.

Only where the model says that it repeats itself (`deterministic`), and only if it then does: what the
other provider gives first is compared with what was delivered already, item by item by one running hash,
and left out. Where it differs, the stream ends with the loss: nothing delivered is changed or repeated.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, NotFound, RemoteError
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node.calls.router import OnItem, Outcome, Running
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value, encode_value

log = logging.getLogger(__name__)

MAX_RESUMED = 3  # providers that may die under one answer
LOST = frozenset({Code.UNREACHABLE})  # the provider, or the connection to it, is gone


class Open(Protocol):
    """Begins the call of a target, at none of the providers in `avoid`, within that many seconds."""

    def __call__(
        self, target: str, timeout: float, avoid: Collection[str]
    ) -> AbstractAsyncContextManager[Running]: ...


OnBegin = Callable[[Running], Awaitable[None]]


async def relay(open_call: Open, target: str, timeout: float, on_begin: OnBegin, on_item: OnItem) -> Outcome:
    """Call `target`; each item goes to `on_item`, which may be slow: the model then waits.

    `on_begin` is told once, when the first provider has begun to answer. Raises what the call raises, and
    after the first item RemoteError where nobody could go on.
    """
    until = trio.current_time() + timeout
    told, dead = _Delivered(), list[str]()
    lost: RemoteError | None = None
    while True:
        offer: Offer | None = None
        left = until - trio.current_time()
        if lost is not None and left <= 0:  # nobody could begin in no time
            raise lost
        try:
            async with open_call(target, left, dead) as running:
                offer = running.offer
                if lost is None:
                    await on_begin(running)
                    told.keeps = resumable(offer)
                await _pass_on(running, told, on_item)
            assert running.outcome is not None
            return running.outcome
        except (RemoteError, NotFound) as error:
            if offer is None or isinstance(error, NotFound):  # nobody else began
                raise lost or error from error
            if not (told.keeps and error.code in LOST and len(dead) < MAX_RESUMED):
                raise
            lost = error
            dead.append(offer.provider)
            target = str(
                ModelUri(offer.record.name, offer.record.version, offer.record.owner, offer.record.digest)
            )
            log.info("%s was lost after %d items; another one is asked", offer.provider[-8:], told.items)


def resumable(offer: Offer) -> bool:
    """Whether another provider of the very same model would give the very same answer."""
    return offer.record.digest is not None and "deterministic" in offer.record.gives


class _Delivered:
    """What a caller has had of an answer: how many items, and one hash of them all."""

    def __init__(self) -> None:
        self.items = 0
        self.keeps = False  # whether the hash is
        self.hash = hashlib.sha256()

    def add(self, item: Value) -> None:
        self.items += 1
        if self.keeps:
            _feed(self.hash, item)


async def _pass_on(running: Running, told: _Delivered, on_item: OnItem) -> None:
    """The items that follow those that were delivered; raises RemoteError where those are others now."""
    again, before = hashlib.sha256(), told.items
    left = before
    async for item in running:
        if left:
            left -= 1
            _feed(again, item)
            if not left and again.digest() != told.hash.digest():
                raise _differs(running.offer, before)
            continue
        told.add(item)
        await on_item(item)
    if left:
        raise _differs(running.offer, before)


def _feed(into: hashlib._Hash, item: Value) -> None:
    for buffer in encode_value(item).buffers:
        into.update(buffer)
    into.update(b"|")


def _differs(offer: Offer, items: int) -> RemoteError:
    return RemoteError(
        Code.MODEL_ERROR,
        f"the provider was lost after {items} items, and {offer.provider} answers the same call otherwise",
        peer=offer.provider,
        hint="ask again from the start",
    )
