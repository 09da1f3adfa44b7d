"""Listening sockets, and the addresses under which others reach them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import ip_address

import trio
from multiaddr.utils import get_network_addrs

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.transport.addresses import tcp_address, tcp_endpoint

MAX_LISTENERS = 16  # addresses to listen on: each is told to every peer
BACKLOG = 128  # connections the kernel holds before we accept them


async def listen_on(addrs: Sequence[str]) -> list[trio.SocketListener]:
    """Listen on all of the addresses, or on none: LocalError (in-use, bad-input) names the one at fault."""
    if len(addrs) > MAX_LISTENERS:
        raise LocalError(Code.BAD_INPUT, f"{len(addrs)} addresses to listen on; {MAX_LISTENERS} are allowed")
    listeners: list[trio.SocketListener] = []
    complete = False
    try:
        for addr in addrs:
            listeners += await _listen(addr)
        complete = True
    finally:
        if not complete:
            for listener in listeners:
                listener.socket.close()
    return listeners


async def _listen(addr: str) -> list[trio.SocketListener]:
    endpoint = tcp_endpoint(addr)
    if endpoint is None:
        raise LocalError(
            Code.BAD_INPUT, f"cannot listen on {addr}: not a TCP address", hint="such as /ip4/127.0.0.1/tcp/0"
        )
    try:
        return list(await trio.open_tcp_listeners(endpoint.port, host=endpoint.host, backlog=BACKLOG))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        if error.errno == errno.EADDRINUSE:
            raise LocalError(
                Code.IN_USE, f"cannot listen on {addr}: {why}", hint="choose another port, or 0 for any"
            ) from error
        raise LocalError(Code.BAD_INPUT, f"cannot listen on {addr}: {why}") from error


def reachable_addrs(listeners: Sequence[trio.SocketListener]) -> tuple[str, ...]:
    """The addresses of the listeners; one that listens everywhere has those of all interfaces."""
    found: dict[str, None] = {}
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        for one in _hosts(str(host)):
            found[tcp_address(one, port)] = None
    return tuple(found)


def _hosts(host: str) -> list[str]:
    ip = ip_address(host.partition("%")[0])
    if not ip.is_unspecified:
        return [host]
    loopback = "127.0.0.1" if ip.version == 4 else "::1"
    return [*get_network_addrs(ip.version), loopback]
