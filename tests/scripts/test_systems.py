"""The compared systems as real processes: they do what is asked, sleep between turns, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from benches import environment, slow_link, systems, usage
from benches.systems import MODULES, OURS, Running, running
from processes import Failed

pytestmark = pytest.mark.live


def states(system: Running) -> set[str]:
    """Of all its processes, as /proc says: T is stopped."""
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in system.pids()]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("via", [OURS, "trio_tls", "trio"])
def test_a_system_does_all_that_is_asked(via: str) -> None:
    with running([via]) as [system]:
        while states(system) != {"T"}:  # a signal is obeyed when its process is next run
            time.sleep(0.001)
        everybody = system.pids()
        with system.awake():
            assert len(system.order(do="calls", to="peer", count=3)["seconds"]) == 3
            assert system.order(do="rate", callers=16, seconds=0.05)["calls"] >= 16
            for way in system.ways:
                assert system.order(do="up", mebibytes=1, way=way, times=2)["seconds"]
            assert len(system.order(do="connect", times=2)["seconds"]) == 2
            told = system.order(do="beside", mebibytes=1, times=2, count=5)
            assert told["busy"]
            assert not states(system) & {"T"}
        ends = system.ends()
        assert system.process.pid in ends["caller"]
        assert not ends["caller"] & ends["server"]
        assert usage.pss(ends["server"]) > 1
    assert gone(everybody)


@pytest.mark.parametrize("via", sorted(systems.ABROAD))
@pytest.mark.skipif(environment.missing() is not None, reason=environment.missing() or "")
def test_a_system_of_another_environment_does_it_too(via: str) -> None:
    with running([via]) as [system]:
        everybody = system.pids()
        with system.awake():
            assert len(system.order(do="calls", to="peer", count=3)["seconds"]) == 3
            for way in system.ways:
                assert system.order(do="up", mebibytes=1, way=way, times=1)["seconds"]
            assert len(system.order(do="connect", times=1)["seconds"]) == 1
    assert gone(everybody)


def test_the_worker_answers_too() -> None:
    with running([OURS]) as [system], system.awake():
        assert len(system.order(do="calls", to="worker", count=2)["seconds"]) == 2


def test_a_rig_that_ends_says_why() -> None:
    with running(["trio"]) as [system], system.awake(), pytest.raises(Failed, match=r"asked for .*dance"):
        system.order(do="dance")


def test_a_system_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "MODULES", {**MODULES, "trio": "benches.rigs.with_nothing"})
    with pytest.raises(Failed, match="with_nothing"), running(["trio"]):
        pass


def test_without_their_environment_one_line_says_how_to_make_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "FINISHED", tmp_path / "finished")
    assert "scripts/bench --prepare" in (environment.missing() or "")
    environment.FINISHED.write_text(repr(environment.STEPS))
    assert environment.missing() is None
    environment.FINISHED.write_text("something older")
    assert environment.missing() is not None


@pytest.mark.skipif(slow_link.why_not() is not None, reason=slow_link.why_not() or "")
def test_the_slow_link_is_as_long_as_it_says_and_goes_away() -> None:
    with slow_link.link() as place, running(["trio"], place) as [system], system.awake():
        seconds = system.order(do="calls", to="peer", count=3)["seconds"]
        assert slow_link.RTT_MS / 1000 <= min(seconds) < 2 * slow_link.RTT_MS / 1000
        assert system.order(do="up", mebibytes=1, way=system.ways[0], times=1)["seconds"]
        names = {place.caller_netns, place.server_netns}
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split()
    assert not names & set(listed)
    devices = {device.name for device in Path("/sys/class/net").iterdir()}
    assert not any(device.startswith(f"mnb{os.getpid()}") for device in devices)
