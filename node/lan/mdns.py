"""Multicast DNS by the `zeroconf` library, which runs on asyncio: in a thread of its own.

The thread lives as long as the block of `open_mdns`. Importing the library, opening its sockets and saying
goodbye all happen there, so that neither the start nor a call ever waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

import psutil
import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.lan.meeting import Heard

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

log = logging.getLogger(__name__)

SERVICE = "_p2p._udp.local."  # libp2p's
NAME_BYTES = 16  # random: in hex the 32 characters that libp2p's specification asks for at least
MAX_HEARD = 1024  # cards that nobody has read yet; more come only in a flood, and are dropped
GOODBYE_SECONDS = 1.0  # it is said three times within a quarter of one
_TXT, _IN = 16, 1  # DNS numbers of the record that is a card


def interfaces() -> tuple[IPv4Interface, ...]:
    """My addresses on networks that carry multicast; tunnels are none, and loopback is nobody's network."""
    try:
        states, known = psutil.net_if_stats(), psutil.net_if_addrs()
    except OSError as error:  # one that goes while it is looked at
        log.info("interfaces-unread cause=%s", error)
        return ()
    found = []
    for name, addresses in known.items():
        flags = set(states[name].flags.split(",")) if name in states and states[name].isup else {"loopback"}
        # no flags at all: a system that tells none
        if flags & {"loopback", "pointopoint"} or ("multicast" not in flags and flags != {""}):
            continue
        for one in addresses:
            if one.family.name == "AF_INET" and one.netmask:
                found.append(IPv4Interface(f"{one.address}/{one.netmask}"))
    return tuple(sorted(found))


@asynccontextmanager
async def open_mdns(
    around: Sequence[IPv4Interface], card: bytes | None, port: int
) -> AsyncIterator[trio.MemoryReceiveChannel[Heard]]:
    """Show `card` on these interfaces while the block lasts (None: only listen), and hear those of others.

    Raises LocalError (unreachable) where the machine does not let us.
    """
    send, heard = trio.open_memory_channel[Heard](MAX_HEARD)
    air = _Air([str(one.ip) for one in around], card, port, send)
    async with trio.open_nursery() as nursery:
        # a thread is not cancelled: it is asked to leave, below, and waited for
        nursery.start_soon(partial(trio.to_thread.run_sync, air.run, limiter=trio.CapacityLimiter(1)))
        try:
            await air.open.wait()
            if not air.error:
                yield heard
        finally:
            air.leave()
    if air.error:
        raise LocalError(Code.UNREACHABLE, air.error)


class _Air:
    """The thread's side: an asyncio loop with zeroconf in it."""

    def __init__(
        self, hosts: list[str], card: bytes | None, port: int, heard: trio.MemorySendChannel[Heard]
    ) -> None:
        self.open = trio.Event()  # or it failed: see `error`
        self.error = ""
        self._hosts = hosts
        self._card = card
        self._port = port
        self._heard = heard
        self._trio = trio.lowlevel.current_trio_token()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False
        self._left = asyncio.Event()

    def run(self) -> None:
        """The whole life of the thread."""
        try:
            asyncio.run(self._live())
        finally:
            self._trio.run_sync_soon(self._heard.close)
            self._trio.run_sync_soon(self.open.set)

    def leave(self) -> None:
        """Have the thread say goodbye and end; called from trio, at any time."""
        self._leaving = True  # read by a thread that has no loop yet
        if self._loop is not None:
            with suppress(RuntimeError):  # closed meanwhile
                self._loop.call_soon_threadsafe(self._left.set)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._leaving:
            return
        # strangers' packets would be logged whole, and as warnings
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        from zeroconf import Error, IPVersion
        from zeroconf.asyncio import AsyncZeroconf

        try:
            zeroconf = AsyncZeroconf(interfaces=list(self._hosts), ip_version=IPVersion.V4Only)
            try:
                await self._show_and_hear(zeroconf)
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE_SECONDS):
                        await zeroconf.async_close()
        except OSError as error:
            self.error = (error.strerror or str(error)).lower()
        except (Error, RuntimeError) as error:  # no usable interface, or they went while it started
            self.error = str(error) or type(error).__name__

    async def _show_and_hear(self, zeroconf: AsyncZeroconf) -> None:
        from zeroconf import ServiceInfo
        from zeroconf.asyncio import AsyncServiceBrowser

        await zeroconf.zeroconf.async_wait_for_start()
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[self._on_change])
        self._trio.run_sync_soon(self.open.set)
        if self._card is not None:
            name = os.urandom(NAME_BYTES).hex()
            info = ServiceInfo(
                SERVICE,
                f"{name}.{SERVICE}",
                port=self._port,
                properties=self._card,
                server=f"{name}.local.",
                parsed_addresses=self._hosts,
            )
            # cooperating: nobody else has this name, so a second is not spent on asking
            await zeroconf.async_register_service(info, cooperating_responders=True)
        await self._left.wait()
        await browser.async_cancel()

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """A service came, changed or went. Its card came in the same packet, or brings a change of its own.

        Read from the cache, never asked for: a stranger's name costs no question and no waiting.
        """
        txt: bytes | None = None
        if state_change.name != "Removed":
            records = zeroconf.cache.get_all_by_details(name, _TXT, _IN)
            if not records:
                return
            txt = getattr(max(records, key=lambda record: record.created), "text", None)
            if not isinstance(txt, bytes):
                return
        self._trio.run_sync_soon(self._tell, Heard(name, txt))

    def _tell(self, heard: Heard) -> None:
        try:
            self._heard.send_nowait(heard)
        except (trio.WouldBlock, trio.BrokenResourceError):
            pass  # a flood, or nobody listens any more
