"""The one guard around a stranger's code: importing a model, making it, and running it."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from modelnet_p2p.errors import Code, LocalError, ModelnetError

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_FAULT_CHARS = 500  # of a stranger's exception: one line for people, not a dump


async def guarded(step: Awaitable[T]) -> T:
    """One step of a stranger's model, inside of the guard; each token is one, so it is the guard itself."""
    try:
        return await step
    except ModelnetError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(error, Code.MODEL_ERROR, "the model raised ") from error


@contextmanager
def guard(code: Code, prefix: str, hint: str = "", level: int = logging.ERROR) -> Iterator[None]:
    """The one guard around a stranger's code: what it raises, `sys.exit` included, is logged (a line, at
    `level`; its traceback at `info`) and becomes a LocalError of that code, whose message is `prefix` and
    what a traceback ends with. Typed errors pass."""
    try:
        yield
    except ModelnetError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(error, code, prefix, hint, level) from error


def _fault(
    error: BaseException, code: Code, prefix: str, hint: str = "", level: int = logging.ERROR
) -> LocalError:
    words = last_line(error)
    log.log(level, "%s%s%s", prefix, words, _where(error))
    log.info("its traceback", exc_info=error)
    return LocalError(code, f"{prefix}{words}", hint=hint)


def last_line(error: BaseException) -> str:
    """What a traceback ends with: the exception's type and text, on one bounded line."""
    text = "".join(traceback.format_exception_only(error)).strip() or type(error).__name__
    if isinstance(error, SyntaxError):  # whose lines begin with the place and the code
        file = os.path.basename(error.filename or "")
        text = f"{text.splitlines()[-1]} ({file}, line {error.lineno})"
    return " ".join(text.split())[:MAX_FAULT_CHARS]


def _where(error: BaseException) -> str:
    """` (file.py:7)`: where the exception was raised, empty if nobody knows."""
    if isinstance(error, SyntaxError):
        return ""  # its words say so already
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
