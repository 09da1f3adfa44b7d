"""Logging of a process: to stderr, one event a line, as much as MODELNET_LOG says."""

from __future__ import annotations

import logging
import os

LEVELS = {"error": logging.ERROR, "info": logging.INFO, "debug": logging.DEBUG}


def chosen_level() -> int:
    """What MODELNET_LOG says: error, info or debug; error if it is not set or something else."""
    return LEVELS.get(os.environ.get("MODELNET_LOG", ""), logging.ERROR)


def set_up_logging() -> None:
    """Log at the chosen level, to stderr."""
    level = chosen_level()
    # force: what a library or an earlier call has set up in this process is replaced
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
