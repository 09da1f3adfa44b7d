"""Where a command was typed: what a published model's worker needs to find the publisher's code."""

from __future__ import annotations

import os
import sys
from typing import TypedDict


class Publisher(TypedDict):
    """The interpreter, working directory and environment of the one who publishes."""

    interpreter: str
    cwd: str
    environ: dict[str, str]


def publisher() -> Publisher:
    """This process's own; variables that are not Unicode are left out, for they cannot be kept."""
    environ = {name: value for name, value in os.environ.items() if _is_unicode(name + value)}
    return {"interpreter": sys.executable, "cwd": os.getcwd(), "environ": environ}


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
