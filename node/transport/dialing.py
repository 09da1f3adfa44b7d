"""Dialling one peer at several addresses: a race with staggered starts, won by the first handshake.

All addresses are tried, loopback ones too. An address counts as reached only when the peer that we want
has proved to be there, so a stale address that somebody else answers costs nothing but its attempt.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.transport.addresses import Endpoint, tcp_endpoint
from modelnet_p2p.node.transport.link import Link
from modelnet_p2p.node.transport.registry import Target
from modelnet_p2p.node.transport.upgrade import Upgrader, dial

STAGGER = 0.2  # seconds that an address has before the next one is tried beside it


@dataclass(frozen=True, slots=True)
class Reached:
    link: Link
    addr: str


async def reach(target: Target, upgrader: Upgrader, timeout: float) -> Reached:
    """Connect to the peer; raises RemoteError (unreachable, deadline) that names what was tried."""
    race = _Race(target, upgrader)
    with trio.move_on_after(timeout):
        await race.run()
    if race.reached is not None:
        return race.reached
    tried = ", ".join(f"{addr} ({race.failures.get(addr, 'no answer')})" for addr in target.addrs)
    slow = len(race.failures) < len(target.addrs)
    what = f"did not answer within {timeout:g} s" if slow else "is not reachable"
    raise RemoteError(
        Code.DEADLINE if slow else Code.UNREACHABLE,
        f"peer {target.peer} {what}; tried {tried or 'nothing: no address of it is known'}",
        peer=str(target.peer),
        retryable=True,
    )


class _Race:
    def __init__(self, target: Target, upgrader: Upgrader) -> None:
        self.reached: Reached | None = None
        self.failures: dict[str, str] = {}
        self._target = target
        self._upgrader = upgrader

    async def run(self) -> None:
        if len(self._target.addrs) == 1:
            await self._try(self._target.addrs[0], trio.Event(), trio.CancelScope())
            return
        async with trio.open_nursery() as nursery:
            for addr in self._target.addrs:
                failed = trio.Event()
                nursery.start_soon(self._try, addr, failed, nursery.cancel_scope)
                with trio.move_on_after(STAGGER):
                    await failed.wait()

    async def _try(self, addr: str, failed: trio.Event, race: trio.CancelScope) -> None:
        try:
            link = await self._attempt(addr)
        except (OSError, RemoteError, LocalError) as error:
            self.failures[addr] = _reason(error)
            failed.set()
            return
        if self.reached is None:
            self.reached = Reached(link, addr)
            race.cancel()
        else:  # both got through before the cancellation was seen
            link.lose()

    async def _attempt(self, addr: str) -> Link:
        endpoint = tcp_endpoint(addr)
        if endpoint is None:
            raise LocalError(Code.BAD_INPUT, "not a TCP address")
        return await self._connect(endpoint)

    async def _connect(self, endpoint: Endpoint) -> Link:
        stream = await dial(endpoint)
        link: Link | None = None
        try:
            link = await self._upgrader.upgrade(stream, self._target.peer)
            return link
        finally:
            if link is None:
                stream.socket.close()


def _reason(error: OSError | RemoteError | LocalError) -> str:
    """A failure in a few words; trio wraps refused connections into one of its own."""
    if isinstance(error, OSError):
        cause = error.__cause__
        while isinstance(cause, BaseExceptionGroup) and cause.exceptions:
            cause = cause.exceptions[0]
        known = cause if isinstance(cause, OSError) else error
        if known.errno is not None and known.errno > 0:  # the resolver's own are negative
            return os.strerror(known.errno).lower()
        return (known.strerror or str(known)).lower()
    return error.message
