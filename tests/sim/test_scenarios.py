"""Every scenario is sound, plays the same for the same seed, and small worlds meet what they are known to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.play import Result, Verdict, play
from simulation.scenario import FOLDER, BadScenario, Mark, Scenario, parse, read
from simulation.show import Played

SEED = 2026
FILES = sorted(FOLDER.glob("*.toml"))
SCRIPTS = FOLDER.parents[1]
TINY: dict[str, object] = {
    "title": "a small world",
    "world": {"peers": 60, "publishers": 10, "reads": 30},
    "phase": [{"name": "calm"}, {"name": "a fifth dead", "kill": 0.2}],
}
# What the network does not reach today: a mark that is missed beside these is a step back.
KNOWN_MISSED = {
    "churn-10": {"seconds_p95_vs_first"},
    "latency": {"round_trips_p95"},
    "sybil": {"found", "messages_mean_vs_first"},
}


def played(scenario: Scenario, seed: int = SEED) -> list[tuple[Result, str]]:
    return list(play(scenario, seed, lambda _: None))


def without(scenario: dict[str, object], **changes: object) -> dict[str, object]:
    return {**scenario, **changes}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_scenario_file_is_sound_at_both_sizes(path: Path) -> None:
    scenario = read(path)
    assert any(phase.marks for phase in scenario.phases), "a scenario without marks shows nothing"
    assert scenario.at_full_size().world.reads >= 3000, "fewer reads cannot claim 99.9 %"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_small_worlds_meet_their_marks_but_for_those_known_to_be_missed(path: Path) -> None:
    if sys.gettrace() is not None:
        pytest.skip("traced for coverage a world takes minutes: scripts/simulate, or pytest without --cov")
    missed = {
        (verdict.mark.figure, result.phase, result.peers, verdict.value)
        for result, _ in played(read(path))
        for verdict in result.verdicts
        if verdict.word == "missed"
    }
    assert {one for one in missed if one[0] not in KNOWN_MISSED.get(path.stem, set())} == set()


def test_the_same_seed_is_the_same_events_and_figures() -> None:
    tiny = parse("tiny", TINY)
    first, again, other = played(tiny, 1), played(tiny, 1), played(tiny, 2)
    assert first == again
    assert [digest for _, digest in first] != [digest for _, digest in other]
    assert first[0][1] != first[1][1]  # the history grows


@pytest.mark.slow
def test_no_order_of_hashing_reaches_the_events(tmp_path: Path) -> None:
    """Another process hashes bytes otherwise; the world must not notice."""
    file = tmp_path / "tiny.toml"
    file.write_text(
        'title = "a small world"\n[world]\npeers = 60\npublishers = 10\nreads = 30\nupkeep = true\n'
        '[[phase]]\nname = "churn"\nchurn = 0.2\nwait = 60\nseconds = 30\n',
        encoding="utf-8",
    )
    digests = set()
    for hash_seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-m", "simulation", str(file), "--json", "--seed", "5"],
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        digests.add(json.loads(process.stdout)["digest"])
    assert len(digests) == 1


def test_a_fifth_of_the_dead_hides_nothing_and_is_seen_in_the_tables() -> None:
    calm, dead = (result for result, _ in played(parse("tiny", TINY)))
    assert (calm.figures["found"], dead.figures["found"]) == (1.0, 1.0)
    assert calm.figures["dead_entries"] == 0.0
    assert 0.1 < dead.figures["dead_entries"] < 0.3
    assert dead.figures["seconds_p95"] > calm.figures["seconds_p95"]


def test_each_side_of_a_cut_finds_what_its_own_publishers_sign_anew() -> None:
    world = {"peers": 60, "publishers": 10, "reads": 40, "upkeep": True}
    phases = [{"name": "cut", "cut": True, "update": True, "wait": 60}]
    [(cut, _)] = played(parse("cut", without(TINY, world=world, phase=phases)))
    assert (cut.figures["found"], cut.figures["newest"]) == (1.0, 1.0)
    assert cut.trials == 40


def test_identities_around_a_key_are_closer_than_anybody_honest() -> None:
    world = {"peers": 120, "publishers": 10, "reads": 40, "victims": 1, "apart": True}
    phases = [{"name": "calm"}, {"name": "besieged", "sybils": 45}]
    calm, besieged = (
        result for result, _ in played(parse("siege", without(TINY, world=world, phase=phases)))
    )
    assert calm.figures["found"] == 1.0
    assert besieged.figures["messages_mean_vs_first"] > 1.0  # the walk is led into the gang


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"titel": "x"}, "titel"),
        ({"title": 3}, "title"),
        ({"phase": []}, "phase"),
        ({"phase": [{"kill": 0.5}]}, "name"),
        ({"phase": [{"name": "x", "kil": 0.5}]}, "'kil'"),
        ({"phase": [{"name": "x", "kill": "half"}]}, "kill"),
        ({"phase": [{"name": "x", "kill": 1.5}]}, "share"),
        ({"phase": [{"name": "x", "readers": "hot"}]}, "readers"),
        ({"phase": [{"name": "x", "marks": {"found": "0.9"}}]}, "found"),
        ({"phase": [{"name": "x", "marks": {"found": 0.9}}]}, "found"),
        ({"world": {"peers": 1}}, "at least 2"),
        ({"world": {"upkeep": 1}}, "upkeep"),
        ({"weather": {"los": 0.1}}, "'los'"),
        ({"full": {"reeds": 3}}, "'reeds'"),
    ],
)
def test_a_slip_in_a_file_is_an_error_that_names_it(changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadScenario, match=says):
        parse("slip", without(TINY, **changes))


def test_a_file_that_is_none_is_named() -> None:
    with pytest.raises(BadScenario, match="cannot be read"):
        read(Path("nowhere.toml"))


def test_a_share_of_a_thousandth_takes_three_thousand_trials_to_claim() -> None:
    mark = Mark.parse("found", ">= 0.999")
    assert [Verdict(mark, value, trials).word for value, trials in ((1, 3000), (1, 2999), (0.99, 3000))] == [
        "met",
        "met, in too few trials to claim it",
        "missed",
    ]
    assert Verdict(Mark.parse("hops_p95", "<= 6"), 6, 10).word == "met"
    assert Verdict(mark, float("nan"), 0).word == "missed"  # nothing was measured


def test_one_line_of_json_tells_all_of_a_phase() -> None:
    [(result, digest), *_] = played(parse("tiny", TINY))
    line = json.loads(json.dumps(Played("tiny", SEED, result, digest).to_map(), allow_nan=False))
    assert {"scenario", "seed", "peers", "phase", "trials", "figures", "marks", "digest"} <= set(line)
    assert line["peers"] == 60


@pytest.mark.slow
def test_pictures_are_drawn_of_what_was_played(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from simulation.plots import draw

    tiny = parse("tiny", TINY)
    sizes = replace(tiny, world=replace(tiny.world, peers=(30, 60)), phases=tiny.phases[:1])
    results = [Played("tiny", SEED, result, digest) for result, digest in played(sizes)]
    written = draw(results, tmp_path / "pictures")
    assert {path.name for path in written} >= {"hops.png", "found.png", "seconds.png", "messages.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
