"""A peer for the length of one question, where none is running: dials others, is never dialled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.logs.level import set_up_logging
from modelnet_p2p.node.single_error import single_error

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
    bootstrap = settings.bootstrap or tuple(Runtime(settings.network).others())
    if not bootstrap:
        raise LocalError(
            Code.UNREACHABLE,
            f"no peer of the network {settings.network!r} is known to ask",
            hint="modelnet-peer join, or name one: --bootstrap MULTIADDR",
        )
    # not at the top: these bring libp2p, a second that the error above need not cost
    import trio

    from modelnet_p2p.node.control.table import Request, dispatch
    from modelnet_p2p.node.control.wire import ITEM
    from modelnet_p2p.node.peer import Peer

    set_up_logging()

    async def emit(kind: str, item: Value) -> None:
        on_item(item) if kind == ITEM else on_notice(str(item))

    async def ask() -> Value:
        opened = Peer.open(bootstrap=bootstrap, listen=(), network=settings.network, tuning=settings.tuning)
        async with opened as peer:
            if settings.home.path.is_dir():  # who only asks, and has no home yet, leaves nothing behind
                peer.owners.keep_under(settings.home.owners_path)
                peer.keep_revocations_under(settings.home.revocations_path)
            if not peer.bootstrapped.reached:
                tried = ", ".join(peer.bootstrapped.tried)
                raise LocalError(
                    Code.UNREACHABLE,
                    f"nobody to ask answers at {tried}",
                    hint="modelnet-peer join there, or name another one: --bootstrap MULTIADDR",
                )
            return await dispatch(peer, method, Request(params, value), emit)

    with single_error():
        return trio.run(ask)
