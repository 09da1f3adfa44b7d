"""A command's mouth: one synchronous call to the peer that runs on this home.

It does not import trio, so that `status` costs what a small Python program costs. Hanging
up, also by Ctrl-C, cancels the call on the other side.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import Exchange, RemoteProtocolError, Role
from modelnet_p2p.node.config import locate_home
from modelnet_p2p.node.control import wire
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import find_control, joining

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array
Sink = Callable[[Value], None]
# told how many bytes a transfer will have, gives what is to be told of each piece of it
Meter = Callable[[int], AbstractContextManager[Callable[[int], object]]]
START_SECONDS = 10.0  # that a peer which is starting is waited for: it takes one, on busy cores several
START_GRACE = 1.0  # seconds that a `join` of the same moment has, to take its home
START_PAUSE = 0.05  # seconds between two looks
SEND_BYTES = 1 << 20  # handed to the kernel at once, so that the meter moves


class StillStarting(LocalError):
    """A `join` holds the home and cannot be asked yet: no reason to act as if no peer ran there."""

    def __init__(self, home: Home, holder: str) -> None:
        super().__init__(
            Code.NOT_RUNNING,
            f"the peer on {home.path} (process {holder}) is starting, and does not answer yet",
            hint=f"modelnet-peer logs{home_flag(home)} says what it is at; then try again",
            retryable=True,
        )


class ControlClient:
    """A connection to a running peer, for one call; close it by `with`."""

    def __init__(self, connection: socket.socket, path: Path, silence: float) -> None:
        self._socket = connection
        self._path = path
        self._silence = silence

    @classmethod
    def awaited(
        cls,
        home: Home,
        *,
        on_wait: Callable[[str], None],
        grace: float = 0.0,
        timeout: float = math.inf,
        silence: float | None = None,
    ) -> ControlClient:
        """Reach the peer on `home` also while it starts; raises LocalError as `connect` does.

        A `join` that holds the home has START_SECONDS to open its socket, `timeout` if that is less, and
        then it is StillStarting. One that was typed just before this command has `grace` seconds to take the
        home.
        """
        began, told = time.monotonic(), False
        while True:
            holder = joining(home)  # before the look at its socket: else one that is ready now seems to start
            try:
                return cls.connect(home, silence=silence)
            except LocalError as error:
                if error.code is not Code.NOT_RUNNING:
                    raise
                if time.monotonic() - began > min(timeout, START_SECONDS if holder else grace):
                    raise StillStarting(home, holder) if holder else error from None
            if holder and not told:
                told = True
                on_wait(f"waiting for the peer on {home.path} (process {holder}), which is starting")
            time.sleep(START_PAUSE)

    @classmethod
    def connect(cls, home: Home, *, silence: float | None = None) -> ControlClient:
        """Reach the peer on `home`; LocalError: not-running, or bad-state if that cannot be told.

        A peer that shows no sign of life for `silence` seconds (None: some beats missed) is given up.
        """
        path = find_control(home)
        silence = wire.SILENCE_SECONDS if silence is None else silence
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(silence)
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            connection.close()
            raise not_running(home) from error
        except OSError as error:
            connection.close()
            raise LocalError(
                Code.BAD_STATE, f"cannot reach the control socket {path}: {reason(error)}"
            ) from error
        return cls(connection, path, silence)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(
        self,
        method: str,
        params: Mapping[str, Value],
        value: Value = None,
        *,
        timeout: float | None = None,
        on_item: Sink = lambda value: None,
        on_notice: Callable[[str], None] = lambda line: None,
        network: str | None = None,
        meter: Meter | None = None,
    ) -> Value:
        """Make the one call; items and notices go to their sinks as they come.

        A peer of another network than `network` refuses it. `meter` watches the call being sent. Raises
        what the peer raised, or LocalError (deadline) after `timeout` seconds, or if the peer shows no
        sign of life.
        """
        until = None if timeout is None else time.monotonic() + timeout
        exchange = Exchange(Role.CALLER, max_body=wire.MAX_BODY_BYTES)
        call = wire.to_call(method, params, value, network)
        buffers = [memoryview(buffer).cast("B") for buffer in exchange.send(call)]
        with meter(sum(map(len, buffers))) if meter else nullcontext(_unmetered) as sent, self._told():
            for buffer in buffers:
                self._send(buffer, sent)
        while True:
            with self._told():  # the sinks stay outside: a pipe that breaks there is not this socket
                event = self._next(exchange, until)
            match wire.heard(event):
                case wire.ITEM, item:
                    on_item(item)
                case wire.NOTICE, str(line):
                    on_notice(line)
                case wire.RESULT, result:
                    return result

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the socket raises, in words."""
        try:
            yield
        except TimeoutError as error:
            raise LocalError(
                Code.DEADLINE,
                f"the peer behind {self._path} has said nothing for {self._silence:g} s",
                hint="it may be stopped: see `ps`, or restart it with modelnet-peer join",
            ) from error
        except (OSError, RemoteProtocolError) as error:
            words = reason(error) if isinstance(error, OSError) else error.message
            raise LocalError(
                Code.NOT_RUNNING, f"the running peer went away: {words}", hint="modelnet-peer join"
            ) from error

    def _send(self, buffer: memoryview, sent: Callable[[int], object]) -> None:
        """All of it. Each piece has the socket's timeout, unlike `sendall`, which has it for the whole."""
        while buffer:
            count = self._socket.send(buffer[:SEND_BYTES])
            sent(count)
            buffer = buffer[count:]

    def _next(self, exchange: Exchange, until: float | None) -> object:
        while (event := exchange.next_event()) is None:
            left = math.inf if until is None else until - time.monotonic()
            if left <= 0:
                raise LocalError(
                    Code.DEADLINE,
                    "the running peer did not answer in time",
                    hint="give it longer: --timeout S",
                )
            self._socket.settimeout(min(left, self._silence))
            try:
                count = self._socket.recv_into(exchange.get_buffer())
            except TimeoutError:
                if self._silence <= left:
                    raise
                continue
            exchange.received(count)
        return event


def ask_at_once(
    home: Home, method: str, params: Mapping[str, Value], *, until: float, network: str | None = None
) -> dict[str, Value]:
    """For who can do without: what the peer on `home` answers until then (monotonic seconds); empty from one
    that does not run yet, is not quick, or refuses."""
    with suppress(ModelnetError):
        if (left := until - time.monotonic()) > 0:
            with ControlClient.connect(home, silence=left) as client:
                left = until - time.monotonic()
                answer = client.call(method, params, timeout=left, network=network)
                return answer if isinstance(answer, dict) else {}
    return {}


def _unmetered(count: int) -> None:
    pass


def not_running(home: Home) -> LocalError:
    """No peer runs on `home`; the hint is the command that starts one."""
    return LocalError(
        Code.NOT_RUNNING,
        f"no peer is running on {home.path}",
        hint=f"modelnet-peer join{home_flag(home)}",
    )


def home_flag(home: Home) -> str:
    """` --home DIR` as a shell takes it, empty where the command would find this home without."""
    if home == locate_home(None, os.environ):
        return ""
    return f" --home {quote(str(home.path))}"
