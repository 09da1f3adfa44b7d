"""The log that a running peer keeps in its home.

`join` writes here what it would say with MODELNET_LOG=info, whatever goes to its terminal, and what its
workers print: who asks for the log asks about something that is over, when nobody had thought of a level.
The file is bounded in size and in lines a second, for strangers and models decide how much there is to say.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from modelnet_p2p.errors import LocalError
from modelnet_p2p.node.disk.files import make_private_directory
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.logs.level import STDERR, chosen_level, send_worker_output
from modelnet_p2p.node.logs.tail import OLD_FILES, log_path

MAX_FILE_BYTES = 1 << 20  # about 8,000 lines; with the old ones never more than 4 MiB of a home
LINES_PER_SECOND = (
    50  # of the peer, and of its workers: at most 5 KB/s, so a flood of 10 min is still readable
)
BURST_LINES = 500  # of a start with many models, or a few tracebacks at once
MAX_LINE_CHARS = 2000  # longer ones are cut: a model may print a whole tensor
DRAIN_SECONDS = 0.2  # that the end of a peer waits for the last words of its workers

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
JOIN = "join"  # the source of what is also said to the person at the terminal
WORKER = "worker"  # the source of lines that a worker process wrote
_OF_WORKER = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) worker: ")

log = logging.getLogger(__name__)


class Flow(logging.Filter):
    """A bucket of lines: what is above its rate is left out and counted, and the count is written once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lines = float(BURST_LINES)
        self._at = clock()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        self._lines = min(BURST_LINES, self._lines + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._lines < 1:
            self._left_out += 1
            return False
        self._lines -= 1
        if self._left_out:
            record.msg, record.args = f"({self._left_out} lines left out before) {record.getMessage()}", ()
            self._left_out = 0
        return True


class LogFile(RotatingFileHandler):
    """The file itself: private, bounded, and silent about its own trouble but for one line."""

    def __init__(self, path: Path) -> None:
        # delay: a second `join` on this home fails before it has said anything, and must not touch the file
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILES, delay=True, encoding="utf-8")
        self.setFormatter(_Bounded(FORMAT, TIME_FORMAT))
        self._told = False

    def _open(self) -> TextIO:  # type: ignore[override] # typeshed promises the class that open() gives
        make_private_directory(Path(self.baseFilename).parent)
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_private)

    def keep(self, record: logging.LogRecord) -> None:
        """Write it whatever the filters say."""
        self.acquire()
        try:
            self.emit(record)
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that takes no more ends the log, not the peer; said once."""
        error = sys.exc_info()[1]
        if self._told:
            return
        self._told = True
        why = error.message if isinstance(error, LocalError) else error
        try:
            print(f"warning: the log {self.baseFilename} cannot be written: {why}", file=sys.stderr)
        except OSError:
            pass  # stderr is gone, too: nobody is left to tell


class _Bounded(logging.Formatter):
    """Lines of a bounded length, also in a traceback; whoever shows them cleans them for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "\n".join(line[:MAX_LINE_CHARS] for line in text.splitlines()) or text


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextmanager
def keep_log(home: Home) -> Iterator[Callable[[str], None]]:
    """Log into the home too while the block runs; gives what writes a notice there.

    The levels of other handlers are theirs: stderr says as much as before.
    """
    root = logging.getLogger()
    file = LogFile(log_path(home))
    file.setLevel(min(logging.INFO, chosen_level()))
    file.addFilter(Flow())
    level, others = root.level, [(handler, handler.level) for handler in root.handlers]
    for handler, its_own in others:
        handler.setLevel(max(its_own, level))
    root.addHandler(file)
    root.setLevel(min(file.level, level))
    try:
        with _workers_output(file):
            yield lambda line: file.keep(_record(JOIN, line))
    finally:
        root.removeHandler(file)
        root.setLevel(level)
        for handler, its_own in others:
            handler.setLevel(its_own)
        file.close()


def _record(source: str, line: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(source, level, "", 0, line, (), None)


@contextmanager
def _workers_output(file: LogFile) -> Iterator[None]:
    """What workers write goes to stderr, as it always did, and line by line into the file."""
    reading, writing = os.pipe()
    # a thread: stderr may be a stopped terminal, which must hold up the workers that write, not the peer
    pump = threading.Thread(target=_pump, args=(reading, file), daemon=True, name="workers-output")
    pump.start()
    send_worker_output(writing)
    try:
        yield
    finally:
        send_worker_output(STDERR)
        os.close(writing)
        pump.join(DRAIN_SECONDS)  # a process that a model left behind may hold its end open


def _pump(reading: int, file: LogFile) -> None:
    flow, rest = Flow(), b""
    with open(reading, "rb", buffering=0) as pipe:
        while chunk := pipe.read(1 << 16):
            try:
                os.write(STDERR, chunk)
            except OSError:
                pass  # nobody looks; the file is still kept
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_CHARS:
                lines, rest = [*lines, rest], b""
            for line in lines:
                _keep(line, file, flow)
    if rest:
        _keep(rest, file, flow)


def _keep(line: bytes, file: LogFile, flow: Flow) -> None:
    text = (
        line.rstrip().rpartition(b"\r")[2].decode("utf-8", "backslashreplace")
    )  # a progress bar's last state
    if not text:
        return
    level = logging.INFO
    if found := _OF_WORKER.match(text):
        level, text = logging.getLevelNamesMapping()[found[1]], text[found.end() :]
    record = _record(WORKER, text, level)
    if flow.filter(record):
        file.keep(record)
