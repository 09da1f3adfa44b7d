"""The smallest model: what it costs to call it is what a call costs."""

from __future__ import annotations


def same(value: object) -> object:
    return value
