"""What llama.cpp says: its binding for Python drops why a file cannot be loaded, so it is heard here."""

from __future__ import annotations

import logging
from collections import deque
from ctypes import c_void_p
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

WARNING, ERROR = 3, 4  # of ggml_log_level in ggml.h
MAX_LINE = 300  # characters of a line that are handed on
_LEVELS = {WARNING: logging.INFO, ERROR: logging.WARNING}  # what it calls a warning is mostly none of ours


class Complaints:
    """Errors of llama.cpp, in whatever thread they are told; all else goes to the log."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=4)

    def hear(self, level: int, text: bytes | None, _: object) -> None:
        line = (text or b"").decode(errors="replace").strip()[:MAX_LINE]
        if level == ERROR and line:
            self._errors.append(line)
        if line.strip("."):  # it shows its progress by dots
            log.log(_LEVELS.get(level, logging.DEBUG), "llama.cpp: %s", line)

    def take(self) -> str:
        """The first of the last errors, for it names the cause; empty where there is none. None stays."""
        first = self._errors[0] if self._errors else ""
        self._errors.clear()
        return first.rpartition("error loading model: ")[2]


@cache
def complaints() -> Complaints:
    """The one of this process, from now on and for ever: the library keeps no hold on whom it tells."""
    return _listening()[0]


@cache
def _listening() -> tuple[Complaints, Any]:  # Any: a function of ctypes, which has to live as long
    import llama_cpp

    found = Complaints()
    callback = llama_cpp.llama_log_callback(found.hear)
    llama_cpp.llama_log_set(callback, c_void_p(0))
    return found, callback
