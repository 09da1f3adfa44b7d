"""Tensors made compact before they are sent, and whole again when they have come.

A caller's own tensor must fit the form that it chose, and is refused before anything is sent; an answer that
does not fit goes out as it is, for its work is done. What takes long happens in a thread: the peer
answers others meanwhile. numpy is imported only where a tensor comes by, as in payload.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from modelnet_p2p.errors import LocalError
from modelnet_p2p.payload import CompactTensor, Value, aligned, check_wire

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

log = logging.getLogger(__name__)

T = TypeVar("T")

THREAD_BYTES = 1 << 20  # of tensors; converting that many takes a millisecond, a thread a tenth of one


async def compacted(value: Value, wire: str, *, strict: bool) -> tuple[Value, bool]:
    """`value` with its large float tensors in the form `wire`, and whether there were any.

    With `strict` raises LocalError (bad-input) for a tensor that the form cannot hold, or for a form that
    there is not; without, such a tensor stays as it is.
    """
    if not check_wire(wire):
        return value, False
    from modelnet_p2p.compact import replaced, tensors_in, worth

    found = [one for one in tensors_in(value) if not isinstance(one, CompactTensor) and worth(one, wire)]
    if not found:
        return value, False
    swap = await _off_the_loop(
        lambda: _compact_all(found, wire, strict), sum(tensor.nbytes for tensor in found)
    )
    return (replaced(value, swap), True) if swap else (value, False)


def _compact_all(tensors: Sequence[Array], wire: str, strict: bool) -> dict[int, object]:
    from modelnet_p2p.compact import compact_tensor

    swap: dict[int, object] = {}
    for tensor in tensors:
        try:
            swap[id(tensor)] = swap.get(id(tensor)) or compact_tensor(tensor, wire)
        except LocalError as error:
            if strict:
                raise
            log.debug("an answer's tensor goes out as it is: %s", error.message)
    return swap


def compact_in(value: Value) -> tuple[list[CompactTensor], int]:
    """The compact tensors of a value that was received, and the bytes that they take once expanded."""
    from modelnet_p2p.compact import tensors_in

    found = [tensor for tensor in tensors_in(value) if isinstance(tensor, CompactTensor)]
    return found, sum(aligned(tensor.nbytes) for tensor in found)


async def expanded(value: Value, tensors: Sequence[CompactTensor], room: memoryview) -> Value:
    """`value` with these tensors of it as arrays, which lie in `room`, one behind the other."""
    from modelnet_p2p.compact import replaced

    swap = await _off_the_loop(lambda: _expand_all(tensors, room), len(room))
    return replaced(value, swap)


def _expand_all(tensors: Sequence[CompactTensor], room: memoryview) -> dict[int, object]:
    from modelnet_p2p.compact import expand_tensor

    swap: dict[int, object] = {}
    start = 0
    for tensor in tensors:
        swap[id(tensor)] = expand_tensor(tensor, room[start : start + tensor.nbytes])
        start += aligned(tensor.nbytes)
    return swap


async def _off_the_loop(step: Callable[[], T], size: int) -> T:
    """In a thread if it is worth one. It is not left before it ends: it uses its caller's memory."""
    return await trio.to_thread.run_sync(step) if size > THREAD_BYTES else step()
