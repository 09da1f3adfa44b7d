"""What is worth a word about a running peer, read off the maps that it tells of itself.

Pure, so that the command that prints them once and the screen that shows them for hours say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Status = Mapping[str, Any]  # Any: the contract's `status` object, perhaps of another version of this program

FAILURES = 3  # in a row: one is a caller's odd input, three are a model that is broken
# of records within a minute: a few come with any restart on the other side
EXPIRED = 3
REFUSED = 20
MAX_SKEW = 300  # seconds between two clocks: more, and what one of them signs now is refused by the other
_TROUBLING = ("forged", "unsigned", "wrong_owner", "oversized", "malformed")  # `stale` is ordinary


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that may be wrong, with the next step."""

    code: str
    message: str
    hint: str
    grave: bool = True  # False: it is so by default, and perhaps meant

    def to_map(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "hint": self.hint}


def concerns(status: Status, earlier: Status | None = None, flag: str = "") -> list[Concern]:
    """The worst first. `earlier` is what the same peer said a minute ago, if that is known; `flag` is
    ` --home DIR` where the commands in the hints need it."""
    found = [
        *_models(status.get("models") or (), flag),
        *_ended(status.get("ended") or (), flag),
        *_company(status, flag),
        *_clock(status, flag),
        *_refusals(status, earlier, flag),
    ]
    return sorted(found, key=lambda concern: not concern.grave)


def _ended(models: Sequence[Status], flag: str) -> list[Concern]:
    found = []
    for model in models:
        ended, revoked = _day(model.get("ended_unix")), _day(model.get("issued_unix"))
        words = (
            f"{model.get('model')} is served no more since {ended}: the key {model.get('revoked')},"
            f" which sealed it, was revoked on {revoked}"
        )
        because = f": {model['reason']}" if model.get("reason") else ""
        step = f"with a seal of its owner's new key: modelnet-peer publish SOURCE --manifest FILE{flag}"
        found.append(Concern("ended", words + because, step))
    return found


def _day(unix: object) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d}" if isinstance(unix, int) else "a day unknown"


def _models(models: Sequence[Status], flag: str) -> list[Concern]:
    found = []
    for model in models:
        name, failing = model.get("model"), model.get("failing") or 0
        if model.get("state") == "failed":
            step = f"modelnet-peer logs{flag} says why; to forget it: modelnet-peer unpublish {name}{flag}"
            found.append(Concern("lost", f"{name} could not be loaded again", step))
        elif model.get("state") == "upstream away":
            step = f"{model.get('upstream')} is looked at again and again; start it, or unpublish it"
            found.append(Concern("upstream", f"{name} is not published now: {model.get('why')}", step))
        elif model.get("state") == "crashing":
            words = f"the process of {name} dies again and again: calls of it are refused until it stays"
            found.append(Concern("crashing", words, f"modelnet-peer logs{flag} says of what"))
        elif failing >= FAILURES:
            words = f"{name} failed {failing} times in a row: {model.get('failed_with')}"
            found.append(Concern("failing", words, f"modelnet-peer logs{flag} says where"))
    return found


def _company(status: Status, flag: str) -> list[Concern]:
    addrs = status.get("addrs") or ()
    loopback = all(str(addr).startswith(("/ip4/127.", "/ip6/::1/")) for addr in addrs)
    if status.get("connections") == 0:
        step = f"restart it with modelnet-peer join --lan{flag}, or join --bootstrap MULTIADDR{flag}"
        return [Concern("alone", "no other peer is connected", step)]
    if addrs and loopback:
        step = f"to open it to the local network: modelnet-peer join --lan{flag}"
        return [Concern("loopback", "only this machine can reach it", step, grave=False)]
    return []


def _clock(status: Status, flag: str) -> list[Concern]:
    clock = status.get("clock") or {}
    ahead, peers = clock.get("ahead_s"), clock.get("peers")
    if ahead is None or abs(ahead) <= MAX_SKEW:
        return []
    words = f"{clock_off(ahead, peers)}: records are refused, here or there"
    return [Concern("clock", words, f"date -u, and set it; modelnet-peer doctor{flag} checks again")]


def clock_off(ahead: float, peers: object) -> str:
    """By how many seconds this clock is ahead of so many peers', in words."""
    off = f"{abs(ahead) / 60:.0f} min {'ahead of' if ahead > 0 else 'behind'}"
    whose = "that of the peer" if peers == 1 else f"those of the {peers} peers"
    return f"this clock is {off} {whose} asked"


def _refusals(status: Status, earlier: Status | None, flag: str) -> list[Concern]:
    if earlier is None or (status.get("uptime_s") or 0) < (earlier.get("uptime_s") or 0):
        return []
    before, now = earlier.get("refused") or {}, status.get("refused") or {}
    more = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    found = []
    if more.get("expired", 0) >= EXPIRED and not _clock(status, flag):  # which says it better
        words = f"{more['expired']} records of others were not valid now: this clock or theirs is wrong"
        found.append(Concern("clock", words, f"date -u, and modelnet-peer doctor{flag}"))
    troubling = {reason: more[reason] for reason in _TROUBLING if more.get(reason, 0) > 0}
    if sum(troubling.values()) >= REFUSED:
        reasons = ", ".join(f"{count} {reason}" for reason, count in troubling.items())
        words = f"bad records keep coming and are refused: {reasons}"
        found.append(Concern("refused", words, f"modelnet-peer logs{flag} names who sends them"))
    return found
