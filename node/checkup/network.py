"""The network: the running peer, its addresses, each bootstrap, and a question to the DHT.

What has to be asked over the network is asked by peers that live only for the question, with keys of their
own: the check-up neither needs the home's lock nor leaves a record behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from shlex import quote
from typing import Any

import trio

from modelnet_p2p import __version__
from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.checkup.blocking import in_thread
from modelnet_p2p.node.checkup.finding import Finding, Tell, failed, failed_with, note, ok, skipped
from modelnet_p2p.node.checkup.itself import brief_peer
from modelnet_p2p.node.config import DEFAULT_TUNING, Settings
from modelnet_p2p.node.control.client import ControlClient, StillStarting, home_flag
from modelnet_p2p.node.daemon import open_addrs
from modelnet_p2p.node.disk.files import read_bounded
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.tuning import PRESETS

ANSWER_SECONDS = 3.0  # that a running peer has to tell its status: it takes a millisecond
START_SECONDS = 6.0  # that one has to start before: with the answer less than this check has
DIAL_SECONDS = 8.0  # for one bootstrap: a handshake's own bound is 5, and a name may have to be resolved
ASK_SECONDS = 8.0  # for a walk through the DHT: under one second where peers answer
NOBODYS = "modelnet/doctor-asks"  # a name that nobody offers: asking costs a whole walk, and finds nothing
Status = Mapping[str, Any]  # Any: JSON, as `status` prints it


async def check_running(settings: Settings, tell: Tell) -> Status | None:
    """What the peer on this home says of itself: None where there is none, empty where it does not answer."""
    home = settings.home
    join = f"modelnet-peer join{home_flag(home)}"
    status: Status = {}
    try:
        await in_thread(partial(_await_start, settings))
        with trio.move_on_after(ANSWER_SECONDS):
            status = await in_thread(partial(_ask, settings, "status", {}))
    except LocalError as error:
        if error.code is Code.NOT_RUNNING and not isinstance(error, StillStarting):
            tell(note("peer", "none is running on this home", hint=join))
            return None
        tell(failed_with("peer", error))
        return {}
    if not status:
        why = f"no answer within {ANSWER_SECONDS:g} s: it is stopped, or very busy"
        hint = f"kill -CONT {_holder(home)}, if Ctrl-Z stopped it; else kill -9 {_holder(home)} and {join}"
        tell(failed("peer", "the running peer does not answer", why=why, hint=hint, code=Code.DEADLINE))
    elif status.get("version") != __version__:
        why = f"it is {status.get('version')}, this is {__version__}"
        tell(note("peer", "the running peer is of another version", why=why, hint="stop it, and join again"))
    elif settings.network_asked and status.get("network") != settings.network:
        text = f"the running peer is of the network {status.get('network')!r}, not of {settings.network!r}"
        tell(failed("peer", text, hint="leave --network away, or join the other one with --home DIR"))
    else:
        up, count = float(status.get("uptime_s", 0)), status.get("connections", 0)
        tell(ok("peer", f"running for {up:.0f} s, with {count} connection{'' if count == 1 else 's'}"))
    return status


def _holder(home: Home) -> str:
    """The process id of the running peer, which its lock holds."""
    try:
        text = read_bounded(home.lock_path, 20)[0].decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return text if text.isdigit() else f"$(cat {quote(str(home.lock_path))})"


def _await_start(settings: Settings) -> None:
    """Returns when the peer can be asked; raises LocalError where there is none, or it takes too long."""
    limit = min(settings.timeout, START_SECONDS)
    with ControlClient.awaited(settings.home, on_wait=lambda line: None, timeout=limit):
        pass


def _ask(settings: Settings, method: str, params: Mapping[str, Any], seconds: float = ANSWER_SECONDS) -> Any:
    with ControlClient.connect(settings.home) as client:
        return client.call(method, params, timeout=seconds)


async def check_addresses(settings: Settings, status: Status, tell: Tell) -> None:
    """Each address of the running peer is dialled from here; what is only loopback is said to be."""
    addrs = [str(addr) for addr in status.get("addrs", [])]
    if not addrs:
        tell(failed("addresses", "the running peer listens nowhere", hint="modelnet-peer join"))
        return
    trips: dict[str, str] = {}
    async with _client(settings) as peer, trio.open_nursery() as nursery:
        for addr in addrs:
            nursery.start_soon(_dial, peer, addr, trips)
    silent = [addr for addr in addrs if addr in trips]
    if silent:
        text = f"{split_p2p(silent[0])[1]} does not answer from this machine"
        tell(
            failed(
                "addresses",
                text,
                why=trips[silent[0]],
                hint="a firewall? sudo nft list ruleset",
                code=Code.UNREACHABLE,
            )
        )
    elif not open_addrs(addrs, settings.listen or ()):
        text = f"{split_p2p(addrs[0])[1]}: only this machine reaches it"
        tell(note("addresses", text, why="the default", hint="to open it: modelnet-peer join --lan"))
    else:
        tell(ok("addresses", f"{', '.join(split_p2p(addr)[1] for addr in addrs)} answer from here"))


async def _dial(peer: Peer, addr: str, silent: dict[str, str]) -> None:
    try:
        await peer.ping(addr, 1, timeout=DIAL_SECONDS)
    except ModelnetError as error:
        silent[addr] = error.message


async def check_bootstraps(settings: Settings, status: Status | None, tell: Tell) -> list[str]:
    """Dials each bootstrap, or else the peers of this user, all at once; gives those that are sound."""
    given = settings.bootstrap
    others = Runtime(settings.network).others()
    asked = [addr for addr in given or others if _is_other(addr, _me(settings, status))]
    if not asked and given:
        tell(skipped("bootstrap", "none of those that are given can be dialled"))
        return []
    if not asked:
        hint = "modelnet-peer join --bootstrap MULTIADDR, with an address that another peer's `id` prints"
        tell(note("bootstrap", "none is given, and no other peer of yours runs on this machine", hint=hint))
        return []
    sound: dict[str, Finding] = {}
    async with trio.open_nursery() as nursery:
        for addr in asked:
            nursery.start_soon(_try_bootstrap, settings, addr, sound)
    findings = [sound[addr] for addr in asked]
    for finding in findings if given else findings[:1]:
        tell(finding)
    return [addr for addr in asked if sound[addr].code is None]


def _me(settings: Settings, status: Status | None) -> str:
    """This home's peer id, empty where its key cannot be read: another check says so."""
    try:
        key = None if status else settings.home.load_key()
    except LocalError:
        key = None
    return str(status.get("peer")) if status else str(key.id) if key else ""


