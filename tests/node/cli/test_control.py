"""The control socket: its bounds, its beats, and callers that hang up or send anything at all."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.exchange import Call, Exchange, Fault, Result, Role
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.control import client as client_page
from modelnet_p2p.node.control import server as control_server
from modelnet_p2p.node.control import wire as control_wire
from modelnet_p2p.node.control.client import ControlClient
from modelnet_p2p.node.control.wire import MAX_INPUT_BYTES, NETWORK, PARAMS, to_error, to_fault
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES


@pytest.mark.parametrize(
    "error",
    [
        LocalError(Code.BAD_INPUT, "a", hint="b"),
        RemoteError(Code.BUSY, "a", peer="carol"),
        RemoteError(Code.BUSY, "a", peer="carol", instead="dave"),
        RemoteError(Code.UNREACHABLE, "a", retryable=False),
        NotFound("a", code=Code.AMBIGUOUS, hint="b"),
    ],
)
def test_an_error_crosses_whole(error: Any) -> None:
    again = to_error(to_fault(error))
    assert type(again) is type(error)
    assert again.to_map() == error.to_map()


def test_strange_faults_are_errors_all_the_same() -> None:
    assert isinstance(to_error(Fault(Code.BUSY, "x", extra={"family": 3, "peer": [1]})), LocalError)


def test_only_its_user_may_open_the_socket(home: Home, bob: Any) -> None:
    mode = os.stat(Runtime("public", home).socket_path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_hanging_up_cancels_the_call(home: Home, bob: Any) -> None:
    with ControlClient.connect(home) as client, pytest.raises(LocalError) as caught:
        client.call("invoke", {"target": "sleeper"}, timeout=0.2)
    assert caught.value.code is Code.DEADLINE
    assert bob.cancelled.wait(5)


def test_no_beat_follows_the_end_of_a_call(home: Home, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its turn while the end is sent was an error that ended the peer."""
    monkeypatch.setattr(control_server, "BEAT_SECONDS", 0.0)
    for _ in range(20):
        with ControlClient.connect(home) as client:
            assert client.call("status", {}, timeout=20)["peer"]


def test_ctrl_c_cancels_the_call_and_ends_130(home: Home, bob: Any) -> None:
    program = "from modelnet_p2p.node.cli import main; main()"
    command = [sys.executable, "-c", program, "invoke", "sleeper", "x", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as alice:
        while not bob.asked:
            time.sleep(0.01)
        alice.send_signal(2)
        out, err = alice.communicate(timeout=10)
    assert (alice.returncode, out) == (130, "")
    assert '"cancelled"' in err.splitlines()[-1]
    assert bob.cancelled.wait(5)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" * 100000, bytes(16), bytes([1]) + b"\xff" * 15],
)
def test_any_bytes_leave_the_peer_standing(home: Home, bob: Any, data: bytes) -> None:
    path = str(Runtime("public", home).socket_path)
    with socket.socket(socket.AF_UNIX) as mallory:
        mallory.connect(path)
        try:
            mallory.sendall(data)
            mallory.shutdown(socket.SHUT_WR)
            while mallory.recv(4096):
                pass
        except OSError:
            pass  # hung up on, as it should be
    with ControlClient.connect(home) as client:
        assert client.call("id", {}, timeout=5)["peer"] == bob.id


@pytest.mark.parametrize(
    ("method", "value", "code"),
    [
        ("__class__", {PARAMS: {}}, Code.UNKNOWN_METHOD),
        ("find", {PARAMS: {"task": 3}}, Code.BAD_INPUT),
        ("find", {PARAMS: {"limit": "x"}}, Code.BAD_INPUT),
        ("find", {PARAMS: {"all": "x"}}, Code.BAD_INPUT),
        ("publish", {PARAMS: {"source": "m:f", "tags": [1]}}, Code.BAD_INPUT),
        ("invoke", {PARAMS: {}}, Code.BAD_INPUT),
        ("status", {PARAMS: []}, Code.BAD_INPUT),
        ("status", 3, Code.BAD_INPUT),
        ("status", {PARAMS: {}, NETWORK: 3}, Code.BAD_INPUT),
    ],
)
def test_wishes_of_the_wrong_shape(home: Home, bob: Any, method: str, value: object, code: Code) -> None:
    exchange = Exchange(Role.CALLER)
    with socket.socket(socket.AF_UNIX) as alice:
        alice.connect(str(Runtime("public", home).socket_path))
        for buffer in exchange.send(Call("", value, method)):
            alice.sendall(buffer)
        while (event := exchange.next_event()) is None:
            exchange.received(alice.recv_into(exchange.get_buffer()))
    assert isinstance(event, Fault)
    assert event.code is code
    assert bob.asked == []


def test_a_frozen_peer_is_a_deadline(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_wire, "SILENCE_SECONDS", 0.1)
    path = Runtime("public", home).socket_path
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen()
        with ControlClient.connect(home) as client, pytest.raises(LocalError) as caught:
            client.call("status", {})
    assert caught.value.code is Code.DEADLINE


