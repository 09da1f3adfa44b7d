"""When this machine has no descriptor, process or memory left: `busy`, for it passes."""

from __future__ import annotations

import errno

from modelnet_p2p.errors import Code, LocalError

SCARCE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS}
)


def is_scarce(error: Exception) -> bool:
    """Whether the machine ran out: a system call says so by its number, a thread by RuntimeError."""
    return isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno in SCARCE)


def no_more(what: str, error: Exception) -> LocalError:
    """What to tell whoever wanted `what`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LocalError(
        Code.BUSY,
        f"{what}: {reason}",
        hint="this machine has none left: try again later, or raise its limits (ulimit -n, ulimit -u)",
    )
