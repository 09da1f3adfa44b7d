"""One call after another on one stream, as a state machine without I/O: bytes in, events out.

In the manner of h11: the machine holds both sides' states, moves them by one table, and judges what we
send and what they send by the same rows. A driver does this, and nothing else:

    for buffer in exchange.send(event): ...write it...

    while (event := exchange.next_event()) is None:
        exchange.received(await stream.receive_into(exchange.get_buffer()))

A small frame arrives whole in a scratch buffer, with one read, perhaps with its neighbours. The rest of
a large body is read straight into the one allocation in which it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.events import Call, End, Event, Fault, Hop, Item, Result
from modelnet_p2p.frames import (
    HEADER,
    HEADER_BYTES,
    MAX_HEAD_BYTES,
    VALUE_KINDS,
    Kind,
    decode_head,
    encode_head,
    event_of,
    kind_of,
)
from modelnet_p2p.payload import Payload, decode_value, encode_value
from modelnet_p2p.tree import BadPayload, Buffer, is_text, pack_text, unpack_text

MAX_BODY_BYTES = 1 << 30  # unless told otherwise; memory is taken for an announced body, page by page
SCRATCH_BYTES = 1 << 14  # kept per stream, so a few thousand idle ones fit tens of MiB
JOINED_BYTES = 1 << 16  # frames up to here leave as one buffer: a copy in the cache is cheaper than a write

__all__ = [
    "Call",
    "End",
    "Event",
    "Exchange",
    "Fault",
    "Hop",
    "Item",
    "LocalProtocolError",
    "RemoteProtocolError",
    "Result",
    "Role",
    "State",
]


class LocalProtocolError(LocalError):
    """This side tried to send what may not be sent now (internal), or what cannot be sent at all.

    Nothing was sent and no state has changed: an answerer can still send a fault.
    """


class RemoteProtocolError(RemoteError):
    """The other side broke the protocol, or its stream ended inside of a call; reset the stream.

    Code `unreachable` if it ended, `too-large` beyond a limit, `bad-input` otherwise. An answerer may
    send one `Fault` before it resets.
    """


class Role(Enum):
    __hash__ = object.__hash__  # Enum's is Python's own code, run a dozen times a frame

    CALLER = auto()
    ANSWERER = auto()


class State(Enum):
    """Of one side of the exchange; the comments say how each is entered and left."""

    __hash__ = object.__hash__

    IDLE = auto()  # at first, and as soon as both sides are DONE; left by a call
    SENDING = auto()  # a caller after an open call, until its End
    ANSWERING = auto()  # an answerer from the call on, until its Result or Fault
    DONE = auto()  # has said all that it may in this call
    ENDED = auto()  # its stream ended while both were IDLE; never left
    FAILED = auto()  # it broke the protocol, or its stream ended inside of a call; never left


# What a side in this state may send, and the state it is in then. All else is a protocol error.
TRANSITIONS: Mapping[Role, Mapping[State, Mapping[Kind, State]]] = {
    Role.CALLER: {
        State.IDLE: {Kind.CALL: State.DONE, Kind.OPEN_CALL: State.SENDING},
        State.SENDING: {Kind.ITEM: State.SENDING, Kind.END: State.DONE},
    },
    Role.ANSWERER: {
        State.ANSWERING: {Kind.ITEM: State.ANSWERING, Kind.RESULT: State.DONE, Kind.FAULT: State.DONE},
    },
}
# And what it does to the other side: a call makes the answerer answer; when both are DONE, both are IDLE.
CALLS = frozenset({Kind.CALL, Kind.OPEN_CALL})
Allocate = Callable[[int, Mapping[str, object]], memoryview | bytearray]
_KINDS: Mapping[int, Kind] = {int(kind): kind for kind in Kind}
_NONE: Mapping[Kind, State] = {}


class Exchange:
    """One end of a stream of calls.

    `max_body` bounds what may be announced and sent. `allocate(n, fields)` gives the n writable bytes of a
    body over 16 KiB whose head, decoded and checked, has these fields (by default they are aligned to 64 and
    not cleared); a MemoryError of it ends the stream as too-large.
    """

    def __init__(
        self,
        role: Role,
        *,
        max_body: int = MAX_BODY_BYTES,
        allocate: Allocate | None = None,
    ) -> None:
        self.role = role
        self.their_role = Role.ANSWERER if role is Role.CALLER else Role.CALLER
        self.state = State.IDLE
        self.their_state = State.IDLE
        self.bytes_in = 0  # frames of the current or last call, complete ones, with their headers
        self.bytes_out = 0
        self.wire = ""  # the compact form of tensors that the current or last call allows
        self._max_body = max_body
        self._allocate = allocate
        self._scratch = bytearray()
        self._start = self._end = 0  # what lies in the scratch and is not yet an event
        self._kind: Kind | None = None  # of the frame whose header was read, None between frames
        self._head_length = self._body_length = 0
        self._body: memoryview | None = None  # of a body that arrives directly, `_filled` bytes of it
        self._filled = 0
        self._fields: dict[str, object] = {}
        self._offered = 0  # length of the buffer given out last
        self._ended = False
        self._failure: tuple[Code, str] | None = None  # theirs

    # --- sending ---

    def send(self, event: Event) -> list[bytes | memoryview]:
        """The buffers that carry `event`, to be written in order and not changed before they are.

        Raises LocalProtocolError, having changed nothing.
        """
        if isinstance(event, Item) and (frame := self._text_item(event)) is not None:
            self.bytes_out += len(frame)
            return [frame]
        kind = kind_of(event)
        after = TRANSITIONS[self.role].get(self.state, _NONE).get(kind)
        if after is None:
            state = self.state.name
            raise LocalProtocolError(Code.INTERNAL, f"{kind.name} cannot be sent while {state}")
        try:
            payload = _NO_PAYLOAD
            if isinstance(event, (Call, Item, Result)):
                if event.wire and event.wire != self.wire and kind not in CALLS:
                    raise BadPayload(_NOT_ASKED)
                payload = encode_value(event.value, event.wire)
            head = encode_head(kind, event, payload.tree)
        except LocalError as error:
            raise LocalProtocolError(error.code, error.message, hint=error.hint) from None
        except BadPayload as error:
            raise LocalProtocolError(Code.BAD_INPUT, f"{kind.name}: {error}") from None
        if payload.size > self._max_body:
            message = f"a value of {payload.size} bytes, of {self._max_body} allowed"
            raise LocalProtocolError(Code.TOO_LARGE, message)
        if isinstance(event, Call):
            self.bytes_in = self.bytes_out = 0
            self.wire = event.wire
        self.state, self.their_state = self._after(kind, after, self.their_state)
        self.bytes_out += HEADER_BYTES + len(head) + payload.size
        start = HEADER.pack(kind, 0, len(head), payload.size) + head
        if payload.size <= JOINED_BYTES:
            return [b"".join((start, *payload.buffers))]
        return [start, *(memoryview(buffer) for buffer in payload.buffers)]

    def _text_item(self, item: Item) -> bytes | None:
        """The frame of an answer's item that is short text, as each token is; None for any other, for which
        `send` does the same in several times the time."""
        text = item.value
        if not (isinstance(text, str) and len(text) <= SCRATCH_BYTES) or item.extra or item.wire:
            return None
        if self.state is not State.ANSWERING:
            return None
        try:
            body = pack_text(text)
        except BadPayload:
            return None
        return None if len(body) > self._max_body else HEADER.pack(Kind.ITEM, 0, 0, len(body)) + body

    # --- receiving ---

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun to arrive and is not complete (once `next_event` gave None)."""
        return self._kind is not None or self._end > self._start

    def get_buffer(self, limit: int | None = None) -> memoryview:
        """Where the next bytes go, at most `limit` of them; never empty. Ask `next_event` first."""
        if self._ended:
            raise LocalProtocolError(Code.INTERNAL, "the stream has ended")
        if self._body is not None:
            view = self._body[self._filled :]
        else:
            if self._start == self._end or len(self._scratch) - self._end < SCRATCH_BYTES // 2:
                self._make_room()
            view = memoryview(self._scratch)[self._end :]
        if limit is not None:
            view = view[: max(1, limit)]
        self._offered = len(view)
        if not self._offered:
            raise LocalProtocolError(Code.INTERNAL, "there are events to take before more bytes fit")
        return view

    def _make_room(self) -> None:
        """Moves what is left to the front of a scratch that holds the whole head, if one is coming."""
        held = self._end - self._start
        coming = HEADER_BYTES + self._head_length if self._kind is not None else 0
        size = max(SCRATCH_BYTES, coming, held)
        if size == len(self._scratch):
            if self._start:
                self._scratch[:held] = self._scratch[self._start : self._end]
        else:  # replaced, not resized: a view on it may be out
            self._scratch = self._scratch[self._start : self._end] + bytes(size - held)
        self._start, self._end = 0, held

    def received(self, n: int) -> None:
        """`n` bytes were written to the start of the last buffer; 0 says that the stream ended."""
        if not 0 <= n <= self._offered:
            raise LocalProtocolError(Code.INTERNAL, f"{n} bytes received into a buffer of {self._offered}")
        self._offered = 0
        if n == 0:
            self._ended = True
        elif self._body is not None:
            self._filled += n
        else:
            self._end += n

    def next_event(self) -> Event | None:
        """What arrived, in order; None: more bytes are needed (or, in state ENDED, none will come).

        Raises RemoteProtocolError, then and from then on.
        """
        if self._failure is not None:
            raise RemoteProtocolError(*self._failure)
        if self.their_state is State.ANSWERING and (item := self._next_plain_item()) is not None:
            return item
        try:
            while (frame := self._next_frame()) is not None:
                event = self._on_frame(*frame)
                if event is not None:
                    return event
        except BadPayload as error:
            raise self._failed(Code.BAD_INPUT, str(error)) from None
        if self._ended:
            self._on_end()
        return None

    def _next_plain_item(self) -> Item | None:
        """An answer's next frame if it is an item without a head, and there whole: as each token is.

        What follows in `next_event` does the same for any frame, and says what is wrong with it.
        """
        start = self._start + HEADER_BYTES
        if self._kind is not None or self._body is not None or self._end <= start:
            return None
        word, zero, head, length = HEADER.unpack_from(self._scratch, self._start)
        end = start + length
        if word != Kind.ITEM or zero or head or not start < end <= self._end or length > self._max_body:
            return None
        body = bytes(memoryview(self._scratch)[start:end])
        try:
            value = unpack_text(body) if is_text(body) else decode_value(body)
        except BadPayload:
            return None
        self._start = end
        self.bytes_in += HEADER_BYTES + length
        return Item(value)

    def refuse(self, code: Code, message: str) -> RemoteProtocolError:
        """This side takes no more of what arrives; to be raised, as `next_event` does from now on.

        As after a violation, an answerer may still say so in one fault before the stream is reset.
        """
        return self._failed(code, message)

    def _on_end(self) -> None:
        """The stream ended and all that it brought is taken: well between calls, and nowhere else."""
        if self.state is State.ENDED:
            return
        if self.in_frame or not (self.state is self.their_state is State.IDLE):
            raise self._failed(Code.UNREACHABLE, "the stream ended inside of a call")
        self.state = self.their_state = State.ENDED

    def _next_frame(self) -> tuple[Kind, Buffer] | None:
        """The kind and body of the next complete frame; its head's fields lie in `_fields`."""
        if self._body is not None:
            if self._filled < len(self._body):
                return None
            body: Buffer = self._body
            self._body = None
        else:
            held = self._end - self._start
            if self._kind is None:
                if held < HEADER_BYTES:
                    return None
                self._on_header()
            if held < HEADER_BYTES + self._head_length:
                return None
            at = self._start + HEADER_BYTES + self._head_length
            assert self._kind is not None  # set by _on_header
            self._fields = decode_head(self._kind, bytes(self._scratch[self._start + HEADER_BYTES : at]))
            whole = self._take_body(memoryview(self._scratch)[at : self._end])
            if whole is None:
                return None
            body = whole
        kind, self._kind = self._kind, None
        assert kind is not None
        return kind, body

    def _on_header(self) -> None:
        """Judges a frame by its header, before anything is allocated for it."""
        word, zero, head, body = HEADER.unpack_from(self._scratch, self._start)
        kind = _KINDS.get(word)
        if kind is None or zero:
            raise BadPayload(f"a frame of unknown kind 0x{word:04x}")
        if kind not in TRANSITIONS[self.their_role].get(self.their_state, _NONE):
            raise BadPayload(f"{kind.name} while {self.their_state.name}")
        if head > MAX_HEAD_BYTES:
            raise self._failed(Code.TOO_LARGE, f"a head of {head} bytes, of {MAX_HEAD_BYTES} allowed")
        if body > self._max_body:
            raise self._failed(Code.TOO_LARGE, f"a body of {body} bytes, of {self._max_body} allowed")
        if body and kind not in VALUE_KINDS:
            raise BadPayload(f"{kind.name} with a body")
        self._kind, self._head_length, self._body_length = kind, head, body

    def _take_body(self, held: memoryview) -> Buffer | None:
        """The body if all of it is held; otherwise room for it, with what is held already moved there."""
        length = self._body_length
        there = min(length, len(held))
        if there == length <= SCRATCH_BYTES:
            body: memoryview | bytearray = bytearray(held[:length])
        else:
            body = self._room(length)
            body[:there] = held[:there]
        self._start += HEADER_BYTES + self._head_length + there
        if there == length:
            return body
        self._body, self._filled = memoryview(body), there
        return None

    def _room(self, length: int) -> memoryview | bytearray:
        if length <= SCRATCH_BYTES:
            return bytearray(length)
        try:
            if self._allocate is None:
                from modelnet_p2p.tensor import allocate  # not at the top: see payload

                return allocate(length)
            return memoryview(self._allocate(length, self._fields))[:length]
        except MemoryError:
            raise self._failed(Code.TOO_LARGE, f"no memory for a body of {length} bytes") from None

    def _on_frame(self, kind: Kind, body: Buffer) -> Event | None:
        """Moves the states; None for a late item, which nobody waits for."""
        after = TRANSITIONS[self.their_role][self.their_state][kind]
        late = kind is Kind.ITEM and self.state is State.DONE and self.role is Role.ANSWERER
        if kind in CALLS:
            self.bytes_in = self.bytes_out = 0
            self.wire = str(self._fields.get("wire", ""))
        elif "wire" in self._fields and self._fields["wire"] != self.wire:
            raise BadPayload(_NOT_ASKED)
        event = None if late else event_of(kind, self._fields, body)
        self._fields = {}
        self.bytes_in += HEADER_BYTES + self._head_length + self._body_length
        self.their_state, self.state = self._after(kind, after, self.state)
        return None if kind is Kind.END and self.state is State.IDLE else event

    # --- states ---

    def _after(self, kind: Kind, sender: State, other: State) -> tuple[State, State]:
        """Both sides' states after a frame that brings its sender to `sender`."""
        if kind in CALLS:
            return sender, State.ANSWERING
        if sender is other is State.DONE:
            return State.IDLE, State.IDLE
        return sender, other

    def _failed(self, code: Code, message: str) -> RemoteProtocolError:
        """Nothing of theirs is read any more; an answerer may still say why, in one fault."""
        self.their_state = State.FAILED
        self._failure = code, message
        if self.role is Role.ANSWERER and self.state is State.IDLE:
            self.state = State.ANSWERING
        elif self.role is Role.CALLER:
            self.state = State.FAILED
        self._body = None
        self._scratch, self._start, self._end = bytearray(), 0, 0
        return RemoteProtocolError(code, message)


_NO_PAYLOAD = Payload((), None, 0)
_NOT_ASKED = "its tensors are in a compact form that the call did not ask for"
