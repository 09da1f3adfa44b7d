"""Logging of a process: to stderr, one event a line, as much as MODELNET_LOG says."""

from __future__ import annotations

import logging
import os

LEVELS = {"error": logging.ERROR, "info": logging.INFO, "debug": logging.DEBUG}


def set_up_logging() -> None:
    """Log at MODELNET_LOG (error, info or debug; error if it is not set or something else)."""
    level = LEVELS.get(os.environ.get("MODELNET_LOG", ""), logging.ERROR)
    # force: libp2p writes to the root logger while it is imported, which sets a handler of its own
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
