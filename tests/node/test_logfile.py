"""The log in the home: what gets into it, what it may cost, and how it is read back."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.logs.file import (
    BURST_LINES,
    LINES_PER_SECOND,
    MAX_FILE_BYTES,
    MAX_LINE_CHARS,
    Flow,
    LogFile,
    keep_log,
)
from modelnet_p2p.node.logs.level import STDERR, worker_output
from modelnet_p2p.node.logs.tail import OLD_FILES, Tail, log_files, log_path, parse_line

log = logging.getLogger("modelnet_p2p.tests.alice")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def file(home: Home) -> Iterator[LogFile]:
    file = LogFile(log_path(home))
    yield file
    file.close()


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("alice", logging.INFO, "", 0, text, (), None)


def messages(home: Home) -> list[str | None]:
    with Tail(home) as tail:
        return [parse_line(line)["message"] for line in tail.last(1000)]


def test_a_peers_own_words_and_its_notices_are_kept_though_stderr_stays_quiet(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    root = logging.getLogger()
    root.addHandler(handler)
    before = root.level
    try:
        root.setLevel(logging.ERROR)
        with keep_log(home) as keep:
            log.info("bob connected")
            log.debug("not that much")
            log.error("bob is gone")
            keep("serving modelnet/digits")
        log.error("after it")
        assert messages(home) == ["bob connected", "bob is gone", "serving modelnet/digits"]
        assert capsys.readouterr().err == "bob is gone\nafter it\n"
        assert root.level == logging.ERROR
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def test_the_log_is_its_owners_alone(home: Home, file: LogFile) -> None:
    file.keep(record("hello"))
    assert stat.S_IMODE(log_path(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(log_path(home).parent.stat().st_mode) == 0o700


def test_who_says_nothing_makes_no_file(home: Home) -> None:
    with keep_log(home):
        pass
    assert not home.path.exists()


def test_it_is_bounded_and_the_newest_is_kept(home: Home, file: LogFile) -> None:
    count = (OLD_FILES + 3) * MAX_FILE_BYTES // MAX_LINE_CHARS
    for number in range(count):
        file.keep(record(f"{number} " + "x" * MAX_LINE_CHARS))
    sizes = [path.stat().st_size for path in log_path(home).parent.iterdir()]
    assert len(sizes) == OLD_FILES + 1
    assert max(sizes) <= MAX_FILE_BYTES
    with Tail(home) as tail:
        lines = tail.last(10**6)
    numbers = [int(str(parse_line(line)["message"]).split()[0]) for line in lines]
    assert numbers == list(range(numbers[0], count))  # whole, in order, up to the last
    assert max(map(len, lines)) <= MAX_LINE_CHARS


def test_a_flood_is_counted_not_written(home: Home) -> None:
    now = [0.0]
    flow = Flow(lambda: now[0])
    passed = sum(flow.filter(record("again")) for _ in range(BURST_LINES + 70))
    assert passed == BURST_LINES
    now[0] = 1.0
    last = record("again")
    assert flow.filter(last)
    assert last.getMessage() == "(70 lines left out before) again"
    assert sum(flow.filter(record("again")) for _ in range(1000)) == LINES_PER_SECOND - 1


def test_a_disk_that_takes_nothing_is_told_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.path.mkdir()
    (home.path / "log").write_text("in the way")
    with keep_log(home) as keep:
        keep("one")
        keep("two")
    err = capsys.readouterr().err
    assert err.count("cannot be written") == 1
    assert str(home.path / "log") in err


def test_what_workers_print_goes_to_stderr_and_into_the_log(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys, os\nos.write(1, b'of the model\\n')\nos.write(2, b' 1%\\r100%\\n')\n"
        "os.write(2, b'ERROR worker: the model raised\\n\\n')\nos.write(1, b'no newline \\xff')"
    )
    with keep_log(home):
        assert worker_output() != STDERR
        subprocess.run(
            [sys.executable, "-c", code], stdout=worker_output(), stderr=worker_output(), check=True
        )
    assert worker_output() == STDERR
    assert "of the model\n 1%\r100%\n" in capfd.readouterr().err
    with Tail(home) as tail:
        kept = [parse_line(line) for line in tail.last(100)]
    assert [(line["source"], line["level"], line["message"]) for line in kept] == [
        ("worker", "INFO", "of the model"),
        ("worker", "INFO", "100%"),
        ("worker", "ERROR", "the model raised"),
        ("worker", "INFO", "no newline \\xff"),
    ]


def test_a_traceback_is_several_lines_of_which_the_first_has_a_time(home: Home) -> None:
    with keep_log(home):
        try:
            raise ValueError("no good")
        except ValueError:
            log.exception("it broke")
    with Tail(home) as tail:
        first, *rest = (parse_line(line) for line in tail.last(100))
    assert (first["level"], first["source"], first["message"]) == ("ERROR", log.name, "it broke")
    assert rest[-1] == {"time": None, "level": None, "source": None, "message": "ValueError: no good"}


# --- reading ---


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_the_last_lines_reach_back_into_older_files(home: Home) -> None:
    new, old, older, _ = log_files(home)
    write(older, "1", "2")
    write(old, "3")
    write(new, "4", "5")
    for count, expected in ((0, ""), (1, "5"), (3, "345"), (4, "2345"), (99, "12345")):
        with Tail(home) as tail:
            assert "".join(tail.last(count)) == expected


def test_following_goes_on_across_rotation_and_half_lines(home: Home) -> None:
    new, old, *_ = log_files(home)
    write(new, "1")
    with Tail(home) as tail:
        assert tail.last(10) == ["1"]
        assert tail.more() == []
        with new.open("a") as half:
            half.write("2 and")
        assert tail.more() == []
        with new.open("a") as half:
            half.write(" a half\n3\n")
        os.rename(new, old)
        assert tail.more() == ["2 and a half", "3"]
        assert tail.more() == []  # there is no new one yet
        write(new, "4")
        assert tail.more() == ["4"]
        write(new, "5")
        assert tail.more() == ["5"]


def test_nobody_has_written_here(home: Home) -> None:
    with pytest.raises(LocalError, match="no peer has written a log yet") as caught:
        Tail(home)
    assert (caught.value.code, caught.value.hint) == (Code.NOT_RUNNING, "modelnet-peer join writes one")


def test_something_else_in_the_logs_place(home: Home) -> None:
    log_path(home).mkdir(parents=True)
    with pytest.raises(LocalError, match=str(log_path(home))) as caught:
        Tail(home)
    assert caught.value.code is Code.BAD_STATE
