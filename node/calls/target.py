"""What a caller names, and what of all that was found for it may be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, check_task
from modelnet_p2p.offers import Offer, State
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
        if not isinstance(text, str):
            raise LocalError(
                Code.BAD_INPUT, f"what is called is named by a string, not {type(text).__name__}"
            )
        return _parse(text, network, provider)


@lru_cache(maxsize=1024)  # a caller names the same few again and again
def _parse(text: str, network: str, provider: PeerId | None) -> Target:
    if text.startswith(TASK_SCHEME):
        task = check_task(text.removeprefix(TASK_SCHEME))
        return Target(Query(network=network, task=task, provider=provider), text, provider is not None)
    uri = ModelUri.parse(text)
    provider = provider or uri.provider
    return Target(replace(Query.of_uri(uri, network), provider=provider), text, provider is not None)


def check_one_owner(target: Target, offers: Sequence[Offer]) -> None:
    """Raises NotFound (ambiguous) if a name is claimed by several owners, whoever of them can be reached.

    `offers` are the best first, and so are the owners in the error. A task asks for any model, so there
    owners may differ.
    """
    owners = list(dict.fromkeys(offer.owner for offer in offers))
    if target.query.model is not None and len(owners) > 1:
        there = {offer.owner for offer in offers if offer.state is not State.DEAD}
        told = [owner if owner in there else f"{owner} (whom nobody serves just now)" for owner in owners]
        raise NotFound(
            f"{target.text!r} is claimed by {len(owners)} owners: {', '.join(told)}",
            code=Code.AMBIGUOUS,
            hint=_choose(target, owners[0]),
        )


def other_owners(target: Target, remembered: PeerId, offers: Sequence[Offer]) -> NotFound:
    """For a name whose remembered owner's model nobody offers, but these are offered under the same name."""
    owners = list(dict.fromkeys(offer.owner for offer in offers))
    verb = "another owner claims" if len(owners) == 1 else "other owners claim"
    return NotFound(
        f"nobody alive offers {target.text!r} of the owner whose model it was before, {remembered};"
        f" {verb} the name: {', '.join(owners)}",
        code=Code.AMBIGUOUS,
        hint=_choose(target, owners[0]),
    )


def _choose(target: Target, owner: str) -> str:
    query = target.query
    uri = ModelUri(query.model or "", query.version or "", PeerId.parse(owner), query.digest)
    return (
        f"modelnet-peer invoke '{uri}' … asks that one; modelnet-peer owner trust {query.model} {owner}"
        " makes it the one that the name means"
    )
