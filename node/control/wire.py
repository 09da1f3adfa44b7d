"""What travels over the control socket: one call, then beats, notices and items, then its end.

The frames are the Exchange's; this page gives their values a meaning. A connection carries one
call. While it runs the peer sends a beat each second, so that a client tells a long call from a
frozen peer. An error crosses as a fault with its family, and is raised again on the other side.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelnet_p2p.errors import LocalError, ModelnetError, NotFound, RemoteError
from modelnet_p2p.events import Call, Fault, Item, Result
from modelnet_p2p.payload import Value

# the keys of a call's value: params may be longer than a frame's head, a publisher's environment is
PARAMS = "params"
INPUT = "input"
NETWORK = "network"  # absent, or the network that the command is about
# the one key of an item's map
BEAT = "beat"  # still at it; the value counts seconds
NOTICE = "notice"  # a line of progress for people
ITEM = "item"  # a part of the result
RESULT = "result"  # no key: what a call has ended with

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 10.0  # ten beats missed: the peer is stopped, or its machine is
# `MAX_BODY_BYTES` of the backends' contract, written again: its import would double what `status` costs
MAX_INPUT_BYTES = 512 << 20
MAX_BODY_BYTES = MAX_INPUT_BYTES + (4 << 20)  # of one frame: the largest input, and a publisher's environment

# beside a fault's own fields: which family the error was of, and which peer it was about
_FAMILY = "family"
_PEER = "peer"
_LOCAL, _REMOTE, _NOT_FOUND = "local", "remote", "not-found"


def to_call(method: str, params: Mapping[str, Value], value: Value, network: str | None) -> Call:
    """A command, of that network if it is about one."""
    return Call("", {PARAMS: dict(params), INPUT: value, NETWORK: network}, method)


def heard(event: object) -> tuple[str, Value]:
    """ITEM, NOTICE or RESULT, and what it brings; BEAT for that, and for what a newer peer says besides.

    Raises what a fault carries.
    """
    match event:
        case Item(value={**fields}) if ITEM in fields:
            return ITEM, fields[ITEM]
        case Item(value={**fields}) if isinstance(line := fields.get(NOTICE), str):
            return NOTICE, line
        case Result(value=result):
            return RESULT, result
        case Fault() as fault:
            raise to_error(fault)
    return BEAT, None


def to_fault(error: ModelnetError) -> Fault:
    """An error of the peer as the end of a call."""
    match error:
        case NotFound():
            family = _NOT_FOUND
        case RemoteError():
            family = _REMOTE
        case _:
            family = _LOCAL
    extra: dict[str, object] = {_FAMILY: family}
    if error.peer is not None:
        extra[_PEER] = error.peer
    return Fault(error.code, error.message, error.retryable, error.hint, extra, error.instead)


def to_error(fault: Fault) -> ModelnetError:
    """The error that a fault carries, of the family that it had."""
    family, peer = fault.extra.get(_FAMILY), fault.extra.get(_PEER)
    if family == _NOT_FOUND:
        return NotFound(fault.message, code=fault.code, hint=fault.hint)
    kind = RemoteError if family == _REMOTE else LocalError
    about = peer if isinstance(peer, str) else None
    return kind(
        fault.code,
        fault.message,
        hint=fault.hint,
        retryable=fault.retryable,
        peer=about,
        instead=fault.instead,
    )
