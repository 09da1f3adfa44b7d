"""Weights that three peers share, one of them killed in the middle, and so is the one who pulls."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import
WIDTH = 3500
SIZE = 49_000_000  # bytes of the tensor: some 50 pieces


def make_model(path: Path) -> Any:
    """y = x @ w, with w in a file of its own: a model of two files. What it says of ones comes back."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    weights = np.random.default_rng(1).random((WIDTH, WIDTH), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, WIDTH])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="net.data")
    return weights.sum(0)


def said(ran: tuple[int, list[Any], str]) -> Any:
    status, lines, stderr = ran
    assert status == 0, stderr
    return lines[-1]


def stop_in_the_middle(shell: Shell, who: str, pull: Any, providers: Sequence[Any]) -> int:
    """Lets a pull that has begun get a part, and stops its providers then; how many bytes have come."""
    (files,) = (path / "files" for path in (shell.base / who / "cache").glob("*.part"))
    while True:
        for provider in providers:
            provider.send_signal(signal.SIGSTOP)
        here: int = sum(path.stat().st_blocks * 512 for path in files.rglob("*") if path.is_file())
        if here > 3_000_000:
            assert here < SIZE
            assert pull.poll() is None
            return here
        for provider in providers:
            provider.send_signal(signal.SIGCONT)
        time.sleep(0.005)


def test_three_providers_a_killed_one_a_killed_puller_and_nothing_twice(shell: Shell) -> None:
    expected = make_model(shell.base / "net.onnx")
    with (
        shell.join("alice") as (alice_process, alice),
        shell.join("bob") as (bob_process, bob),
        shell.join("carol") as (carol_process, carol),
    ):
        providers = [alice_process, bob_process, carol_process]
        published = said(
            shell.run("alice", "publish", "net.onnx", "--model", "acme/net@1", "--share-weights")
        )
        for who in ("bob", "carol"):
            pulled = said(shell.run(who, "pull", "acme/net"))
            assert pulled["digest"] == published["digest"]
            assert pulled["fetched"] == pulled["size"] > SIZE
            served = said(shell.run(who, "publish", "acme/net"))
            assert (served["digest"], served["owner"]) == (published["digest"], alice["peer"])
            assert "weights" in served["gives"]

        # dave is killed in the middle, and goes on where he was
        with shell.start("dave", "pull", "acme/net") as pull:
            assert json.loads(pull.stdout.readline())["event"] == "progress"
            here = stop_in_the_middle(shell, "dave", pull, providers)
            pull.kill()
        for provider in providers:
            provider.send_signal(signal.SIGCONT)
        pulled = said(shell.run("dave", "pull", "acme/net"))
        assert pulled["size"] - here - (1 << 20) <= pulled["fetched"] < pulled["size"] - here + (2 << 20)

        # bob is killed while erin pulls from all three
        with shell.start("erin", "pull", "acme/net") as pull:
            assert json.loads(pull.stdout.readline())["event"] == "progress"
            stop_in_the_middle(shell, "erin", pull, providers)
            bob_process.kill()
            alice_process.send_signal(signal.SIGCONT)
            carol_process.send_signal(signal.SIGCONT)
            done = [json.loads(line) for line in pull.stdout][-1]
            assert pull.wait(60) == 0, pull.stderr.read()
        assert done["fetched"] == done["size"]
        assert {one["peer"] for one in done["from"]} <= {alice["peer"], bob["peer"], carol["peer"]}

        assert said(shell.run("dave", "pull", "acme/net"))["fetched"] == 0
        with shell.join("dave") as (_, dave):
            served = said(shell.run("dave", "publish", published["digest"]))
            assert served["owner"] == alice["peer"]
            np.save(shell.base / "x.npy", np.ones((1, WIDTH), np.float32))
            asked = ("invoke", "acme/net", "--input", "x.npy", "--provider", dave["peer"])
            answer = said(shell.run("carol", *asked))
            assert answer["digest"] == published["digest"]
            assert np.allclose(answer["output"]["data"], expected, rtol=1e-4)
            status, _, stderr = shell.run("dave", "pull", "--remove", "acme/net")
            assert (status, json.loads(stderr.splitlines()[-1])["error"]["code"]) == (6, "in-use")
    assert said(shell.run("erin", "pull", published["digest"]))["fetched"] == 0  # and nobody is there
    assert said(shell.run("erin", "pull", "--remove", "acme/net"))["freed"] > SIZE
