"""Events as frames: a fixed header of 16 bytes, a head (msgpack map), a body (see payload).

Header, little-endian: kind u8, flags u8, zero u16, length of the head u32, length of the body u64.
A head names only what differs from its default. Keys that this version does not know are kept in
`extra`; a known key of the wrong type ends the stream. Both directions run through the same table of
checks, so what is accepted here for sending is accepted by an equal at the other end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from modelnet_p2p.errors import Code
from modelnet_p2p.events import MAX_FAULT_CHARS, Call, End, Event, Fault, Hop, Item, Result
from modelnet_p2p.payload import WIRES, decode_value
from modelnet_p2p.tree import (
    SMALL_BYTES,
    BadPayload,
    Buffer,
    check_tree,
    pack_shallow,
    pack_tree,
    unpack_small,
    unpack_tree,
)

HEADER = struct.Struct("<HHIQ")  # kind and flags together, for the one flag there is makes a kind
HEADER_BYTES = HEADER.size
MAX_HEAD_BYTES = 1 << 16  # params and a trace of 64 hops fit; the head is held before anything is known
MAX_HOPS = 64  # longer chains of peers do not answer in anyone's deadline
MAX_TARGET_BYTES = 512  # a model URI's bound
MAX_LABEL_BYTES = 128  # keys, sessions, peer ids, digests, methods
MAX_AUTH_BYTES = 4096  # a token, or a small chain of signed grants


class Kind(IntEnum):
    """The first two bytes of a frame: kind + 256 * flags. Flag 1, on a call only: items follow."""

    __hash__ = int.__hash__  # Enum's is Python's own code, run a dozen times a frame

    CALL = 0x0001
    OPEN_CALL = 0x0101
    ITEM = 0x0002
    END = 0x0003
    RESULT = 0x0004
    FAULT = 0x0005


Check = Callable[[object], object]


def _text(limit: int) -> Check:
    def check(value: object) -> object:
        if type(value) is not str or len(value) > limit:
            raise BadPayload(f"is not text of at most {limit} characters")
        return value

    return check


def _count(value: object) -> object:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise BadPayload("is not a number from 0 to 2**63")
    return value


def _flag(value: object) -> object:
    if type(value) is not bool:
        raise BadPayload("is not true or false")
    return value


def _params(value: object) -> object:
    if type(value) is not dict:
        raise BadPayload("is not a map")
    return value


def _auth(value: object) -> object:
    if type(value) is not bytes or len(value) > MAX_AUTH_BYTES:
        raise BadPayload(f"is not at most {MAX_AUTH_BYTES} bytes")
    return value


def _hops(value: object) -> object:
    if type(value) is not list or len(value) > MAX_HOPS:
        raise BadPayload(f"is not a list of at most {MAX_HOPS} hops")
    return tuple(_hop(row) for row in value)


def _hop(row: object) -> Hop:
    if type(row) is not list or len(row) not in (5, 6):
        raise BadPayload("holds a hop that is not a list of five or six")
    _label(row[0])
    if row[1] is not None:
        _label(row[1])
    for number in row[2:5]:
        _count(number)
    if len(row) == 6:
        _label(row[5])
    return Hop(*row)


def _wire(value: object) -> object:
    if value not in WIRES:
        raise BadPayload(f"is not one of {', '.join(WIRES)}")
    return value


def _code(value: object) -> object:
    _label(value)
    return Code.from_wire(value)


_label = _text(MAX_LABEL_BYTES)

# The heads of each kind: key -> check. "tree" is the length of the body's tree where tensors follow it,
# "wire" the form of those among them that are compact (and in a call, of those that may be in its answer).
_VALUE: Mapping[str, Check] = {"tree": _count, "wire": _wire}
_CALL: Mapping[str, Check] = {
    "target": _text(MAX_TARGET_BYTES),
    "method": _label,
    "params": _params,
    "deadline_us": _count,
    "key": _label,
    "session": _label,
    "upstream": _label,
    "position": _count,
    "trace": _hops,
    "auth": _auth,
    **_VALUE,
}
_RESULT: Mapping[str, Check] = {
    "digest": _label,
    "provider": _label,
    "queue_us": _count,
    "model_us": _count,
    "trace": _hops,
    **_VALUE,
}
_FAULT: Mapping[str, Check] = {
    "code": _code,
    "message": _text(MAX_FAULT_CHARS),
    "retryable": _flag,
    "hint": _text(MAX_FAULT_CHARS),
    "instead": _label,
}
FIELDS: Mapping[Kind, Mapping[str, Check]] = {
    Kind.CALL: _CALL,
    Kind.OPEN_CALL: _CALL,
    Kind.ITEM: _VALUE,
    Kind.END: {},
    Kind.RESULT: _RESULT,
    Kind.FAULT: _FAULT,
}
VALUE_KINDS = frozenset({Kind.CALL, Kind.OPEN_CALL, Kind.ITEM, Kind.RESULT})
_REQUIRED = {Kind.CALL: "target", Kind.OPEN_CALL: "target", Kind.FAULT: "code"}


_KIND_OF: Mapping[type[Event], Kind] = {
    Call: Kind.CALL,
    Item: Kind.ITEM,
    Result: Kind.RESULT,
    Fault: Kind.FAULT,
    End: Kind.END,
}


def kind_of(event: Event) -> Kind:
    """The kind of frame that carries `event`."""
    if isinstance(event, Call):
        return Kind.OPEN_CALL if event.open_input else Kind.CALL
    return _KIND_OF[type(event)]


def _rows(trace: tuple[Hop, ...]) -> list[list[object]]:
    return [
        [hop.provider, hop.digest, hop.bytes_in, hop.bytes_out, hop.us, *((hop.wire,) if hop.wire else ())]
        for hop in trace
    ]


def _clip(text: str) -> str:
    """A fault is always sent, whatever an exception wrote into its message."""
    return text[:MAX_FAULT_CHARS].encode(errors="replace").decode()


def _call_head(call: Call) -> dict[str, object]:
    head: dict[str, object] = {"target": call.target}
    if call.method != "invoke":
        head["method"] = call.method
    if call.params:
        head["params"] = dict(call.params)
    if call.deadline_us is not None:
        head["deadline_us"] = call.deadline_us
    if call.key:
        head["key"] = call.key
    if call.session:
        head["session"] = call.session
    if call.upstream:
        head["upstream"] = call.upstream
    if call.position is not None:
        head["position"] = call.position
    if call.trace:
        head["trace"] = _rows(call.trace)
    if call.auth:
        head["auth"] = bytes(call.auth)
    if call.wire:
        head["wire"] = call.wire
    return head


def _result_head(result: Result) -> dict[str, object]:
    head: dict[str, object] = {}
    if result.digest is not None:
        head["digest"] = result.digest
    if result.provider:
        head["provider"] = result.provider
    if result.queue_us:
        head["queue_us"] = result.queue_us
    if result.model_us:
        head["model_us"] = result.model_us
    if result.trace:
        head["trace"] = _rows(result.trace)
    if result.wire:
        head["wire"] = result.wire
    return head


def _fault_head(fault: Fault) -> dict[str, object]:
    head: dict[str, object] = {"code": fault.code.value, "message": _clip(fault.message)}
    if fault.retryable:
        head["retryable"] = True
    if fault.hint:
        head["hint"] = _clip(fault.hint)
    if fault.instead:
        head["instead"] = fault.instead
    return head


def encode_head(kind: Kind, event: Event, tree: int | None) -> bytes:
    """The head of `event`, empty if it has nothing to say; raises BadPayload."""
    match event:
        case Call():
            head = _call_head(event)
        case Result():
            head = _result_head(event)
        case Fault():
            head = _fault_head(event)
        case Item():
            if tree is None and not event.wire and not event.extra:
                return b""
            head = {"wire": event.wire} if event.wire else {}
        case End():
            head = {}
    if tree is not None:
        head["tree"] = tree
    fields = FIELDS[kind]
    _check(fields, head)
    if event.extra:
        if event.extra.keys() & fields.keys():
            raise BadPayload("extra names a field that has a place of its own")
        head = {**event.extra, **head}
    if not head:
        return b""
    # all that was checked by its name is shallow; of these two nothing is known yet
    packed = pack_tree(head) if event.extra or "params" in head else pack_shallow(head)
    if len(packed) > MAX_HEAD_BYTES:
        raise BadPayload(f"a head of {len(packed)} bytes, of {MAX_HEAD_BYTES} allowed; params are too large")
    return packed


def _check(fields: Mapping[str, Check], head: Mapping[str, object]) -> tuple[dict[str, Any], bool]:
    """What the checks make of the known fields, and whether there are others; raises BadPayload."""
    known: dict[str, Any] = {}  # Any: the table has checked each against the type of its field
    unknown = False
    key = ""
    try:
        for key, value in head.items():
            if (check := fields.get(key)) is None:
                unknown = True
            else:
                known[key] = check(value)
    except BadPayload as error:
        raise BadPayload(f"{key!r} {error}") from None
    return known, unknown


def decode_head(kind: Kind, data: Buffer) -> dict[str, Any]:
    """The fields of a head by name, checked, `extra` among them; raises BadPayload."""
    head, walked = _unpacked(data)
    if not isinstance(head, dict):
        raise BadPayload("a head is not a map")
    fields = FIELDS[kind]
    known, unknown = _check(fields, head)
    if not walked and (unknown or "params" in known):
        check_tree(data)  # of these nothing was checked by its name
    required = _REQUIRED.get(kind)
    if required is not None and required not in known:
        raise BadPayload(f"a head without {required!r}")
    if unknown:
        known["extra"] = {key: value for key, value in head.items() if key not in fields}
    return known


def _unpacked(data: Buffer) -> tuple[object, bool]:
    """What a head holds, and whether its tree was looked over before."""
    if not data:
        return {}, True
    if len(data) <= SMALL_BYTES:
        try:
            return unpack_small(data), False
        except BadPayload:
            pass  # it may be sound; if it is not, the walk says best what is wrong with it
    return unpack_tree(data), True


def event_of(kind: Kind, fields: dict[str, Any], body: Buffer) -> Event:
    """The event of a whole frame; takes the fields apart. Raises BadPayload."""
    if kind in VALUE_KINDS:
        fields["value"] = decode_value(body, fields.pop("tree", None), fields.get("wire", ""))
    if kind is Kind.OPEN_CALL:
        return Call(**fields, open_input=True)
    return _EVENTS[kind](**fields)


_EVENTS: Mapping[Kind, Callable[..., Event]] = {kind: made for made, kind in _KIND_OF.items()}
