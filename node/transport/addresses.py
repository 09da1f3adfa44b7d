"""Multiaddrs: text for people and the transport, bytes for records and the wire.

The `multiaddr` package does the work, but takes truncated binary addresses for whole ones and raises
from several families; here every address is checked to survive the way back, and everything that is
wrong is one LocalError (bad-input). All functions are pure and cached: replies repeat addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import PeerId

MAX_TEXT = 512  # characters; MAX_BINARY bytes of any kind fit
MAX_BINARY = 256  # bytes, as in a contact of the DHT: a relayed address with two peer ids has 110
_CACHE = 4096  # addresses of about 200 peers, each with its few, in both directions
_HOSTS = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})
GROUP_BITS = {4: 24, 6: 48}  # what one customer of a provider usually gets


def _bad(shown: object, why: str) -> LocalError:
    return LocalError(
        Code.BAD_INPUT,
        f"{str(shown)[:100]!r} is not an address: {why}",
        hint="an address looks like /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…",
    )


@lru_cache(_CACHE)
def to_binary(text: str) -> bytes:
    """The binary form of a text multiaddr."""
    if len(text) > MAX_TEXT:
        raise _bad(text, f"it has more than {MAX_TEXT} characters")
    if not text.isascii() or not text.startswith("/"):
        raise _bad(text, "it does not start with /, or is not plain ASCII")
    try:
        raw: bytes = Multiaddr(text).to_bytes()
    except (MultiaddrError, ValueError) as error:
        raise _bad(text, str(error).partition("(string")[0][:120]) from error
    if not 0 < len(raw) <= MAX_BINARY:
        raise _bad(text, f"it is empty, or over {MAX_BINARY} bytes")
    return raw


@lru_cache(_CACHE)
def to_text(raw: bytes) -> str:
    """The text form of a binary multiaddr."""
    if not 0 < len(raw) <= MAX_BINARY:
        raise _bad(raw, f"it has {len(raw)} bytes")
    try:
        text = str(Multiaddr(raw))
        whole = text.isascii() and text.startswith("/") and Multiaddr(text).to_bytes() == raw
    except (MultiaddrError, ValueError) as error:
        raise _bad(raw, str(error)[:120]) from error
    if not whole:
        raise _bad(raw, "it is cut short, or not in its shortest form")
    return text


@lru_cache(_CACHE)
def split_p2p(text: str) -> tuple[PeerId | None, str]:
    """The peer that a text address ends in (None if in none), and the address without it.

    `/p2p/<id>` alone is a peer without an address: the empty string.
    """
    to_binary(text)
    rest, name, tail = text.rpartition("/p2p/")
    if not name or "/" in tail.rstrip("/"):
        return None, text.rstrip("/")
    return PeerId.parse(tail.rstrip("/")), rest


def with_peer(text: str, peer: PeerId) -> str:
    """The address with `/p2p/<peer>` behind it."""
    return f"{text}/p2p/{peer}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a plain TCP address leads: a host name or IP address in text, and a port."""

    kind: str  # ip4, ip6, dns, dns4 or dns6
    host: str
    port: int


@lru_cache(_CACHE)
def tcp_endpoint(text: str) -> Endpoint | None:
    """The endpoint of a plain TCP address (with or without `/p2p/…`); None for other transports."""
    parts = split_p2p(text)[1].split("/")[1:]
    if len(parts) != 4 or parts[0] not in _HOSTS or parts[2] != "tcp":
        return None
    return Endpoint(parts[0], parts[1], int(parts[3]))


def tcp_address(host: str, port: int) -> str:
    """The text multiaddr of an IP address and a TCP port; a v4 address inside a v6 one is v4."""
    ip = _ip(host)
    return f"/ip{ip.version}/{ip}/tcp/{port}"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(host.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def is_public(host: str) -> bool:
    """Whether an IP address in text is one of the public internet; False for a name."""
    try:
        return _ip(host).is_global
    except ValueError:
        return False


def ip_group(host: str) -> str | None:
    """The network (/24 or /48) that a public IP address lies in, None for any other."""
    if not is_public(host):
        return None
    ip = _ip(host)
    return str(ipaddress.ip_network((ip, GROUP_BITS[ip.version]), strict=False))


def texts(addrs: Sequence[bytes]) -> tuple[str, ...]:
    """Binary multiaddrs as text, without those that this version cannot read."""
    found: list[str] = []
    for addr in addrs:
        try:
            found.append(to_text(addr))
        except LocalError:
            continue
    return tuple(found)


def binaries(addrs: Sequence[str]) -> tuple[bytes, ...]:
    """Text multiaddrs as bytes, without those that this version cannot read."""
    found: list[bytes] = []
    for addr in addrs:
        try:
            found.append(to_binary(addr))
        except LocalError:
            continue
    return tuple(found)
