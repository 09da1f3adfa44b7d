"""What stands on a terminal at this moment: for programs that draw on it, and lines that are being typed."""

from __future__ import annotations

import re
import time

from tmux import Tmux

PATIENCE = 30.0  # seconds for something to appear on a busy machine
LOOK_EVERY = 0.05  # seconds


def visible(tmux: Tmux, name: str) -> list[str]:
    """The lines of the terminal `name`, without what has scrolled away."""
    return [line.rstrip() for line in tmux.tell("capture-pane", "-p", "-t", f"{name}:").splitlines()]


def wait_for(tmux: Tmux, name: str, pattern: str) -> list[str]:
    """Its lines as soon as they hold the pattern."""
    until = time.monotonic() + PATIENCE
    while not re.search(pattern, "\n".join(lines := visible(tmux, name)), re.MULTILINE):
        assert time.monotonic() < until, f"{pattern!r} is not on the screen:\n" + "\n".join(lines)
        time.sleep(LOOK_EVERY)
    return lines


def type_in(tmux: Tmux, name: str, text: str, *keys: str) -> None:
    """Type `text` and then keys by tmux's names for them, such as `Enter`."""
    tmux.tell("send-keys", "-t", f"{name}:", "-l", text)
    tmux.tell("send-keys", "-t", f"{name}:", *keys)
