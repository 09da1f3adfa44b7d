"""One connection to a server: HTTP/1.1 by h11 over a stream of trio's, request by request.

h11 knows the protocol and no sockets; all that is here is who waits for what, and for how long. A body is
read by a plain iterator: an async generator that a caller leaves is finished by the collector, some time
later, and here the connection is to be closed at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

import h11
import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.upstream.faults import SERVER

WRITE_SECONDS = 30.0
MAX_HEAD_BYTES = 64 << 10  # of an answer's status and headers
READ_BYTES = 64 << 10

Headers = Sequence[tuple[str, str]]


class Gone(LocalError):
    """The server cannot be reached, is silent, or broke off: `busy`, for others may answer.

    `begun`: its answer had begun, which nobody can begin again: `model-error`. `silent`: the connection is
    there, and the server may be at work on the request.
    """

    def __init__(self, what: str, *, begun: bool = False, silent: bool = False) -> None:
        super().__init__(Code.MODEL_ERROR if begun else Code.BUSY, f"{SERVER} {what}")
        self.begun = begun
        self.silent = silent

    def undelivered(self) -> Gone:
        """The same, where the answer had begun and its caller has got nothing of it."""
        return Gone(self.message.removeprefix(SERVER).strip())


class Connection:
    """A stream and the state of HTTP on it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._begun = False  # of the answer that is due something has come
        self.idle_since = 0.0  # trio time

    async def ask(
        self, method: str, path: str, headers: Headers, body: bytes, seconds: float
    ) -> h11.Response:
        """Send a request; the head of its answer, which may take `seconds`. Raises Gone."""
        self._begun = False
        events = [h11.Request(method=method, target=path, headers=list(headers)), h11.Data(data=body)]
        data = b"".join(self._machine.send(event) or b"" for event in (*events, h11.EndOfMessage()))
        try:
            with trio.fail_after(WRITE_SECONDS):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise Gone("does not take the request") from error
        while not isinstance(event := await self.next_event(seconds), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise self._gone("closed the connection")
        return event

    async def next_event(self, seconds: float) -> h11.Event | type[h11.PAUSED]:
        """What comes next; raises Gone, after `seconds` of silence too."""
        try:
            while (event := self._machine.next_event()) is h11.NEED_DATA:
                with trio.fail_after(seconds):
                    data = bytes(await self._stream.receive_some(READ_BYTES))
                self._begun = self._begun or bool(data)
                self._machine.receive_data(data)
        except trio.TooSlowError as error:
            raise Gone(f"said nothing for {seconds:g} s", begun=self._begun, silent=True) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._gone("broke the connection off") from error
        except h11.RemoteProtocolError as error:
            raise self._gone("broke the connection off, or does not speak HTTP") from error
        assert not isinstance(event, type) or event is h11.PAUSED
        return event

    def renew(self) -> bool:
        """Be ready for another request; False if this one did not end well."""
        if self._machine.our_state is not h11.DONE or self._machine.their_state is not h11.DONE:
            return False
        self._machine.start_next_cycle()
        self.idle_since = trio.current_time()
        return True

    @property
    def is_stale(self) -> bool:
        """Whether the server has said something that nobody asked for: its end, most likely."""
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return isinstance(stream, trio.SocketStream) and bool(stream.socket.is_readable())

    async def close(self) -> None:
        """At once, whatever the server thinks of it."""
        await trio.aclose_forcefully(self._stream)

    def _gone(self, what: str) -> Gone:
        return Gone(what, begun=self._begun)


class Body:
    """The body of an answer, as it comes; not more than `seconds` of silence between two parts."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        """Raises Gone."""
        match await self._connection.next_event(self._seconds):
            case h11.Data(data=data):
                return bytes(data)
            case h11.EndOfMessage() | h11.PAUSED:
                raise StopAsyncIteration
        raise Gone("broke the connection off", begun=True)


def words_of(error: OSError) -> str:
    """Why nobody answers, without saying where that was."""
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):  # one for each address of the name
        cause = cause.exceptions[0]
    if isinstance(cause, socket.gaierror):
        return "nobody knows its name"
    number = cause.errno if isinstance(cause, OSError) else None
    return os.strerror(number).lower() if number else "no connection"
