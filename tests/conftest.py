"""What holds for all tests, however they were started."""

from __future__ import annotations

import signal

from hypothesis import settings

# how long an example takes is the machine's business: a busy one must fail no test
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """A shell ignores Ctrl-C for what it starts in the background, and what that starts inherits it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
