"""What a search for a list of models found a moment ago: some clients ask for it before each call."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from modelnet_p2p.offers import Offer

FRESH_SECONDS = 2.0  # for which a list is good


class Lists:
    """What was found for each task a moment ago."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, Sequence[Offer]]] = {}

    def recall(self, where: str) -> Sequence[Offer] | None:
        at, offers = self._found.get(where, (float("-inf"), ()))
        return offers if trio.current_time() - at <= FRESH_SECONDS else None

    def keep(self, where: str, offers: Sequence[Offer]) -> None:
        self._found.clear()  # few ask for more than one, and all are old soon
        self._found[where] = trio.current_time(), offers
