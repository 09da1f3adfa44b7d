"""Every command against a peer that pretends, through the real socket: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.tiers import TIERS

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import
HEAVY = ("libp2p", "torch", "trio", "numpy", "rich")


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def error_of(ran: Any) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(ran.err.splitlines()[-1])["error"]
    assert error.keys() == {"code", "message", "peer", "retryable", "hint"}
    return error


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["join", "--help"], ["invoke", "--help"], ["id"], ["status"]]
)
def test_thin_commands_import_nothing_heavy(home: Any, argv: list[str]) -> None:
    program = (
        "import sys\nfrom modelnet_p2p.node.cli import main\n"
        f"main({argv!r})\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(cli: Cli) -> None:
    ran = cli("--version")
    assert (ran.status, ran.out) == (0, "modelnet-peer 0.1.0\n")


@pytest.mark.parametrize("argv", [["publish", "builtin:digits"], ["unpublish", "x"], ["status"], ["peers"]])
def test_nothing_runs_here(cli: Cli, argv: list[str]) -> None:
    ran = cli(*argv, "--json")
    error = error_of(ran)
    assert (ran.status, ran.out, error["code"]) == (7, "", "not-running")
    assert error["hint"].startswith("modelnet-peer join")


def test_a_hint_names_the_home_so_that_a_shell_takes_it(cli: Cli, tmp_path: Path) -> None:
    ran = cli("status", "--home", str(tmp_path / "a b'c"))
    assert ran.status == 7
    assert ran.err.splitlines()[1].startswith("hint: modelnet-peer join --home '")


@pytest.mark.parametrize(
    "argv", [["find", "--task", "x"], ["invoke", "m", "hi"], ["ping", "x"], ["show", "m"]]
)
def test_questions_without_a_peer_and_without_anybody_to_ask(cli: Cli, argv: list[str]) -> None:
    ran = cli(*argv, "--network", "nobody-is-on-this-one")
    assert ran.status == 4
    progress, notice, error, hint = ran.err.splitlines()
    assert argv[-1] in progress or argv[1] in progress
    assert notice.endswith("asking as a temporary client")
    assert error.startswith("error: ")
    assert hint.startswith("hint: modelnet-peer join")


def test_status_for_people_and_as_json(cli: Cli, bob: Any) -> None:
    assert lines(cli("status", "--json").out)[0]["models"][0]["model"] == "acme/echo"
    ran = cli("status")
    assert ran.status == 0
    assert "1 min 1 s" in ran.out
    assert "2 forged" in ran.out


def test_peers(cli: Cli, bob: Any) -> None:
    assert lines(cli("peers", "--json").out)[0]["peer"] == "carol"
    assert cli("peers").out.splitlines()[1].split()[:4] == ["carol", "alive", "yes", "1.50"]


def test_id_makes_the_key_once_and_knows_the_addresses_of_a_running_peer(cli: Cli, home: Any) -> None:
    first = lines(cli("id", "--json").out)[0]
    assert first == {"peer": str(home.load_key().id), "addrs": []}
    assert cli("id").out == first["peer"] + "\n"


def test_id_of_a_running_peer(cli: Cli, bob: Any) -> None:
    assert lines(cli("id", "--json").out)[0]["addrs"] == list(bob.addrs)


def test_ping(cli: Cli, bob: Any) -> None:
    assert lines(cli("ping", "carol", "-c", "2", "--json").out) == [
        {"peer": "carol", "ok": True, "rtt_ms": [0.5, 0.5]}
    ]
    cli("ping", "carol", "--timeout", "7")
    assert bob.asked[-1] == ("ping", ("carol", 3, 7.0))
    ran = cli("ping", "nobody", "--json")
    assert (ran.status, lines(ran.out)[0]["ok"], error_of(ran)["code"]) == (4, False, "unreachable")


def test_show(cli: Cli, bob: Any) -> None:
    assert lines(cli("show", "acme/echo", "--json").out)[0]["verified"] is True
    assert cli("show", "nothing", "--timeout", "7").status == 3
    assert bob.asked[-1] == ("show", ("nothing", 7.0))


def test_find(cli: Cli, bob: Any) -> None:
    ran = cli("find", "--task", "t", "--limit", "5", "--all", "--timeout", "3", "--json")
    assert (ran.status, lines(ran.out)[0]["provider"]) == (0, bob.id)
    assert bob.asked == [("find", ("t", None, None, 5, True, 3.0))]
    assert cli("find", "--model", "nothing").status == 3
    ambiguous = cli("find", "--model", "two-owners", "--json")
    assert (ambiguous.status, error_of(ambiguous)["code"]) == (3, "ambiguous")
    assert cli("find").status == 2


def test_invoke_prints_text_plain_and_one_last_line_as_json(cli: Cli, bob: Any) -> None:
    assert cli("invoke", "echo", "hé").out == "hé\n"
    last = lines(cli("invoke", "echo", "hé", "--json").out)
    assert last == [
        {"done": True, "output": "hé", "model": "echo", "digest": None, "provider": bob.id, "attempts": 1,
         "ms": {"total": 1.0, "queue": 0.0, "model": 0.5},
         "trace": [{"provider": bob.id, "digest": None, "bytes_in": 1, "bytes_out": 2, "ms": 0.5}]}
    ]  # fmt: skip


def test_invoke_streams(cli: Cli, bob: Any) -> None:
    assert cli("invoke", "tokens", "x").out == "tokens\n"
    out = lines(cli("invoke", "tokens", "x", "--json").out)
    assert [line.get("item") for line in out] == ["to", "ken", "s", None]
    assert (out[-1]["done"], out[-1]["output"]) == (True, None)


def test_invoke_takes_a_tensor_and_writes_one(cli: Cli, bob: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3), np.float32))
    out = tmp_path / "out.npy"
    ran = cli(
        "invoke", "echo", "--input", str(tmp_path / "in.npy"), "--out", str(out), "--json", "--param", "n=[1]"
    )
    assert lines(ran.out)[0]["output"] == {"dtype": "float32", "shape": [2, 3], "data": [1.0] * 6}
    assert bob.asked[0][1][2] == {"n": [1]}
    assert np.load(out).tolist() == np.ones((2, 3)).tolist()
    cli("invoke", "digits", "x", "--out", str(out))  # the one tensor in the answer
    assert np.load(out).shape == (1, 10)
    assert "scores: tensor float32 [1, 10]" in cli("invoke", "digits", "x").out
    assert cli("invoke", "echo", "x", "--out", str(out)).status == 2
    assert cli("invoke", "echo", "x", "--out", "answer.txt").status == 2


def test_invoke_passes_on_the_compact_form_and_knows_no_other(cli: Cli, bob: Any) -> None:
    assert cli("invoke", "echo", "x", "--wire", "int8").status == 0
    assert bob.asked == [("invoke", ("echo", "x", {}, None, "int8"))]
    ran = cli("invoke", "echo", "x", "--wire", "int4", "--json")
    assert (ran.status, error_of(ran)["code"], len(bob.asked)) == (2, "bad-input", 1)


def test_invoke_refuses_a_pickled_npy(cli: Cli, bob: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([{}], dtype=object), allow_pickle=True)
    ran = cli("invoke", "echo", "--input", str(tmp_path / "in.npy"), "--json")
    assert (ran.status, error_of(ran)["code"], bob.asked) == (2, "bad-input", [])


@pytest.mark.parametrize(
    ("name", "text", "value"), [("a.json", '{"k": [1, null]}', {"k": [1, None]}), ("a.txt", "[1]", "[1]")]
)
def test_invoke_reads_json_and_text(
    cli: Cli, bob: Any, tmp_path: Path, name: str, text: str, value: object
) -> None:
    (tmp_path / name).write_text(text)
    assert lines(cli("invoke", "echo", "--input", str(tmp_path / name), "--json").out)[0]["output"] == value


@pytest.mark.parametrize(
    "argv", [["--param", "n"], ["--param", "n=x"], ["--param", "n=1", "--param", "n=2"], ["--timeout", "-1"]]
)
def test_bad_flags(cli: Cli, bob: Any, argv: list[str]) -> None:
    ran = cli("invoke", "echo", "x", *argv, "--json")
    assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")


def test_the_hint_for_a_string_parameter_can_be_copied(cli: Cli, bob: Any) -> None:
    ran = cli("invoke", "echo", "x", "--param", "who=it's me", "--json")
    assert error_of(ran)["hint"].endswith("""--param 'who="it'"'"'s me"'""")


def test_a_model_that_fails_is_one_line_and_names_the_peer(cli: Cli, bob: Any) -> None:
    ran = cli("invoke", "broken", "x")
    assert (ran.status, ran.out) == (5, "")
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["calling broken", "error", "hint"]
    assert "\x1b" not in ran.err
    assert "carol" in ran.err
    assert error_of(cli("invoke", "broken", "x", "--json"))["peer"] == "carol"


def test_a_bug_in_one_command_leaves_the_peer_running(cli: Cli, bob: Any) -> None:
    ran = cli("invoke", "bug", "x", "--json")
    assert (ran.status, error_of(ran)["code"]) == (1, "internal")
    assert cli("status").status == 0


def test_publish_and_unpublish(cli: Cli, bob: Any) -> None:
    ran = cli("publish", "m:f", "--model", "acme/x@2", "--tag", "a", "--tag", "b", "--dry-run", "--json")
    assert (ran.status, lines(ran.out)[0]["model"]) == (0, "acme/x@2")
    assert "loading the model" in ran.err
    source, asked = bob.asked[0][1]
    assert (source, asked["tags"], asked["dry_run"], asked["interpreter"]) == (
        "m:f",
        ("a", "b"),
        True,
        sys.executable,
    )
    cli("publish", "m.onnx", "--quantise", "int8", "--sample", "x.npy")
    assert bob.asked[-1][1][1]["options"] == {"quantise": "int8", "sample": "x.npy"}
    assert cli("publish", "m.onnx", "--quantise", "int2").status == 2
    cli("publish", "http://127.0.0.1:11434/v1", "--slots", "32")
    assert bob.asked[-1][1][1]["options"] == {"slots": "32"}
    assert cli("publish", "m:f", "--slots", "0").status == 2
    assert lines(cli("unpublish", "acme/echo", "--json").out)[0]["withdrawn"] is True
    assert cli("unpublish", "not-mine").status == 3


def test_a_price_and_its_like_are_published(cli: Cli, bob: Any) -> None:
    argv = ["--price", "usd_per_call=0.002", "--language", "de", "--licence", "MIT"]
    for tier in TIERS:
        assert cli("publish", "m:f", *argv, "--tier", tier).status == 0
        asked = bob.asked[-1][1][1]
        assert (asked["price"], asked["tier"]) == ({"usd_per_call": "0.002"}, tier)
    assert (asked["languages"], asked["licence"]) == (("de",), "MIT")
    cli("publish", "m:f")
    asked = bob.asked[-1][1][1]
    said = [asked[name] for name in ("price", "tier", "languages", "licence")]
    assert said == [None, None, (), None]


@pytest.mark.parametrize(
    ("argv", "says", "example"),
    [
        (["--price", "usd_per_call=cheap"], "--price usd_per_call=cheap", "--price usd_per_call=0.002"),
        (["--price", "0.002"], "--price '0.002' is not NAME=AMOUNT", "--price usd_per_call=0.002"),
        (["--language", "German"], "--language 'German'", "--language de"),
        (["--licence", ""], "--licence ''", "--licence Apache-2.0"),
        (["--tier", "moon"], "'device', 'edge', 'cloud'", "--help"),
    ],
)
def test_a_wrong_price_is_told_before_the_peer_is_asked(
    cli: Cli, argv: list[str], says: str, example: str
) -> None:
    ran = cli("publish", "m:f", *argv)  # no peer is running
    assert ran.status == 2
    error, hint = ran.err.splitlines()
    assert says in error
    assert example in hint


@pytest.mark.parametrize(
    ("argv", "says", "hint"),
    [
        (
            ["--publish", "m:f", "--publish", "m:g", "--price", "usd=1", "--tag", "a", "--tag", "b c"],
            "--tag is said of one model, and there are 2 --publish",
            "modelnet-peer publish SOURCE --tag a --tag 'b c' --price usd=1",
        ),
        (["--no-share-weights"], "and there is no --publish", "publish SOURCE --no-share-weights"),
        (
            ["--publish", "m:f", "--price", "cheap"],
            "'cheap' is not NAME=AMOUNT",
            "--price usd_per_call=0.002",
        ),
        (["--publish", "m:f", "--tier", "moon"], "'device', 'edge', 'cloud'", "modelnet-peer publish --help"),
        (["--publish", "m:f", "--dry-run"], "--dry-run", "modelnet-peer publish --help"),
        (["--lam"], "--lam", "modelnet-peer join --help"),
    ],
)
def test_what_join_says_of_a_model_is_said_of_one(cli: Cli, argv: list[str], says: str, hint: str) -> None:
    ran = cli("join", *argv)
    assert (ran.status, ran.out) == (2, "")
    error, following = ran.err.splitlines()
    assert says in error
    assert following.endswith(hint)


def test_the_help_of_join_is_not_that_of_publish(cli: Cli) -> None:
    options = cli("join", "--help").out.partition("Examples:")[0]
    assert "One alone takes what `publish` does" in " ".join(options.split())
    assert "--price" not in options
    assert "--price" in cli("publish", "--help").out


def test_show_tells_a_price_in_whole_units(cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def show(*asked: Any, **flags: Any) -> list[dict[str, Any]]:
        record = {"tier": "edge", "price": {"usd_per_call": 2000, "usd_per_hour": 3_000_000}, "limits": {}}
        return [{"model": "m", "provider": "p", "verified": True, "envelope": "AA==", "record": record}]

    monkeypatch.setattr(bob, "show", show)
    told = cli("show", "m").out.splitlines()
    assert told[-2:] == ["tier      edge", "price     0.002 usd_per_call, 3 usd_per_hour"]
    assert lines(cli("show", "m", "--json").out)[0]["record"]["price"]["usd_per_call"] == 2000


def test_publish_says_whose_place_a_model_takes(cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {
        "model": "toy",
        "uri": "modelnet:toy",
        "task": "x",
        "replaces": "toy.onnx",
        "notes": ["odd", "so"],
    }

    async def publish(*asked: Any, **flags: Any) -> dict[str, Any]:
        return answer

    monkeypatch.setattr(bob, "publish", publish)
    ran = cli("publish", "toy.tflite")
    assert "in place of  toy.onnx, published before" in ran.out.splitlines()
    assert ran.err.splitlines()[-2:] == ["note: odd", "note: so"]
    ran = cli("publish", "toy.tflite", "--json")
    assert (lines(ran.out), ran.err.splitlines()[-2:]) == ([answer], ["note: odd", "note: so"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".PT"])
def test_pickles_are_refused(cli: Cli, suffix: str) -> None:
    ran = cli("publish", f"model{suffix}", "--json")
    assert (ran.status, error_of(ran)["code"]) == (6, "unsafe")


def test_usage_errors_are_json_too(cli: Cli) -> None:
    for argv in (["bogus"], ["find", "--limit", "x"], ["status", "extra"]):
        ran = cli(*argv, "--json")
        assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")


@pytest.mark.parametrize(
    ("text", "says"),
    [("nope = 1", "nope"), ("network = 3", "network"), ("x = [", "config.toml"), ("\x00", "config.toml")],
)
def test_a_bad_config_is_one_line_that_names_it(cli: Cli, home: Any, text: str, says: str) -> None:
    home.path.mkdir()
    home.config_path.write_text(text)
    ran = cli("status")
    assert ran.status == 6
    assert says in ran.err
    assert str(home.config_path) in ran.err
    assert len(ran.err.splitlines()) == 2


def test_without_a_command_it_shows_its_help_as_an_error_of_usage(cli: Cli) -> None:
    ran = cli()
    assert (ran.status, ran.out) == (2, "")
    assert "Commands:" in ran.err
    assert "modelnet-peer join" in ran.err


@pytest.mark.parametrize(
    "command", ["join", "publish", "unpublish", "find", "invoke", "status", "peers", "id", "ping", "show"]
)
def test_each_help_ends_with_examples_to_copy(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.status == 0
    *_, examples = ran.out.partition("Examples:")
    assert f"modelnet-peer {command}" in examples


def test_a_text_that_breaks_off_ends_its_line_before_the_error(cli: Cli, bob: Any) -> None:
    ran = cli("invoke", "broken-off", "x")
    assert (ran.status, ran.out) == (4, "half a \n")


def test_an_answer_without_a_tensor_is_not_lost_to_out(cli: Cli, bob: Any, tmp_path: Path) -> None:
    ran = cli("invoke", "echo", "dear", "--out", str(tmp_path / "x.npy"))
    assert (ran.status, ran.out) == (2, "dear\n")
    assert "--out takes one tensor" in ran.err


def test_a_peer_that_is_alone_does_not_say_that_nobody_has_it(cli: Cli, bob: Any) -> None:
    bob.known = []
    for argv in (["find", "--model", "nothing"], ["invoke", "nothing", "x"]):
        ran = cli(*argv, "--json")
        assert (ran.status, error_of(ran)["code"]) == (4, "unreachable")
    assert cli("find", "--model", "two-owners").status == 3


@pytest.mark.parametrize(
    "argv", [["invoke", "broken", "x"], ["ping", "nobody"], ["find", "--model", "nothing"]]
)
def test_every_error_has_a_next_step(cli: Cli, bob: Any, argv: list[str]) -> None:
    error = error_of(cli(*argv, "--json"))
    assert error["hint"]
    assert "COMMAND" not in error["hint"]


def test_a_bug_is_one_line_that_names_the_cause_inside_of_its_groups() -> None:
    program = (
        "import sys\nimport modelnet_p2p.node.cli.app as app\n"
        "sys.excepthook = app._on_bug(False)\n"
        "raise ExceptionGroup('nursery', [ExceptionGroup('nursery', [KeyError('x')])])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[0] == "error: KeyError: 'x'"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("target", "status"), [("pipe", 0), ("full", 6)])
def test_results_that_nobody_takes(home: Any, bob: Any, target: str, status: int) -> None:
    program = "from modelnet_p2p.node.cli import main; main()"
    command = [sys.executable, "-c", program, "invoke", "tokens", "x", "--json"]
    if target == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status:
        error = json.loads(done.stderr.splitlines()[-1])["error"]
        assert error["code"] == "bad-state"


@pytest.mark.parametrize("argv", [["status"], ["find", "--task", "x"], ["publish", "m:f"], ["id"]])
def test_a_peer_of_another_network_is_not_asked(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    assert cli(*argv, "--network", "public").status == 0
    asked = len(bob.asked)
    ran = cli(*argv, "--network", "lab", "--json")
    error = error_of(ran)
    assert (ran.status, ran.out, error["code"], len(bob.asked)) == (2, "", "bad-input", asked)
    assert "'public'" in error["message"]
    assert "'lab'" in error["message"]
    assert "--network public" in error["hint"]
    assert "modelnet-peer join --network lab" in error["hint"]
    monkeypatch.setenv("MODELNET_NETWORK", "lab")
    assert cli(*argv).status == 2


def test_a_network_that_only_the_config_names_is_that_of_the_next_join(cli: Cli, bob: Any, home: Any) -> None:
    home.path.mkdir()
    home.config_path.write_text('network = "lab"')
    assert cli("status").status == 0


@pytest.mark.parametrize("argv", [["status"], ["find", "--task", "x"], ["publish", "m:f"], ["peers"]])
def test_a_bootstrap_that_is_not_used_is_said_once(cli: Cli, bob: Any, argv: list[str]) -> None:
    ran = cli(*argv, "--bootstrap", "/ip4/192.0.2.7/tcp/4001")
    assert ran.status == 0
    assert ran.err.count("--bootstrap is not used") == 1


@pytest.mark.parametrize("name", ["a b", "a\tb", " ", "\x1b"])
def test_a_network_has_no_white_space(cli: Cli, name: str) -> None:
    ran = cli("find", "--task", "x", "--network", name, "--json")
    assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["find", "--task", "x"], "looking for task x"),
        (["invoke", "echo", "x"], "calling echo"),
        (["ping", "carol"], "pinging carol"),
        (["show", "acme/echo"], "looking for acme/echo"),
    ],
)
def test_progress_in_a_pipe_is_one_plain_line(cli: Cli, bob: Any, argv: list[str], says: str) -> None:
    ran = cli(*argv, "--json")
    assert (ran.status, ran.err) == (0, says + "\n")


def test_values_of_an_answer_are_json_as_the_protocol_says(cli: Cli, bob: Any, tmp_path: Path) -> None:
    given = {"x": {"float": "-Infinity"}, "t": {"dtype": "bfloat16", "shape": [2], "data": [0.5, "NaN"]}}
    given["b"] = {"base64": "AAE="}
    (tmp_path / "in.json").write_text(json.dumps(given))
    ran = cli("invoke", "echo", "--input", str(tmp_path / "in.json"), "--json")
    assert lines(ran.out)[0]["output"] == given
    assert bob.asked[-1][1][1]["b"] == b"\x00\x01"
    (tmp_path / "in.json").write_text('{"dtype": "float32", "shape": [3], "data": [1]}')
    ran = cli("invoke", "echo", "--input", str(tmp_path / "in.json"), "--json")
    assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")
    assert "in.json" in error_of(ran)["message"]


def test_what_no_call_can_carry_is_refused_before_it_is_read(cli: Cli, bob: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.npy"
    with open(large, "wb") as file:
        file.truncate((512 << 20) + 1)  # a hole: it takes no room
    ran = cli("invoke", "echo", "--input", str(large), "--json")
    error = error_of(ran)
    assert (ran.status, error["code"], bob.asked) == (6, "too-large", [])
    assert "512 MiB" in error["message"]
    assert str(large) in error["message"]


def test_a_large_input_has_a_bar_on_a_terminal(home: Any, bob: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((9 << 20,), np.uint8))
    program = "from modelnet_p2p.node.cli import main; main()"
    argv = ["invoke", "digits", "--input", str(tmp_path / "in.npy")]
    reader, writer = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", program, *argv],
        stdout=subprocess.PIPE,
        stderr=writer,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(writer)
    drawn = b""
    try:
        while piece := os.read(reader, 65536):
            drawn += piece
    except OSError:
        pass  # how Linux tells that the last writer of a terminal is gone
    os.close(reader)
    out, _ = done.communicate(timeout=30)
    assert done.returncode == 0
    assert b"label: [3]" in out
    for said in (b"reading ", b"sending the input", b"9.0/9.0 MiB"):
        assert said in drawn


def test_a_large_input_in_a_pipe_is_a_line_each(cli: Cli, bob: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((9 << 20,), np.uint8))
    ran = cli("invoke", "digits", "--input", str(tmp_path / "in.npy"))
    assert [line.rpartition(":")[0] for line in ran.err.splitlines()[::2]] == [
        f"reading {tmp_path}/in.npy",
        "sending the input",
    ]
