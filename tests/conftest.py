"""What holds for all tests, however they were started."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# how long an example takes is the machine's business: a busy one must fail no test
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Nothing is inherited by accident."""
    # a shell ignores Ctrl-C for what it starts in the background, and what that starts inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # readline, which pytest imports, tells its workers a terminal's size: to what they start it never changes
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with real sockets and processes are one group: never two of them at a time."""
    for item in items:
        if item.get_closest_marker("live") or item.get_closest_marker("js"):
            item.add_marker(pytest.mark.xdist_group("live"))