def _is_other(addr: str, me: str) -> bool:
    """Whether a whole address is that of another peer; one that is none was told of with the config."""
    try:
        peer = split_p2p(addr)[0]
    except LocalError:
        return False
    return peer is not None and peer.text != me


async def _try_bootstrap(settings: Settings, addr: str, findings: dict[str, Finding]) -> None:
    """A peer for each: what it then knows, it knows from that bootstrap."""
    short = split_p2p(addr)[1]
    findings[addr] = failed(
        "bootstrap", f"{short} does not answer", why=f"nothing came within {DIAL_SECONDS:g} s",
        hint=f"is that machine up, and its firewall open? nc -vz {' '.join(short.split('/')[2::2])}",
        code=Code.UNREACHABLE,
    )  # fmt: skip
    with trio.move_on_after(DIAL_SECONDS):
        async with _client(settings) as peer:
            began = trio.current_time()
            answer = await peer.bootstrap([addr])
            ms = (trio.current_time() - began) * 1000
            known = (await peer.status())["table"]
            if why := answer.causes.get(addr):
                findings[addr] = failed(
                    "bootstrap", f"{short} does not answer", why=why, hint=_way_in(why), code=Code.UNREACHABLE
                )
            elif addr in answer.strangers:
                findings[addr] = failed(
                    "bootstrap", f"{short} answers, but is no peer of the network {settings.network!r}",
                    why="it does not speak its protocol", hint="modelnet-peer status there names its network",
                    code=Code.UNREACHABLE,
                )  # fmt: skip
            else:
                findings[addr] = ok("bootstrap", f"{short} answers, {known} peers known after {ms:.0f} ms")


def _way_in(why: str) -> str:
    if "answered instead" in why:
        return (
            "the peer there has another key now: copy the whole address that `modelnet-peer id` prints there"
        )
    if "refused" in why:
        return "nobody listens there: modelnet-peer join on that machine, and copy the address it prints"
    if "no route" in why or "unreachable" in why:
        return "this machine has no way there: ip route"
    return "is that machine up, and its firewall open? modelnet-peer doctor there tells"


async def check_dht(settings: Settings, status: Status | None, entries: Sequence[str], tell: Tell) -> None:
    """A walk for a name that nobody offers: by the running peer, or by one that knows `entries`."""
    began = trio.current_time()
    try:
        if status:
            ask = partial(_ask, settings, "find", {"model": NOBODYS, "timeout": ASK_SECONDS}, ASK_SECONDS + 1)
            await in_thread(ask)
            who = f"the running peer, which knows {status.get('table', 0)} peers,"
        elif entries:
            async with _client(settings, entries) as peer:
                await peer.find(model=NOBODYS, timeout=ASK_SECONDS)
            who = "a temporary peer"
        else:
            tell(skipped("dht", "no other peer is known to ask"))
            return
    except ModelnetError as error:
        if error.code is Code.UNREACHABLE and isinstance(error, LocalError) and not settings.bootstrap:
            tell(note("dht", "the running peer is alone in its network", hint=error.hint))
        else:
            tell(failed_with("dht", error, hint="modelnet-peer peers"))
        return
    tell(ok("dht", f"{who} asked through in {(trio.current_time() - began) * 1000:.0f} ms"))


@asynccontextmanager
async def _client(settings: Settings, bootstrap: Sequence[str] = ()) -> AsyncIterator[Peer]:
    """A peer without a home that only asks, and knows nobody but these."""
    tuning = settings.tuning if settings.tuning in PRESETS else DEFAULT_TUNING  # the config check tells of it
    async with brief_peer(settings.network, tuning, ()) as peer:
        if bootstrap:
            await peer.bootstrap(bootstrap)
        yield peer
