"""Carries liveness: my beats to my watchers, what I hear as a watcher of others, and who is known to be dead.

Who decides is in `dht/`: `Beater`, `Watcher`, `Obituaries`. What they say goes over `Lines`, and the holders
are told of a death by `Telling`. Nothing is answered but a reader's question, on its own stream.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from random import Random

import trio

from modelnet_p2p.beats import (
    MAX_ASKED,
    MAX_KEYS,
    MAX_WATCHERS,
    Ask,
    Beat,
    Framer,
    Message,
    Obituary,
    Seals,
    frame,
)
from modelnet_p2p.dht.holding.limits import Throttle
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.liveness.beating import Beater
from modelnet_p2p.dht.liveness.obituaries import Obituaries, covers, is_timely
from modelnet_p2p.dht.liveness.watcher import Announce, Effect, Tell, Watcher
from modelnet_p2p.errors import RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import Keys, protocol, provider_key
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.lines import Lines
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.overlay.telling import Telling
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.records import BadRecord

log = logging.getLogger(__name__)

MAX_STREAMS = 1024  # of all peers together, 8 KiB of buffers each: 8 MiB
READ_BYTES = 4096
MESSAGES_PER_SECOND = 10.0  # of one sender, each with at most six seals to check: an honest one sends one
MESSAGES_BURST = 100.0
HOLDERS_ASKED = 3  # by a reader: one that has the obituary is enough, and two may be silent or lie
MAX_READ = 1024  # of the dead that a reader remembers from its last answers
TOLD_A_BEAT = 8  # times at most that watchers are told of what was signed
# seconds between two of these at least, however short a beat: half of what watchers take of one peer, and the
# rest is for its beats, up to five a second; else who signs in bursts would have them read late
TOLD_PAUSE = 2 / MESSAGES_PER_SECOND
CHOOSE_BEATS = 5.0  # at least between two walks for watchers


class Watching:
    """One peer's part in finding out who lives."""

    def __init__(
        self,
        overlay: Overlay,
        key: KeyPair,
        publisher: Publisher,
        nursery: trio.Nursery,
        rng: Random,
    ) -> None:
        now, beat = trio.current_time(), overlay.tuning.beat
        seals = Seals(key, overlay.name, overlay.wall_us)
        self.beater = Beater(overlay.me, seals, beat, overlay.wall_us(), now)
        self.watcher = Watcher(overlay.me, seals, beat, lambda n, k: rng.sample(range(n), k), now)
        self.obituaries = Obituaries()  # what I was told as a holder, or found as a watcher
        self._last_read: dict[PeerId, Obituary] = {}  # what holders answered me last, as a reader
        self._overlay = overlay
        self._publisher = publisher
        self._protocol = protocol(overlay.name, "beat")
        self._place = provider_key(Keys(overlay.name).peer(overlay.me))
        self._lines = Lines(overlay, self._protocol, nursery, self.beater.on_lost)
        self.telling = Telling(overlay, self._lines.tell, nursery)
        self._throttle = Throttle(MESSAGES_PER_SECOND, MESSAGES_BURST)
        # a question costs no seal, and a reader has one for each of its DHT requests
        self._questions = Throttle(overlay.tuning.requests_per_second, overlay.tuning.requests_burst)
        self._streams = 0
        self._running = False
        self._came = True  # somebody came into the table since watchers were chosen
        self._watched = trio.Event()  # there are watchers who want beats
        self._nudged = trio.Event()  # the watcher may be due earlier than it was

    async def run(self, *, serves: bool) -> None:
        """Beat, watch and answer for as long as the peer lives; a client does none of it."""
        if not serves:
            return
        overlay = self._overlay
        overlay.network.handle(self._protocol, self.handle)
        overlay.network.on_disconnected(self._on_disconnected)
        overlay.on_newcomer(self._on_newcomer)
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._beat, self._watch, self._choose):
                    nursery.start_soon(task)
        finally:
            self._running = False

    # --- what a reader asks ---

    def is_dead(self, peer: PeerId, issued_us: int) -> bool:
        """Whether its watchers have proven `peer` dead after it issued a record then, by its own clock."""
        if self.obituaries.of(peer, self._overlay.wall_us(), issued_us=issued_us) is not None:
            return True
        read = self._last_read.get(peer)
        return read is not None and covers(read, issued_us)

    async def learn(self, key: bytes, holders: Iterable[PeerId], providers: Iterable[PeerId]) -> None:
        """Ask the closest of `holders` which of `providers` are dead; waits one patience at most.

        Their answer stands until they are asked again: whoever refuted its death is no longer in it.
        """
        me = self._overlay.me
        subjects = tuple(dict.fromkeys(peer for peer in providers if peer.public_key and peer != me))
        place = position(key)
        closest = sorted(
            (holder for holder in holders if holder in self._overlay.network.connected()),
            key=lambda holder: position(holder) ^ place,
        )
        if len(self._last_read) > MAX_READ:
            self._last_read.clear()
        for subject in subjects:
            self._last_read.pop(subject, None)
        if not subjects:
            return
        with trio.move_on_after(self._overlay.patience.seconds):
            async with trio.open_nursery() as nursery:
                for holder in closest[:HOLDERS_ASKED]:
                    nursery.start_soon(self._ask, holder, Ask(subjects[:MAX_ASKED]))

    async def _ask(self, holder: PeerId, question: Ask) -> None:
        try:
            async with await self._overlay.network.open_stream(holder, self._protocol) as stream:
                await stream.send([frame(question)])
                framer, buffer = Framer(self._overlay.name), memoryview(bytearray(READ_BYTES))
                for _ in question.subjects:
                    if not (count := await stream.receive_into(buffer)):
                        break
                    for answer in framer.feed(buffer[:count]):
                        if isinstance(answer, Obituary) and answer.subject in question.subjects:
                            self._believe(answer)
        except (RemoteError, BadRecord) as error:
            log.debug("%s did not say who is dead: %s", holder.short, error.message)

    def _believe(self, answer: Obituary) -> None:
        if is_timely(answer, self._overlay.wall_us()):
            self._last_read[answer.subject] = answer

    # --- what others send ---

    async def handle(self, stream: Stream) -> None:
        """Take one peer's messages until it ends the stream, or sends what is none."""
        if self._streams >= MAX_STREAMS:
            await stream.reset()
            return
        self._streams += 1
        try:
            await self._read(stream)
        except BadRecord as error:
            log.info("beats of %s cut off: %s", stream.peer.short, error.message)
            await stream.reset()
        except RemoteError as error:
            log.debug("beats of %s ended: %s", stream.peer.short, error.message)
            await stream.reset()
        finally:
            self._streams -= 1

    async def _read(self, stream: Stream) -> None:
        framer, buffer = Framer(self._overlay.name), memoryview(bytearray(READ_BYTES))
        while count := await stream.receive_into(buffer):
            for message in framer.feed(buffer[:count]):
                throttle = self._questions if isinstance(message, Ask) else self._throttle
                if (delay := throttle.delay(stream.peer, trio.current_time())) > 0:
                    await trio.sleep(delay)
                if isinstance(message, Ask):
                    await self._answer(stream, message)
                else:
                    self._on_message(stream.peer, message)

    async def _answer(self, stream: Stream, question: Ask) -> None:
        known = (self.obituaries.of(peer, self._overlay.wall_us()) for peer in question.subjects)
        with trio.move_on_after(self._overlay.tuning.stall_timeout):
            await stream.send([frame(obituary) for obituary in known if obituary is not None])
            await stream.finish()

    def _on_message(self, sender: PeerId, message: Message) -> None:
        now = trio.current_time()
        match message:
            case Obituary():
                self.obituaries.add(message, self._overlay.wall_us())
            case Beat():
                self.obituaries.refute(message)
        self._do(self.beater.on_message(sender, message, now))
        self._do(self.watcher.on_message(sender, message, now))
        self._nudged.set()

    def _on_disconnected(self, peer: PeerId) -> None:
        if self._running:
            self.beater.on_lost(peer)
            self._do(self.watcher.on_lost(peer, trio.current_time()))
            self._nudged.set()

    def _on_newcomer(self, peer: PeerId) -> None:
        self._came = True

    # --- what the machines want ---

    async def _beat(self) -> None:
        while True:
            self._do(self.beater.poll(trio.current_time()))
            if self.beater.watchers:
                await trio.sleep_until(self.beater.due)
            else:
                self._watched = trio.Event()
                await self._watched.wait()

    async def _watch(self) -> None:
        while True:
            self._do(self.watcher.poll(trio.current_time()))
            due = self.watcher.due
            while self.watcher.due >= due > trio.current_time():
                self._nudged = trio.Event()
                with trio.move_on_at(due):
                    await self._nudged.wait()

    async def _choose(self) -> None:
        """Keep five watchers: those closest to the key of my name, chosen anew when one falls silent.

        What I sign they are told at once: an obituary by a roster that is older does not cover it.
        """
        beat, chosen_at = self._overlay.tuning.beat, -self._overlay.tuning.table_refresh
        pause = max(beat / TOLD_A_BEAT, TOLD_PAUSE)
        while True:
            signed, signed_us = self._publisher.signed, self._publisher.signed_us()
            now, keys = trio.current_time(), tuple(self._publisher.keys())[:MAX_KEYS]
            old = now - chosen_at >= self._overlay.tuning.table_refresh
            lacking = self.beater.silent(now) or (len(self.beater.watchers) < MAX_WATCHERS and self._came)
            if not keys:
                self._do(self.beater.on_watchers((), (), now))
            elif old or (lacking and (now - chosen_at >= CHOOSE_BEATS * beat or not self.beater.watchers)):
                chosen_at, self._came = now, False
                watchers = (await self._overlay.find_closest(self._place))[:MAX_WATCHERS]
                self._do(self.beater.on_watchers(watchers, keys, trio.current_time(), signed_us))
                self._watched.set()
            else:
                self._do(self.beater.on_watchers(self.beater.watchers, keys, now, signed_us))
            await trio.sleep(pause)
            with trio.move_on_after(max(0.0, beat - pause)):
                await signed.wait()

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(peer, message):
                    self._lines.tell(peer, message)
                case Announce(keys, Obituary() as proof):
                    log.info(
                        "%s is dead, say %d who watched over it", proof.subject.short, len(proof.verdicts)
                    )
                    self.obituaries.add(proof, self._overlay.wall_us())
                    self.telling.on_death(proof, keys)
                case Announce(_, Beat() as beat):
                    self.obituaries.refute(beat)
                    self.telling.on_refuted(beat)
