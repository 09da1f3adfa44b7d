"""The process behind `modelnet-peer join`: a peer, its control socket, and an orderly end.

The peer is opened, which locks its home and brings back what was published before; then the socket is
opened and what --publish names is served; then the ready line is printed. SIGINT and SIGTERM end all
of it with status 0 within 5 seconds, whatever a model or a socket is doing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from shlex import quote
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from modelnet_p2p import __version__
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import PUBLIC_NETWORK
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.control.server import Starting, serve
from modelnet_p2p.node.control.table import Request, dispatch
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.logs.level import set_up_logging
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.addresses import tcp_endpoint
from modelnet_p2p.tuning import preset

if TYPE_CHECKING:
    from modelnet_p2p.node.overlay.driver import Bootstrap
    from modelnet_p2p.node.peer import Peer

log = logging.getLogger(__name__)

RESTORE_SECONDS = 2.0  # that the ready line waits for what was published before; large models take longer
ORDERLY_SECONDS = 3.5  # to say goodbye and let calls end; then everything is cancelled
HARD_SECONDS = 4.5  # then the process ends whatever it is doing: the contract says 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


Opener = Callable[[Settings], "AbstractAsyncContextManager[Peer]"]


def early_signals() -> None:
    """Until the peer is open a signal ends the process at once: there is nothing to lose yet."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))


def run(
    settings: Settings,
    wanted: Sequence[Mapping[str, Any]],
    *,
    on_ready: Callable[[dict[str, Any]], None],
    notice: Callable[[str], None],
) -> None:
    """Be a peer until a signal; raises LocalError when it cannot start.

    `wanted` are the models to serve, each as the control table's `publish` has it.
    """
    set_up_logging()
    from modelnet_p2p.node.gateway.settings import from_settings
    from modelnet_p2p.node.logs.file import keep_log  # like the peer: `join --help` does not need it
    from modelnet_p2p.node.peer import Peer

    gateway = from_settings(settings, os.environ)

    def open_peer(settings: Settings) -> AbstractAsyncContextManager[Peer]:
        return Peer.open(
            bootstrap=settings.bootstrap,
            listen=settings.listen,
            home=settings.home.path,
            network=settings.network,
            lan=settings.lan,
            tuning=settings.tuning,
            gateway=gateway,
        )

    with keep_log(settings.home) as keep:

        def tell(line: str) -> None:
            keep(line)
            notice(line)

        def ready(line: dict[str, Any]) -> None:
            who = f"process {line['pid']}, peer {line['peer']}, at {', '.join(line['addrs'])}"
            keep(f"ready: version {line['version']}, {who}")
            on_ready(line)

        with _last_words(keep), single_error():
            trio.run(join, open_peer, settings, wanted, ready, tell)
        keep("left the network")


@contextmanager
def _last_words(keep: Callable[[str], None]) -> Iterator[None]:
    """Why a peer could not start, or ended, into its log; a second one on the same home leaves that alone."""
    try:
        yield
    except LocalError as error:
        if error.code is not Code.IN_USE:
            keep(f"ended: {error.message}")
        raise
    except BaseException:
        log.exception("ended by a bug")
        raise


async def join(
    open_peer: Opener,
    settings: Settings,
    wanted: Sequence[Mapping[str, Any]],
    on_ready: Callable[[dict[str, Any]], None],
    notice: Callable[[str], None],
) -> None:
    """Open a peer, serve it, tell `on_ready`, and go on until SIGINT or SIGTERM."""
    stop = trio.CancelScope()  # entered once the peer is open: cancelling it leaves the peer time to close
    async with trio.open_nursery() as nursery:
        await nursery.start(_end_on_signal, stop, nursery.cancel_scope)
        async with open_peer(settings) as peer:
            with stop:
                await _serve(peer, settings, wanted, on_ready, notice)
        nursery.cancel_scope.cancel()


async def _serve(
    peer: Peer,
    settings: Settings,
    wanted: Sequence[Mapping[str, Any]],
    on_ready: Callable[[dict[str, Any]], None],
    notice: Callable[[str], None],
) -> None:
    runtime = Runtime(settings.network, settings.home)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, peer, runtime.socket_path)
            runtime.note_control()
            _tell_bootstrap(peer.bootstrapped, settings, notice)
            if open_to := open_addrs(peer.addrs, settings.listen or ()):
                tell_open(open_to, notice)
            if peer.gateway is not None and gateway_is_open(peer.gateway):
                tell_gateway(peer.gateway, notice)
            if settings.lan:
                tell_lan(peer.addrs, settings.network, notice)
            peer.notices.listen(notice)
            await _wait_restored(peer, notice)
            for asked in wanted:
                await _publish(peer, asked, notice)
            on_ready(_ready(peer, str(runtime.socket_path)))
            await trio.sleep_forever()
    finally:
        runtime.forget_control()


