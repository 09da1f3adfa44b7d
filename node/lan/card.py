"""What a peer says of itself on the local network, and what it makes of a stranger's card.

A card is the TXT record of libp2p's mDNS discovery (`dnsaddr=<multiaddr>`, once for each address), with
`modelnet=<network>` beside it, so that peers of other networks need not be dialled to learn that they are
none of ours; other libp2p peers skip that entry. Everybody in the building can send one, so all is bounded,
and only addresses that can lie on a local network are dialled because of a card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network, ip_address

from modelnet_p2p.errors import LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import check_network
from modelnet_p2p.node.transport.addresses import split_p2p, tcp_endpoint

MAX_CARD_BYTES = 1300  # what RFC 6763 6.2 gives a TXT record: it fits one Ethernet packet with its names
MAX_CARD_ADDRS = 8  # an address takes about 80 bytes: these fit a card beside the longest network name
MAX_CARD_DIALS = 4  # of a card, the likeliest first: a stranger makes us knock at no more doors than that
MAX_ENTRY_BYTES = 255  # one length byte stands before each entry
ADDRESS, NETWORK = b"dnsaddr=", b"modelnet="

_LOCAL4 = tuple(
    IPv4Network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
)
_LOCAL6 = (IPv6Network("fc00::/7"),)  # fe80::/10 needs a zone, which a card cannot name


@dataclass(frozen=True, slots=True)
class Card:
    """One peer of one network: its addresses are text multiaddrs without `/p2p/…`, of plain TCP."""

    network: str
    peer: PeerId
    addrs: tuple[str, ...]


def write_card(network: str, addrs: Sequence[str]) -> bytes:
    """The TXT record of a peer; `addrs` with `/p2p/ID`. Those that do not fit are left out."""
    entries = [NETWORK + network.encode()]
    size = len(entries[0]) + 1
    for addr in addrs:
        entry = ADDRESS + addr.encode()
        if len(entry) <= MAX_ENTRY_BYTES and size + len(entry) + 1 <= MAX_CARD_BYTES:
            entries.append(entry)
            size += len(entry) + 1
    return b"".join(bytes([len(entry)]) + entry for entry in entries[: MAX_CARD_ADDRS + 1])


def read_card(txt: bytes) -> Card | None:
    """What a TXT record says, None where it is no whole card of one peer of a network like ours."""
    if len(txt) > MAX_CARD_BYTES:
        return None
    network = ""
    texts: list[str] = []
    for entry in _entries(txt):
        if entry.startswith(NETWORK):
            network = entry[len(NETWORK) :].decode("utf-8", "replace")
        elif entry.startswith(ADDRESS) and len(texts) < MAX_CARD_ADDRS:
            texts.append(entry[len(ADDRESS) :].decode("ascii", "replace"))
    try:
        check_network(network)
        found = [split_p2p(text) for text in texts if tcp_endpoint(text) is not None]
    except LocalError:
        return None
    peers = {peer for peer, _ in found}
    if len(peers) != 1 or (peer := peers.pop()) is None:
        return None
    return Card(network, peer, tuple(dict.fromkeys(addr for _, addr in found)))


def _entries(txt: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(txt):
        size = txt[at]
        yield txt[at + 1 : at + 1 + size]  # a cut one is no address, and falls out there
        at += 1 + size


def dialable(card: Card, around: Sequence[IPv4Interface]) -> tuple[str, ...]:
    """Those addresses of a card that may be dialled because of it, those of my own subnets first.

    Never a name, loopback, or a public address outside of my subnets: a card must not send us to my
    other services, or to somebody else's machine on the internet.
    """
    mine, local = [], []
    for addr in card.addrs:
        host = _host(addr)
        if host is None:
            continue
        if any(host in one.network for one in around):
            mine.append(addr)
        elif _may_be_local(host):
            local.append(addr)
    return tuple([*mine, *local][:MAX_CARD_DIALS])


def _host(addr: str) -> IPv4Address | IPv6Address | None:
    """The IP address in a TCP multiaddr with a port that can be dialled, None for all else."""
    endpoint = tcp_endpoint(addr)
    if endpoint is None or not endpoint.kind.startswith("ip") or not endpoint.port:
        return None
    host = ip_address(endpoint.host)
    if isinstance(host, IPv6Address) and host.ipv4_mapped:
        return None
    return host


def _may_be_local(host: IPv4Address | IPv6Address) -> bool:
    return any(host in net for net in (_LOCAL4 if host.version == 4 else _LOCAL6))
