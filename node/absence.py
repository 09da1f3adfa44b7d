"""Why a search found nothing, where there is a reason to tell: a revoked key, another version, a wrong clock.

Asked only where nothing was found, so it may cost another look, but never the answer: it takes a part of the
asker's time, and where that is over no reason is told. A wrong clock comes last: who sees any records of what
is meant has no need of it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import trio

from modelnet_p2p.errors import NotFound, RemoteError
from modelnet_p2p.node.checkup.health import MAX_SKEW, clock_off
from modelnet_p2p.node.clocks import Clocks
from modelnet_p2p.node.ending import Ending
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.offers import Offer
from modelnet_p2p.query import Query

log = logging.getLogger(__name__)

SHARE = 0.5  # of the time that the asker has left, for all reasons together
VERSIONS_SECONDS = 3.0  # for the look at which versions there are
MAX_OFFERS = 64  # that this look takes
MAX_TOLD = 6  # versions in one line


class Absence:
    """One peer's reasons."""

    def __init__(self, ending: Ending, finder: Finder, clocks: Clocks, owners: Owners) -> None:
        self._ending = ending
        self._finder = finder
        self._clocks = clocks
        self._owners = owners

    async def why(self, query: Query, what: str, tally: Tally) -> NotFound | None:
        """Why nobody offers `what`, which `query` asks for, by a search that just went as `tally` says; None
        where no reason is known."""
        left = max(0.0, trio.current_effective_deadline() - trio.current_time())
        with trio.move_on_after(SHARE * left):
            try:
                return (
                    await self._ending.why(query, what)
                    or await self._other_versions(query, what)
                    or await self._wrong_clock(what, tally)
                )
            except RemoteError as error:
                log.debug("why nobody offers %s is not known: %s", what, error.message)
        return None

    async def _other_versions(self, query: Query, what: str) -> NotFound | None:
        """The versions that the meant owner's model is offered in, where another one was asked for."""
        if query.version is None or query.model is None:
            return None
        owner = query.owner or self._owners.meant(query)
        offers: list[Offer] = []
        with trio.move_on_after(VERSIONS_SECONDS):
            offers = await self._finder.find(replace(query, version=None, owner=owner), MAX_OFFERS)
        versions = sorted({offer.record.version for offer in offers}, key=_by_number)
        if not versions:
            return None
        return NotFound(
            f"nobody alive offers {what!r}: {_told(versions)} of {query.model} {_are(versions)} there",
            hint=f"modelnet-peer find --model {query.model} lists what is there",
        )

    async def _wrong_clock(self, what: str, tally: Tally) -> NotFound | None:
        """Where all that was read was refused as over or not begun. Not if other peers' clocks are as this
        one: then it is what somebody left behind."""
        refused = tally.all_untimely
        if not refused:
            return None
        if self._clocks.ahead is None:
            await self._clocks.ask()
        ahead = self._clocks.ahead
        if ahead is not None and abs(ahead) <= MAX_SKEW:
            return None
        records = "a record was" if refused == 1 else f"{refused} records were"
        cause = "this clock may be wrong" if ahead is None else clock_off(ahead, self._clocks.asked)
        return NotFound(
            f"nothing is found for {what!r}, for {records} refused as over or not yet valid: {cause}",
            hint="date -u, and set it; modelnet-peer doctor checks again",
        )


def _by_number(version: str) -> tuple[bool, int, str]:
    return not version.isdecimal(), int(version) if version.isdecimal() else 0, version


def _told(versions: list[str]) -> str:
    named = [version for version in versions if version]
    words = [*named[:MAX_TOLD], *(["…"] if len(named) > MAX_TOLD else [])]
    both = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
    told = [f"version{'s' * (len(named) > 1)} {both}"] if named else []
    return " and ".join([*told, *(["one without a version"] if len(named) < len(versions) else [])])


def _are(versions: list[str]) -> str:
    return "is" if len(versions) == 1 else "are"
