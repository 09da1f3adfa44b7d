"""A peer for the length of one question, where none is running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.logs.level import set_up_logging
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.temporary import bootstraps, open_temporary

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array


def ask_temporary(
    settings: Settings,
    method: str,
    params: Mapping[str, Value],
    value: Value,
    on_item: Callable[[Value], None],
    on_notice: Callable[[str], None],
) -> Value:
    """Answer one control call by a client peer in this process.

    It begins at the bootstraps, or at the peers of this user and network; LocalError (unreachable) where
    there is neither.
    """
    bootstrap = bootstraps(settings)
    # not at the top: these bring the transport, a second that the error above need not cost
    import trio

    from modelnet_p2p.node.control.table import Request, dispatch
    from modelnet_p2p.node.control.wire import ITEM

    set_up_logging()

    async def emit(kind: str, item: Value) -> None:
        on_item(item) if kind == ITEM else on_notice(str(item))

    async def ask() -> Value:
        async with open_temporary(settings, bootstrap) as peer:
            return await dispatch(peer, method, Request(params, value), emit)

    with single_error():
        return trio.run(ask)
