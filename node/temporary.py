"""A client peer where none is running: dials others, is never dialled, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.disk.runtime import Runtime

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer


def bootstraps(settings: Settings) -> tuple[str, ...]:
    """Whom to meet: the bootstraps, or the peers of this user and network; LocalError if there is none."""
    bootstrap = settings.bootstrap or tuple(Runtime(settings.network).others())
    if not bootstrap:
        raise LocalError(
            Code.UNREACHABLE,
            f"no peer of the network {settings.network!r} is known to ask",
            hint="modelnet-peer join, or name one: --bootstrap MULTIADDR",
        )
    return bootstrap


@asynccontextmanager
async def open_temporary(settings: Settings, bootstrap: tuple[str, ...]) -> AsyncIterator[Peer]:
    """A client that has met somebody; raises LocalError (unreachable) where nobody answers."""
    from modelnet_p2p.node.peer import Peer  # not at the top: see `bootstraps`, whose error need not cost it

    opened = Peer.open(bootstrap=bootstrap, listen=(), network=settings.network, tuning=settings.tuning)
    async with opened as peer:
        if settings.home.path.is_dir():  # who only asks, and has no home yet, leaves nothing behind
            peer.owners.keep_under(settings.home.owners_path)
            peer.keep_revocations_under(settings.home.revocations_path)
        peer.keep_weights_under(settings.home.cache_path)
        if not peer.bootstrapped.reached:
            tried = ", ".join(peer.bootstrapped.tried)
            if peer.bootstrapped.strangers:
                raise LocalError(
                    Code.UNREACHABLE,
                    f"no peer of the network {settings.network!r} answers at {tried}",
                    hint="modelnet-peer status there names its network: --network NAME",
                )
            raise LocalError(
                Code.UNREACHABLE,
                f"nobody to ask answers at {tried}",
                hint="modelnet-peer join there, or name another one: --bootstrap MULTIADDR",
            )
        yield peer
