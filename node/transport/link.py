"""One connection's socket, and what is sealed and multiplexed on it: two tasks read and write.

Whoever has something to send says `kick`: as much as the kernel takes goes out at once and without a
checkpoint, so no cancellation can cut a message in half; the writing task sends the rest. When one read
brought news to several streams, their answers are waited for and leave together.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable

import trio

from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport.securing import Established
from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.rapid_resets import RapidResets
from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN, MAX_WIRE, BrokenSeal
from modelnet_p2p.node.transport.wire.vitality import Dead, Ping, Vitality
from modelnet_p2p.node.transport.wire.windows import WindowPool
from modelnet_p2p.node.transport.wire.yamux import Ending, Session, Violation

READ_AT_ONCE = 256 * 1024  # bytes of one receive: four full messages, a third of a millisecond of work
WRITE_AT_ONCE = 4 * MAX_WIRE  # bytes sealed before the others get their turn
UNSENT_LOW = 256 * 1024  # bytes that the kernel keeps beyond what is on its way: more would delay small calls
FRAMES_AT_ONCE = 128  # about as many of a receive, half a millisecond of work or more: others want their turn
OPENED_AT_ONCE = 8  # streams that begin to be served, for the same reason: each is a tenth of a millisecond
READ_AT_LEAST = 4096  # bytes, however small its frames are
TOGETHER = 8  # answers that leave together: the far side works on them while we make the next
LOOK = 1.0  # seconds between two looks at whether the far sides are there
OVERSLEPT = 3.0  # seconds between two looks after which it was we who were not there
# the kernel finds within 38 s a host that has vanished, where nobody waits for it: that wakes no process, and
# keeps the connection's place in the tables of the routers between
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 4, "TCP_KEEPCNT": 2}
FLUSH = 0.2  # seconds that a closing connection may take to send what waits, and to be read to its end

log = logging.getLogger(__name__)


class Workbench:
    """What all links of one network share: memory in which they work, one step at a time and never across
    a checkpoint, and the watch over them."""

    def __init__(self) -> None:
        self.running: dict[Link, None] = {}
        self.pool = WindowPool()
        self.room = memoryview(bytearray(READ_AT_ONCE + MAX_WIRE))
        self.scratch = memoryview(bytearray(MAX_PLAIN))
        self._outs: list[memoryview] = []

    def lend(self) -> memoryview:
        """A buffer for one batch; give it back when all of it is sent."""
        return self._outs.pop() if self._outs else memoryview(bytearray(WRITE_AT_ONCE))

    def give_back(self, out: memoryview) -> None:
        if len(self._outs) < 4:  # more are needed only where many kernels' buffers are full at once
            self._outs.append(out)

    async def watch(self) -> None:
        """Look after all links that run, for ever: a timer for each would cost a hundred times as much."""
        before = trio.current_time()
        while True:
            await trio.sleep(LOOK)
            now = trio.current_time()
            overslept, before = now - before > OVERSLEPT, now
            for link in list(self.running):  # at most as many as a network has connections: no checkpoint
                if overslept:
                    link.on_overslept(now)
                elif link.look_at <= now:
                    link.look(now)


class Link:
    """A connection to `peer`, live from the moment that `run` runs."""

    def __init__(
        self,
        sock: socket.socket,
        established: Established,
        bench: Workbench,
        *,
        initiator: bool,
        max_inbound: int,
        max_outbound: int,
    ) -> None:
        now = trio.current_time()
        self.peer: PeerId = established.peer
        self.session = Session(
            initiator=initiator,
            pool=bench.pool,
            now=now,
            max_inbound=max_inbound,
            max_outbound=max_outbound,
        )
        self.lost = False
        self.look_at = now  # it need not be looked at before
        self.on_lost: Callable[[], None] | None = None  # called once, at the instant of the loss
        host, port = sock.getpeername()[:2]
        self.remote: tuple[str, int] = (str(host), int(port))
        self._sock = sock
        self._bench = bench
        self._sealer = established.sealer
        self._opener = established.opener
        self._early = established.early
        self._vitality = Vitality(now)
        self._rapid_resets = RapidResets(now)
        # what is sealed and not yet sent: bytes from `_start` to `_end` of `_out`
        self._out: memoryview | None = None
        self._start = self._end = 0
        self._writing = False  # the writing task is at it: nobody else sends
        self._corked = False  # ... or soon will be, when those who were told something have answered
        self._kept_back = 0  # how often somebody had something to send meanwhile
        self._work: trio.lowlevel.Task | None = None  # the writing task, while it waits for work
        self._sent = trio.lowlevel.ParkingLot()  # those who wait until everything is sent
        self._written = 0  # bytes that the kernel took
        self._at_once = READ_AT_ONCE
        self._drained_kernel = False  # the last receive brought all that the kernel had
        self._read_to_end = trio.Event()

    async def run(self, on_opened: Callable[[Flow], None]) -> None:
        """Until either side closes the connection or it fails. `on_opened` takes the far side's streams."""
        self._bench.running[self] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                self.session.ping(trio.current_time())
                self.kick()
                await self._read(on_opened)
                nursery.cancel_scope.cancel()
        finally:
            self.lose()

    # --- reading -------------------------------------------------------------------------------

    async def _read(self, on_opened: Callable[[Flow], None]) -> None:
        session, room, sock = self.session, self._bench.room, self._sock
        early, self._early = memoryview(self._early), b""
        if not self._take_in([early], len(early)):
            await self._hear_out()
            return
        while not self.lost:
            for _ in range(min(OPENED_AT_ONCE, len(session.opened))):
                on_opened(session.opened.popleft())
            self._tell()
            if session.opened:
                await trio.lowlevel.checkpoint()
                continue
            await self._hold_back()
            count = await self._receive(room, sock)
            if not count:
                return

    async def _hold_back(self) -> None:
        """Wait while the far side should not be read: it does not read us, or resets its streams too fast."""
        while self.session.flooded and not self.lost:
            await self._sent.park()
            self._vitality.on_pause(trio.current_time())
        if delay := self._rapid_resets.delay(self.session.resets, trio.current_time()):
            with trio.move_on_after(delay):
                while not self.lost:
                    await self._sent.park()
            self._vitality.on_pause(trio.current_time())

    async def _receive(self, room: memoryview, sock: socket.socket) -> int:
        """Receive once and take that in; returns how many bytes, 0 at the end of the connection.

        From the receiving on there is no checkpoint: all links use the same room.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._drained_kernel:
            await self._readable()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not self.lost:
            start = self._opener.begin(room)
            try:
                count = sock.recv_into(room[start : start + self._at_once])
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                log.debug("connection-lost peer=%s cause=%s", self.peer.short, error)
                return 0
            self._drained_kernel = count < self._at_once
            if not count:
                self._read_to_end.set()
                return 0
            opened = self._opener.open(room, start + count, self._bench.scratch)
            if self._take_in(opened, count):
                return count
            await self._hear_out()
            return 0
        return 0

    async def _hear_out(self) -> None:
        """Read on without looking: with bytes unread the kernel would take our last word back."""
        with trio.move_on_after(FLUSH):
            while not self.lost:
                await trio.lowlevel.checkpoint()
                try:
                    if not self._sock.recv_into(self._bench.room):
                        return
                except BlockingIOError:
                    await self._readable()
                except OSError:
                    return

    async def _readable(self) -> None:
        if not self.lost:
            try:
                await trio.lowlevel.wait_readable(self._sock.fileno())
            except trio.ClosedResourceError:
                return  # lost meanwhile

    def _take_in(self, messages: Iterable[memoryview], count: int) -> bool:
        """Understand what arrived; False when that was the end of the connection."""
        session, now = self.session, trio.current_time()
        self.look_at = 0.0
        before = session.frames
        try:
            for plain in messages:
                session.receive(plain, now)
        except (BrokenSeal, Violation) as error:
            log.info("connection-refused peer=%s cause=%s", self.peer.short, error)
            session.go_away(Ending.PROTOCOL_ERROR)
            self._corked = False
            session.tell()  # what came before it is theirs
            self.kick()
            return False
        self._vitality.on_bytes(now, count, session.frames, inside=session.inside or self._opener.inside)
        frames = session.frames - before
        if frames > FRAMES_AT_ONCE:
            self._at_once = max(READ_AT_LEAST, FRAMES_AT_ONCE * count // frames)
        elif self._at_once < READ_AT_ONCE:
            self._at_once = min(READ_AT_ONCE, 2 * self._at_once)
        return True

    def _tell(self) -> None:
        session = self.session
        if session.news > 1 and not self._writing:
            self._corked = True
            self._wake_writer()
        session.tell()
        self.kick()  # windows and answers to pings

    # --- writing -------------------------------------------------------------------------------

    def kick(self) -> None:
        """Send what waits, as far as the kernel takes it now."""
        self.look_at = 0.0
        if self._writing or self.lost:
            return
        if self._corked:
            self._kept_back += 1
            if self._kept_back % TOGETHER:
                return
        if self.session.waiting and self._send_batch() and not self.session.waiting:
            return
        if self._out is not None or self.session.waiting:
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self._work is not None:
            task, self._work = self._work, None
            trio.lowlevel.reschedule(task)

    async def _write(self) -> None:
        def stop(_: object) -> trio.lowlevel.Abort:
            self._work = None
            return trio.lowlevel.Abort.SUCCEEDED

        while not self.lost:
            if not self._corked and self._out is None and not self.session.waiting:
                self._sent.unpark_all()
                self._work = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(stop)
            await trio.lowlevel.checkpoint()  # those who were woken with us answer first
            self._corked = False
            self._writing = True
            try:
                await self._write_all()
            finally:
                self._writing = False

    async def _write_all(self) -> None:
        while not self.lost and (self._out is not None or self.session.waiting):
            if self._send_batch():
                await trio.lowlevel.checkpoint()
            elif not self.lost:
                try:
                    await trio.lowlevel.wait_writable(self._sock.fileno())
                except trio.ClosedResourceError:
                    return

    def _send_batch(self) -> bool:
        """Send what is sealed, or seal and send the next batch; False if the kernel did not take it all."""
        if self._out is None:
            self._seal_batch()
        out = self._out
        if out is None:
            return True
        try:
            n = self._sock.send(out[self._start : self._end])
        except BlockingIOError:
            return False
        except OSError as error:
            log.debug("connection-lost peer=%s cause=%s", self.peer.short, error)
            self.lose()
            return False
        self._start += n
        self._written += n
        if self._start < self._end:
            return False
        self._bench.give_back(out)
        self._out = None
        return True

    def _seal_batch(self) -> None:
        session, scratch, end = self.session, self._bench.scratch, 0
        out = self._bench.lend()
        while end <= WRITE_AT_ONCE - MAX_WIRE and (n := session.fill(scratch)):
            end = self._sealer.seal_into(scratch[:n], out, end)
        if end:
            self._out, self._start, self._end = out, 0, end
        else:
            self._bench.give_back(out)
        session.tell()

    # --- watching and ending -------------------------------------------------------------------

    def on_overslept(self, now: float) -> None:
        """We were not there for a while: the far side is judged anew from now on."""
        self._vitality.on_overslept(now)
        self.look_at = now

    def look(self, now: float) -> None:
        """Whether the far side is still there; due about once a second while the link runs."""
        waiting = self._out is not None or self.session.waiting
        flooded = self.session.flooded
        flows = self.session.flows.values()
        resting = bool(flows) and all(flow.at_rest for flow in flows)
        match self._vitality.poll(
            now, written=self._written, waiting=waiting, flooded=flooded, resting=resting
        ):
            case Ping():
                self.session.ping(now)
                self.kick()
            case Dead(why):
                log.info("connection-given-up peer=%s cause=%s", self.peer.short, why)
                self.lose()
            case None:
                self.look_at = self._vitality.due

    async def leave(self) -> None:
        """Close with a word to the far side, which gets all that was sent before; bounded in time."""
        if self.lost:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH):
            self.session.go_away(Ending.NORMAL)
            self.kick()
            while self._out is not None or self.session.waiting:
                await self._sent.park()
        if not self.lost:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.lose()
            # with bytes of theirs unread the kernel would take back what is still on its way to them
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH):
                await self._read_to_end.wait()
        self.lose()

    def lose(self) -> None:
        """The connection is gone: wake everything that waits on it; idempotent."""
        if self.lost:
            return
        self.lost = True
        self._bench.running.pop(self, None)
        self._read_to_end.set()
        trio.lowlevel.notify_closing(self._sock.fileno())
        self._sock.close()
        self._wake_writer()
        self._sent.unpark_all()
        self.session.lose()
        if self.on_lost is not None:
            self.on_lost()


def tune(sock: socket.socket) -> None:
    """What every connected socket of ours is set to."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
