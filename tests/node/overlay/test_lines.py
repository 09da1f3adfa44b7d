"""What is told goes over one stream to each peer, and none of it is taken for told and lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.beats import Beat
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.overlay.lines import IDLE_BEATS, Lines
from modelnet_p2p.tuning import TEST

BOB = PeerId.of_key(b"b" * 32)


class Slow:
    """A stream whose end takes a while."""

    def __init__(self, carried: list[bytes]) -> None:
        self._carried = carried

    async def __aenter__(self) -> Slow:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def send(self, parts: list[bytes]) -> None:
        self._carried += parts

    async def finish(self) -> None:
        await trio.sleep(1.0)


class Neighbourhood:
    """An overlay and its network, as far as lines need them."""

    tuning = TEST
    name = "lines"

    def __init__(self) -> None:
        self.network: Any = self
        self.streams: list[list[bytes]] = []

    def connected(self) -> set[PeerId]:
        return {BOB}

    async def open_stream(self, peer: PeerId, protocol: str) -> Slow:
        self.streams.append([])
        return Slow(self.streams[-1])


@pytest.mark.parametrize("pause", [0.0, 0.5, 2.0])
async def test_who_is_told_something_while_a_line_closes_hears_it_over_another(
    pause: float, autojump_clock: trio.testing.MockClock
) -> None:
    there: Any = Neighbourhood()
    async with trio.open_nursery() as nursery:
        lines = Lines(there, "beat", nursery, lambda peer: None)
        assert lines.tell(BOB, Beat(BOB, 1, 1, b"first"))
        await trio.sleep(IDLE_BEATS * TEST.beat + pause)
        assert lines.tell(BOB, Beat(BOB, 1, 2, b"second"))
        await trio.sleep(30)
    assert [message for stream in there.streams for message in stream] != []
    assert sum(b"second" in message for stream in there.streams for message in stream) == 1
