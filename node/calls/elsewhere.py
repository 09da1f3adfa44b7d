"""Who else serves a model, as far as this peer knows without asking anybody: for callers whom it must refuse.

It looks at the records that it holds for others. In a small network those are all; in a large one a busy peer
often knows nobody, and its callers search as they would have without. Nothing follows from what is said here
but that somebody is asked next: whoever is told of a peer reads and checks its offer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.records import OfferRecord

PAGE_BYTES = 1 << 16  # of records looked at: the first of a crowd are as good as all


class Elsewhere:
    """Other providers of models of this peer's."""

    def __init__(self, overlay: Overlay, rng: random.Random) -> None:
        self._overlay = overlay
        self._rng = rng
        self.is_dead: Callable[[PeerId, int], bool] = lambda peer, issued_us: False

    def name(self, description: Description) -> str:
        """The id of one of them, at random: they share what is refused here. Empty if none is known."""
        keys = Keys(self._overlay.name)
        name = keys.digest(description.digest) if description.digest else keys.model(description.name)
        page = self._overlay.server.store.page(provider_key(name), b"", PAGE_BYTES)
        others = {
            sealed.record.provider.text
            for sealed in page.sealeds
            if isinstance(sealed.record, OfferRecord) and self._fits(sealed.record, description)
        }
        return self._rng.choice(sorted(others)) if others else ""

    def _fits(self, record: OfferRecord, description: Description) -> bool:
        same = (record.name, record.version, record.digest) == (
            description.name,
            description.version,
            description.digest,
        )
        envelope, me = description.manifest_envelope, self._overlay.me
        owned = record.owner == me if envelope is None else record.manifest_envelope == envelope
        lives = record.expires_us > self._overlay.wall_us()
        other = record.provider != me
        return same and owned and lives and other and not self.is_dead(record.provider, record.issued_us)
