"""What moved an offer to its place beside its state, round trip and load: `ranking`'s reasons, in words."""

from __future__ import annotations

from collections.abc import Sequence

from modelnet_p2p.node.serving.policy.ranking import FAILURE_MEMORY, Experience, Recall, fastest_call
from modelnet_p2p.offers import Offer

LEAST_DOUBT = 0.01  # that is worth a word


def reasons(offers: Sequence[Offer], experience: Recall, now: float, doubt: float = 0.0) -> list[list[str]]:
    """Of each, as `rank` with the same arguments judges it."""
    known = [experience(offer) for offer in offers]
    fastest = fastest_call(known)
    return [[*_expected(seen, fastest, doubt), *_distrust(seen, now)] for seen in known]


def _expected(seen: Experience | None, fastest: float, doubt: float) -> list[str]:
    """Why it is expected to need so long."""
    if seen is not None and seen.call_ms is not None:
        return [f"own calls took about {_took(seen.call_ms)}"]
    told = []
    if fastest:
        told.append(f"no own call yet: counted as {_took(fastest)}, the fastest other, and a round trip")
    if doubt >= LEAST_DOUBT:
        told.append(f"a stranger's word counts less: of those that said they are idle {doubt:.0%} were busy")
    return told


def _distrust(seen: Experience | None, now: float) -> list[str]:
    if seen is None or seen.failed_at is None or seen.trusted(now):
        return []
    ago, left = now - seen.failed_at, seen.failed_at + seen.memory - now
    boasted = seen.memory > FAILURE_MEMORY
    what = "it said that it was idle and refused as busy" if boasted else "a call failed"
    return [f"{what} {_span(ago)} ago, which puts it behind all others for {_span(left)} more"]


def _took(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms >= 1e3 else f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
