"""What a caller names, and what of all that was found for it may be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from modelnet_p2p.errors import Code, NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, check_task
from modelnet_p2p.offers import Offer
from modelnet_p2p.query import Query

TASK_SCHEME = "task:"


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be called: a query, and whether the call may move between providers."""

    query: Query
    text: str
    pinned: bool

    @classmethod
    def parse(cls, text: str, network: str, provider: PeerId | None = None) -> Target:
        """A model name, a `modelnet:` URI or `task:TASK`; raises LocalError (bad-input)."""
        return _parse(text, network, provider)


@lru_cache(maxsize=1024)  # a caller names the same few again and again
def _parse(text: str, network: str, provider: PeerId | None) -> Target:
    if text.startswith(TASK_SCHEME):
        task = check_task(text.removeprefix(TASK_SCHEME))
        return Target(Query(network=network, task=task, provider=provider), text, provider is not None)
    uri = ModelUri.parse(text)
    provider = provider or uri.provider
    return Target(replace(Query.of_uri(uri, network), provider=provider), text, provider is not None)


def one_owner(target: Target, offers: Sequence[Offer]) -> Sequence[Offer]:
    """Those offers, if they are all of one owner's model; NotFound (ambiguous) if a name has several.

    A task asks for any model, so there owners may differ.
    """
    owners = {offer.owner for offer in offers}
    if target.query.model is not None and len(owners) > 1:
        listed = ", ".join(sorted(owners))
        raise NotFound(
            f"{target.text!r} is claimed by {len(owners)} owners: {listed}",
            code=Code.AMBIGUOUS,
            hint=f"modelnet-peer invoke 'modelnet:{target.query.model}?owner={min(owners)}' …",
        )
    return offers