def test_a_command_waits_for_a_peer_that_is_starting(
    home: Home, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    words: list[str] = []

    def on_wait(line: str) -> None:
        words.append(line)
        request.getfixturevalue("bob")  # who opens his socket while the command waits

    with Runtime("public", home).lock(joining=True):
        with monkeypatch.context() as impatient:
            impatient.setattr(client_page, "START_SECONDS", 0.0)
            with pytest.raises(LocalError, match=rf"process {os.getpid()}\) is starting") as caught:
                ControlClient.awaited(home, on_wait=words.append)
        assert (caught.value.code, words) == (Code.NOT_RUNNING, [])
        with ControlClient.awaited(home, on_wait=on_wait) as client:
            assert client.call("id", {})["peer"]
        assert len(words) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["find", "--task", "a"],
        ["status"],
        ["status", "--watch"],
        ["owner", "trust", "acme/echo", KeyPair(bytes(32)).id.text],
        ["doctor"],
    ],
)
def test_a_peer_that_starts_for_longer_than_the_timeout_is_named_with_its_log(
    home: Home, cli: Any, argv: list[str]
) -> None:
    """Nobody acts meanwhile as if no peer ran there, and nothing is looked up for a hint."""
    began = time.monotonic()
    with Runtime("public", home).lock(joining=True):
        ran = cli(*argv, "--timeout", "0.2")
    assert time.monotonic() - began < client_page.START_SECONDS / 2
    text = ran.err + ran.out
    assert ran.status == (6 if argv == ["doctor"] else 7)
    assert f"(process {os.getpid()}) is starting, and does not answer yet" in text
    assert "modelnet-peer logs says what it is at" in text
    assert "no peer is running" not in text
    assert "none is running" not in text
    assert not home.owners_path.exists()


def test_watching_begins_with_a_peer_that_is_starting(
    home: Home, cli: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    started: list[object] = []

    def pause(seconds: float) -> None:
        if started:  # after one look
            signal.raise_signal(signal.SIGINT)
        started.append(request.getfixturevalue("bob"))  # he opens his socket while the command waits for it

    with Runtime("public", home).lock(joining=True), monkeypatch.context() as patched:
        patched.setattr(time, "sleep", pause)
        ran = cli("status", "--watch", "--json")
    assert (ran.status, len(ran.out.splitlines())) == (130, 1)
    assert "which is starting" in ran.err


def test_a_call_ends_with_its_time_and_not_with_the_next_beat(home: Home, bob: Any) -> None:
    began = time.monotonic()
    with ControlClient.connect(home) as client, pytest.raises(LocalError, match="did not answer in time"):
        client.call("invoke", {"target": "sleeper"}, timeout=0.1)
    assert time.monotonic() - began < control_wire.BEAT_SECONDS


def test_a_join_of_the_same_moment_has_a_second_to_take_its_home(home: Home) -> None:
    runtime, held = Runtime("public", home), threading.Event()

    def join() -> None:
        with runtime.lock(joining=True):
            held.wait(10)

    def on_wait(line: str) -> None:
        held.set()  # it fails to start: it lets go

    timer = threading.Timer(0.1, join)
    timer.start()
    with pytest.raises(LocalError, match="no peer is running"):
        ControlClient.awaited(home, on_wait=on_wait, grace=1.0)
    assert held.is_set()
    timer.join()


def test_a_peer_that_dies_in_a_call_is_not_running(home: Home) -> None:
    path = Runtime("public", home).socket_path
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(path))
        dying.listen()
        thread = threading.Thread(target=lambda: dying.accept()[0].close())
        thread.start()
        with ControlClient.connect(home) as client, pytest.raises(LocalError) as caught:
            client.call("status", {})
        thread.join()
    assert caught.value.code is Code.NOT_RUNNING
    with pytest.raises(LocalError) as caught:  # the socket is still there, and nobody behind it
        ControlClient.connect(home)
    assert caught.value.code is Code.NOT_RUNNING


def test_one_bound_holds_for_commands_and_for_calls() -> None:
    assert MAX_INPUT_BYTES == MAX_BODY_BYTES


def test_a_call_may_take_longer_to_send_than_the_peer_may_be_silent(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_wire, "SILENCE_SECONDS", 0.5)
    path = Runtime("public", home).socket_path

    def answer(slow: socket.socket) -> None:
        exchange = Exchange(Role.ANSWERER)
        connection, _ = slow.accept()
        with connection:
            while (event := exchange.next_event()) is None:
                time.sleep(0.05)  # between pieces: in all more than one silence, none of them one
                exchange.received(connection.recv_into(exchange.get_buffer()[: 256 << 10]))
            assert isinstance(event, Call)
            assert isinstance(event.value, dict)
            for buffer in exchange.send(Result(len(event.value["input"]))):
                connection.sendall(buffer)

    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(path))
        slow.listen()
        thread = threading.Thread(target=answer, args=(slow,), daemon=True)
        thread.start()
        began = time.monotonic()
        with ControlClient.connect(home) as client:
            assert client.call("invoke", {}, bytes(4 << 20)) == 4 << 20
        assert time.monotonic() - began > 0.5
        thread.join(5)
