"""What a worker tells its peer beside its calls, whoever drives them."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Mapping

import pytest

from modelnet_p2p.exchange import Call, Exchange, Result, Role
from modelnet_p2p.node.serving.backends.contract import Emit
from modelnet_p2p.node.serving.child.control import Control
from modelnet_p2p.node.serving.child.line import House
from modelnet_p2p.node.serving.child.loop_lines import LoopLines
from modelnet_p2p.node.serving.child.thread_lines import ThreadLines
from modelnet_p2p.node.serving.policy.notes import FROM_WORKER, Note, NoteKind, Notes
from modelnet_p2p.payload import Value

PATIENCE = 60.0  # seconds: tells a hang from a busy machine
FREED = [Note(NoteKind.FREED, number) for number in range(50_000)]  # more than a socket takes at once


def ask(stream: socket.socket, value: Value) -> Value:
    """One call, as the peer makes it."""
    exchange = Exchange(Role.CALLER)
    for buffer in exchange.send(Call("model", value)):
        stream.sendall(buffer)
    while (event := exchange.next_event()) is None:
        exchange.received(stream.recv_into(exchange.get_buffer()))
    assert isinstance(event, Result)
    return event.value


def hear(control: socket.socket, count: int) -> list[Note]:
    notes, heard = Notes(FROM_WORKER), list[Note]()
    while len(heard) < count:
        heard.extend(notes.receive(control.recv(1 << 16)))
    return heard


@pytest.mark.parametrize("driver", ["loop", "thread"])
def test_what_the_socket_does_not_take_is_told_later(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer reads the call's end first, which does not wait for the notes to be read."""
    if driver == "thread" and not sys.platform.startswith("linux"):
        pytest.skip("elsewhere the loop drives every line")
    ours, theirs = socket.socketpair()
    stream, their_stream = socket.socketpair()
    for sock in (ours, stream):
        sock.settimeout(PATIENCE)

    async def story() -> None:
        control, spent = Control(theirs), list[list[Note]]()
        monkeypatch.setattr(control.memory, "spent", lambda: spent.pop() if spent else [])

        async def run(
            method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str
        ) -> Value:
            spent.append(FREED)
            return value

        house = House(run, control)
        in_loop, in_thread = LoopLines(house, lambda: None), None
        thread = threading.Thread()
        if driver == "thread":
            in_loop.rest(lambda _: None)
            in_thread = ThreadLines(house, [])
            thread = threading.Thread(target=in_thread.serve)
        thread.start()
        socket.send_fds(ours, [Note(NoteKind.STREAM).pack()], [their_stream.fileno()])
        try:
            assert await asyncio.to_thread(ask, stream, "hello") == "hello"
            assert await asyncio.to_thread(hear, ours, len(FREED)) == FREED
            assert await asyncio.to_thread(ask, stream, "again") == "again"
        finally:
            if in_thread is not None:
                in_thread.leave()
            await in_loop.leave()
            await asyncio.to_thread(thread.join)

    try:
        asyncio.run(story())
    finally:
        for sock in (ours, theirs, stream, their_stream):
            sock.close()
