"""Models that talk, as fast as they are told to and no faster: what is measured is the way of their words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator


def words(text: str) -> Iterator[str]:
    """`TOKENS MILLISECONDS`: so many numbered words, each after so long, as from a model of that speed."""
    count, pause = pace(text)
    for number in range(count):
        if pause:
            time.sleep(pause)
        yield f"{number} "


async def crowd(text: str) -> AsyncIterator[str]:
    """The same for many callers at once."""
    count, pause = pace(text)
    for number in range(count):
        await asyncio.sleep(pause)
        yield f"{number} "


crowd.slots = 64  # type: ignore[attr-defined]  # read by whoever serves it: as many as a model may have


def pace(text: str) -> tuple[int, float]:
    count, milliseconds = text.split()
    return int(count), float(milliseconds) / 1000


def same(text: str) -> str:
    return text
