"""Where the figures are taken: sixteen peers in four processes on loopback, one of them serving an echo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import PeerProcess, Troupe

HERE = Path(__file__).resolve().parent
PROCESSES, PEERS_EACH = 4, 4
PEERS = PROCESSES * PEERS_EACH


@dataclass(slots=True)
class Swarm:
    """A running swarm; `address` is what a newcomer knows; one of its peers serves the echo."""

    troupe: Troupe
    first: PeerProcess
    quick: bool

    @property
    def address(self) -> str:
        return self.first.address

    @property
    def network(self) -> str:
        return self.troupe.network

    def rounds(self, quick: int, full: int) -> int:
        return quick if self.quick else full


@contextmanager
def open_swarm(quick: bool) -> Iterator[Swarm]:
    with Troupe() as troupe:
        each = ["--peers", str(PEERS_EACH)]
        (first,) = troupe.start_module("h0", module="benches.host", arguments=each, cwd=HERE)
        known = [*each, "--bootstrap", first.address]
        others = [f"h{number}" for number in range(2, PROCESSES)]
        troupe.start_module(*others, module="benches.host", arguments=known, cwd=HERE)
        serving = [*known, "--publish"]
        troupe.start_module("h1", module="benches.host", arguments=serving, cwd=HERE)
        yield Swarm(troupe, first, quick)