async def _publish(peer: Peer, asked: Mapping[str, Any], notice: Callable[[str], None]) -> None:
    """Do what `modelnet-peer publish` would ask of the running peer; of a server that may be many models."""

    async def emit(kind: str, line: object) -> None:
        notice(str(line))

    answer = await dispatch(peer, "publish", Request(asked), emit)
    for left_out in answer.get("left_out") or ():
        notice(f"{left_out['upstream']} is left out: {left_out['why']}")
    for line in answer.get("models") or [answer]:
        for note in line.get("notes") or ():
            notice(f"note: {note}")
        notice(f"serving {line['model']}")


async def _wait_restored(peer: Peer, notice: Callable[[str], None]) -> None:
    with trio.move_on_after(RESTORE_SECONDS) as scope:
        await peer.restored.wait()
    if scope.cancelled_caught:
        notice("still loading what was published before: see modelnet-peer status")


def _ready(peer: Peer, control: str) -> dict[str, Any]:
    return {
        "event": "ready",
        "peer": peer.id,
        "addrs": list(peer.addrs),
        "pid": os.getpid(),
        "control": control,
        "bootstrap": {
            "tried": len(peer.bootstrapped.tried),
            "reached": len(peer.bootstrapped.reached),
        },
        "gateway": peer.gateway,
        "version": __version__,
    }


async def _end_on_signal(
    stop: trio.CancelScope,
    everything: trio.CancelScope,
    *,
    task_status: Starting,
) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        task_status.started(None)
        async for _ in signals:
            watchdog = threading.Timer(HARD_SECONDS, os._exit, (0,))
            watchdog.daemon = True
            watchdog.start()
            try:
                stop.cancel()
                await trio.sleep(ORDERLY_SECONDS)  # ended much sooner, when the peer has closed
                everything.cancel()
                await trio.sleep_forever()
            finally:
                watchdog.cancel()


def _tell_bootstrap(bootstrap: Bootstrap, settings: Settings, notice: Callable[[str], None]) -> None:
    for addr, cause in bootstrap.causes.items():
        notice(f"warning: the bootstrap {addr} did not answer: {cause}")
    for addr in bootstrap.strangers:
        notice(
            f"warning: the bootstrap {addr} answers, but is no peer of the network {settings.network!r}: "
            "modelnet-peer status there names its network"
        )
    if bootstrap.causes or bootstrap.strangers:
        from modelnet_p2p.node.joining import PATIENT_SECONDS  # loaded by now; `join --help` does not need it

        retry_seconds = preset(settings.tuning).bootstrap_retry
        notice(
            f"they are tried again every {retry_seconds:g} s for as long as no other peer is known, "
            f"and every {PATIENT_SECONDS:g} s after that"
        )


def open_addrs(addrs: Sequence[str], listen: Sequence[str]) -> list[str]:
    """Those of a peer's addresses that other machines can reach.

    `listen` are the addresses that were asked for: `0.0.0.0` is open on a machine without a network, too.
    """
    asked = [addr for addr in listen if _host(addr).is_unspecified]
    return [addr for addr in addrs if not _host(addr).is_loopback] or asked


def _host(addr: str) -> IPv4Address | IPv6Address:
    """The IP address in a TCP multiaddr; a loopback one where a name stands, for nobody listens on names."""
    endpoint = tcp_endpoint(addr)
    try:
        return ip_address(endpoint.host) if endpoint else ip_address("127.0.0.1")
    except ValueError:
        return ip_address("127.0.0.1")


def tell_open(addrs: Sequence[str], notice: Callable[[str], None]) -> None:
    """Say what is open, and to whom: a peer that only this machine reaches is the default."""
    where = ", ".join(addr.partition("/p2p/")[0] for addr in addrs)
    notice(
        f"open to other machines: all that reach {where} can call this peer's models,"
        " and read and store records here"
    )


def gateway_is_open(url: str) -> bool:
    """Whether other machines reach a gateway at this URL."""
    host = urlsplit(url).hostname
    return host is not None and not ip_address(host).is_loopback


def tell_gateway(url: str, notice: Callable[[str], None]) -> None:
    notice(
        f"the gateway is open to other machines: all that reach {url} and have its key can call the network's"
        " models through this peer; HTTP is not encrypted, so put it behind a proxy that speaks TLS"
    )


def tell_lan(addrs: Sequence[str], network: str, notice: Callable[[str], None]) -> None:
    """Say what --lan opened, and the line for the next machine."""
    name = "" if network == PUBLIC_NETWORK else f" --network {quote(network)}"
    notice("listening on all interfaces (0.0.0.0), and telling the local network so by mDNS")
    notice("on the next machine of this network run the following; the two find each other by themselves:")
    notice(f"  modelnet-peer join --lan{name}")
    outward = outward_addr(addrs)
    if outward is not None:
        notice("where that finds nobody, and on machines of other networks that reach this one:")
        notice(f"  modelnet-peer join --lan{name} --bootstrap {outward}")


def outward_addr(addrs: Sequence[str]) -> str | None:
    """The address of mine for others to type: the one that this machine's own traffic leaves by, if any."""
    outward = [addr for addr in addrs if not _host(addr).is_loopback]
    mine = my_ip()
    return next((addr for addr in outward if str(_host(addr)) == mine), next(iter(outward), None))


def my_ip() -> str:
    """The address by which this machine reaches others; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1: only the routing table is asked
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return address
