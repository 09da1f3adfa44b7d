"""Logging of a process: to stderr, one event a line, as much as MODELNET_LOG says.

A worker writes what its model prints, and its own log, where `worker_output` says: the peer's stderr, unless
the peer keeps a log file that shall have it too (see logfile.py).
"""

from __future__ import annotations

import logging
import os

LEVELS = {"error": logging.ERROR, "info": logging.INFO, "debug": logging.DEBUG}
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STDERR = 2

_worker_output = STDERR


def chosen_level() -> int:
    """What MODELNET_LOG says: error, info or debug; error if it is not set or something else."""
    return LEVELS.get(os.environ.get("MODELNET_LOG", ""), logging.ERROR)


def set_up_logging() -> None:
    """Log at the chosen level, to stderr."""
    level = chosen_level()
    # force: what a library or an earlier call has set up in this process is replaced
    logging.basicConfig(level=level, format=FORMAT, force=True)


def worker_output() -> int:
    """The descriptor that worker processes get as their stdout and stderr."""
    return _worker_output


def send_worker_output(descriptor: int) -> None:
    """From now on workers are started with this descriptor; as process-wide as stderr itself."""
    global _worker_output
    _worker_output = descriptor
