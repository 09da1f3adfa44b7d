"""Drafts become records: offers, and their cards, of which those under one key share a signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from modelnet_p2p.errors import LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.overlay.announcing import Announcement
from modelnet_p2p.records import OfferRecord, Sealed, cards_of_all, seal_offer


class Signing:
    """By one key; what is signed lives for `lifetime` seconds from `wall_us`, unix microseconds."""

    def __init__(self, key: KeyPair, wall_us: Callable[[], int], lifetime: float) -> None:
        self.key = key
        self._wall_us = wall_us
        self._lifetime_us = int(lifetime * 1e6)

    def together(self, drafts: Sequence[OfferRecord]) -> list[Announcement]:
        """Raises LocalError (bad-input, too-large) when no sound record can be made of one of them."""
        now_us = self._wall_us()
        expires_us = now_us + self._lifetime_us
        offers = [
            seal_offer(replace(draft, issued_us=now_us, expires_us=expires_us), self.key) for draft in drafts
        ]
        return list(map(Announcement, offers, records_of(offers, self.key)))

    def each(self, drafts: Sequence[OfferRecord]) -> list[Announcement | LocalError]:
        """Together if that can be; else one by one, and those that cannot be signed say why."""
        try:
            return list(self.together(drafts))
        except LocalError as error:
            return [error] if len(drafts) == 1 else [self.each([draft])[0] for draft in drafts]


def records_of(offers: Sequence[Sealed], key: KeyPair) -> list[dict[bytes, Sealed]]:
    """Each of these offers as it is stored: itself at its own keys, a card at the key of its task and of each
    tag."""
    found = []
    for offer, cards in zip(offers, cards_of_all(offers, key), strict=True):
        records = dict.fromkeys(offer.keys, offer)
        for card in cards:
            records.update(dict.fromkeys(card.keys, card))
        found.append(records)
    return found
