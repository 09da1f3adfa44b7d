"""Who hangs up while a step of the model runs is heard at once, and nobody else is taken for them."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Self

import pytest

from modelnet_p2p.node.serving.backends.contract import Emit
from modelnet_p2p.node.serving.child.control import Control
from modelnet_p2p.node.serving.child.farewells import Farewells, Watch
from modelnet_p2p.node.serving.child.line import House, Line
from modelnet_p2p.node.serving.child.loop_lines import LoopLines
from modelnet_p2p.payload import Value

PATIENCE = 60.0  # seconds: tells a hang from a busy machine

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere the loop drives every line"
)


async def never(method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str) -> Value:
    raise AssertionError("nobody calls")


class Switchboard:
    """The lines of a worker whose model's thread is busy, and those who hang up."""

    def __init__(self) -> None:
        """In the loop."""
        self._sockets: list[socket.socket] = []
        self.peer, control = self.pair()
        self.gone: list[Line] = []
        self.on_gone: Callable[[Line], None] = lambda line: None
        self._house = House(never, Control(control))
        self._waits = LoopLines(self._house, lambda: None)
        self._waits.rest(lambda lines: None)
        self._said = asyncio.Event()
        self._farewells = Farewells(control, self._said.set, self._on_hang_up)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        both = socket.socketpair()
        self._sockets.extend(both)
        return both

    def open(self, pair: tuple[socket.socket, socket.socket] | None = None) -> tuple[Line, socket.socket]:
        """In any thread: a line, and its caller's end."""
        ours, theirs = pair or self.pair()
        line = self._house.open(ours, self._waits)
        self._farewells.expect(line)
        return line, theirs

    def close(self, line: Line) -> None:
        """In any thread."""
        self._farewells.forget(line)
        self._house.close(line)

    def _on_hang_up(self, line: Line) -> None:
        self.gone.append(line)
        self.on_gone(line)

    async def settled(self) -> None:
        """All that has happened until now has been told."""
        self._said.clear()
        self.peer.send(b"x")
        await asyncio.wait_for(self._said.wait(), PATIENCE)


def tell(story: Callable[[Switchboard], Coroutine[object, object, None]]) -> None:
    async def told() -> None:
        with Switchboard() as board:
            await story(board)

    asyncio.run(told())


def test_who_hangs_up_is_told_once_and_who_stays_is_not() -> None:
    async def story(board: Switchboard) -> None:
        (alice, her_end), (bob, his_end) = board.open(), board.open()
        board.on_gone = lambda line: line.sock.shutdown(socket.SHUT_WR)  # as the worker does
        her_end.shutdown(socket.SHUT_WR)
        await board.settled()
        her_end.close()
        his_end.send(b"not the end of his call")
        await board.settled()
        await board.settled()
        assert board.gone == [alice]
        his_end.close()
        await board.settled()
        assert board.gone == [alice, bob]

    tell(story)


def test_who_hung_up_before_anybody_listened_is_told_too() -> None:
    async def story(board: Switchboard) -> None:
        pair = board.pair()
        pair[1].close()
        line, _ = board.open(pair)
        await board.settled()
        assert board.gone == [line]

    tell(story)


def test_of_a_line_that_is_closed_nothing_more_is_told() -> None:
    async def story(board: Switchboard) -> None:
        (alice, her_end), (bob, his_end) = board.open(), board.open()
        her_end.close()
        board.close(alice)  # before the loop has come to it
        his_end.close()
        await board.settled()
        assert board.gone == [bob]

    tell(story)


def test_a_line_that_gets_the_number_of_one_just_closed_is_not_taken_for_it() -> None:
    """Two callers hang up at once. While the loop tells of the one, the model's thread closes the other's
    line, and a third caller's line comes by its descriptor."""

    async def story(board: Switchboard) -> None:
        lines = dict([board.open(), board.open()])
        carol: list[tuple[Line, socket.socket]] = []
        numbers = {line: line.sock.fileno() for line in lines}
        threads: list[threading.Thread] = []

        def exchange(line: Line) -> None:
            board.close(line)
            carol.append(board.open())

        def on_gone(line: Line) -> None:
            if not threads:
                (other,) = lines.keys() - {line}
                threads.append(threading.Thread(target=exchange, args=(other,)))
                threads[0].start()
                threads[0].join(0.2)  # to be in the midst of it, if it can

        board.on_gone = on_gone
        for caller in lines.values():
            caller.shutdown(socket.SHUT_RDWR)  # its own descriptor stays taken
        await board.settled()
        threads[0].join(PATIENCE)
        await board.settled()
        (newcomer, _), first = carol[0], board.gone[0]
        (other,) = lines.keys() - {first}
        assert newcomer.sock.fileno() == numbers[other]  # else this shows nothing
        assert newcomer not in board.gone
        assert set(board.gone) <= set(lines)

    tell(story)


def test_a_line_is_not_closed_while_its_end_is_told() -> None:
    """So what is done to its descriptor then, is done to no other's."""

    async def story(board: Switchboard) -> None:
        line, caller = board.open()
        thread = threading.Thread(target=board.close, args=(line,))
        numbers: list[int] = []

        def on_gone(line: Line) -> None:
            thread.start()
            thread.join(0.2)
            numbers.append(line.sock.fileno())

        board.on_gone = on_gone
        caller.close()
        await board.settled()
        thread.join(PATIENCE)
        assert numbers[0] >= 0
        assert line.sock.fileno() == -1

    tell(story)


def test_the_end_of_the_control_socket_is_told_though_something_lies_unread_in_it() -> None:
    async def story() -> None:
        ended = asyncio.Event()
        peer, control = socket.socketpair()
        with peer, control:
            Watch(control, ended.set)
            peer.send(b"something")
            await asyncio.sleep(0)
            assert not ended.is_set()
            peer.close()
            await asyncio.wait_for(ended.wait(), PATIENCE)
            assert control.recv(100) == b"something"

    asyncio.run(story())
