"""Fetches the files of a digest from several holders at once.

`Fetching` plans, this page carries out: a task for each holder, with a stream on which several pieces are in
flight. Each piece is checked and written in a thread before anybody believes that it is here. A holder that
lies is not asked again, one that dies or dawdles is overtaken; the pull fails only when nobody is left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from modelnet_p2p.artifact import Artifact
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.serving.policy.fetching import Fate, Fetching, Share
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.contract import Network, Stream
from modelnet_p2p.node.weights.cache import Cache, Part, Told
from modelnet_p2p.node.weights.holders import Holder, Lied, nobody, receive, right, slow
from modelnet_p2p.node.weights.listing import fetch_listing
from modelnet_p2p.node.weights.patience import Patience
from modelnet_p2p.pieces import Answer, Answers, Ask, Kind

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_HOLDERS = 8  # asked at the same time: more share one line all the same
STALL_SECONDS = 5.0  # without a piece from anybody: then one holder more is asked
PIECE_SECONDS = 120.0  # for the next piece of a holder to be whole: 1 MiB at 9 KB/s
RETRIES = 2  # new streams in a row to a holder that was busy or lost, and gave nothing on the one before
RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is: bytes here of all bytes."""

    here: int
    size: int
    shares: Mapping[str, Share]  # by peer id


@dataclass(frozen=True, slots=True)
class Pulled:
    """How a pull ended."""

    artifact: Artifact
    fetched: int  # bytes that came over the network and were kept
    seconds: float
    shares: Mapping[str, Share]
    liars: tuple[str, ...]  # peers that sent something else


Tell = Callable[[Progress], None]


async def hashed(step: Callable[[Told], T]) -> T:
    """A step that reads many files, in a thread: it ends with the next piece when nobody waits for it."""
    return await trio.to_thread.run_sync(step, lambda count: trio.from_thread.check_cancelled())


class Puller:
    """Fetches into one cache."""

    def __init__(self, network: Network, protocol: str, cache: Cache) -> None:
        self._network = network
        self._protocol = protocol
        self._cache = cache

    async def pull(
        self,
        root: bytes,
        holders: Sequence[Holder],
        tell: Tell,
        notice: Callable[[str], None] = lambda line: None,
    ) -> Pulled:
        """Fetch what is missing of that digest; it is whole in the cache when this returns.

        Holders that are busy are waited for where nobody else is left, which `notice` is told. Cancelled or
        failed, it keeps what has come. Raises LocalError (in-use, bad-state: a full disk), RemoteError (the
        last holder's, when none is left).
        """
        liars: set[str] = set()
        patience = Patience(notice)
        artifact = await trio.to_thread.run_sync(self._cache.listing, root)
        if artifact is None:
            artifact = await fetch_listing(root, holders, liars, self.open, patience)
        with self._cache.part(artifact) as part:
            have = await hashed(part.look)
            run = _Run(self, part, have, tell, liars, patience)
            await run.fetch(holders)
            with trio.CancelScope(shield=True):  # a moment: what is whole gets its name
                await trio.to_thread.run_sync(part.finish)
        shares = {name: share for name, share in run.plan.shares().items() if share.pieces}
        return Pulled(artifact, run.fetched, trio.current_time() - run.started, shares, tuple(sorted(liars)))

    async def open(self, holder: Holder) -> Stream:
        """A new stream to it; raises RemoteError."""
        try:
            await self._network.connect(holder.peer, holder.addrs)
            return await self._network.open_stream(holder.peer, self._protocol)
        except LocalError as error:  # told addresses that are none
            raise RemoteError(Code.UNREACHABLE, error.message, peer=holder.peer.text) from error


class _Run:
    """One pull's pieces, from all holders."""

    def __init__(
        self,
        puller: Puller,
        part: Part,
        have: set[int],
        tell: Tell,
        liars: set[str],
        patience: Patience,
    ) -> None:
        self._puller = puller
        self._part = part
        self._tell = tell
        self._liars = liars
        self._patience = patience
        self._artifact = part.artifact
        self.plan = Fetching([piece.size for piece in part.artifact.pieces], have)
        self.started = trio.current_time()
        self.fetched = 0
        self._changed = trio.Event()  # replaced each time that it is set
        self._errors: dict[str, RemoteError] = {}
        self._active = 0  # holders that are asked, or will be asked again

    async def fetch(self, holders: Sequence[Holder]) -> None:
        """Until all is here; raises RemoteError when nobody is left to ask."""
        self._progress()
        waiting = [holder for holder in holders if holder.peer.text not in self._liars]
        places = MAX_HOLDERS
        with single_error():
            async with trio.open_nursery() as nursery:
                while not self.plan.done:
                    while waiting and self._active < places:
                        holder = waiting.pop(0)
                        self.plan.add(holder.peer.text)
                        self._active += 1
                        nursery.start_soon(self._ask_holder, holder)
                    if not self._active:
                        waiting = self._busy(holders)
                        if not waiting or not await self._patience.wait(len(waiting), self.fetched):
                            raise self._nobody_left()
                        continue
                    with trio.move_on_after(STALL_SECONDS) as scope:
                        await self._changed.wait()
                    places += scope.cancelled_caught  # all who are asked dawdle: one more
                nursery.cancel_scope.cancel()

    def _busy(self, holders: Sequence[Holder]) -> list[Holder]:
        """Those of them who said so last."""
        busy = {name for name, error in self._errors.items() if error.code is Code.BUSY}
        return [holder for holder in holders if holder.peer.text in busy - self._liars]

    def _nobody_left(self) -> RemoteError:
        if not self._errors:
            return nobody(self._artifact.root)
        last = list(self._errors.values())[-1]
        here, size = self._artifact.size - self.plan.left, self._artifact.size
        return RemoteError(
            last.code,
            f"nobody is left who gives these weights ({last.message}); {here:,} of {size:,} bytes are here",
            peer=last.peer,
            hint="pull again later: it goes on where it stopped",
            retryable=True,
        )

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _progress(self) -> None:
        size = self._artifact.size
        self._tell(Progress(size - self.plan.left, size, self.plan.shares()))

    async def _ask_holder(self, holder: Holder) -> None:
        """Everything that this holder gives; returns when it is asked for nothing more."""
        name, left = holder.peer.text, RETRIES
        while left >= 0:
            before = self._given(name)
            try:
                await self._ask_on_stream(holder)
            except Lied as error:
                log.warning("%s: it is asked for nothing more", error.message)
                self._liars.add(name)
                self._errors[name] = error
                self.plan.wrong(name)
                break
            except RemoteError as error:
                log.info("pulling from %s: %s", holder.peer.short, error.message)
                self._errors[name] = error
                self.plan.gone(name)
                self._change()
                if error.code not in (Code.BUSY, Code.UNREACHABLE) and self._given(name) == before:
                    break
            left = RETRIES if self._given(name) > before else left - 1
            await trio.sleep(RETRY_SECONDS)
            if self.plan.done or not self.plan.add(name):
                break
        self.plan.gone(name)
        self._active -= 1
        self._change()

    def _given(self, name: str) -> int:
        """How many pieces this holder has brought."""
        share = self.plan.shares().get(name)
        return share.pieces if share is not None else 0

    async def _ask_on_stream(self, holder: Holder) -> None:
        name, root, answers = holder.peer.text, self._artifact.root, Answers()
        with trio.CancelScope(deadline=trio.current_time() + PIECE_SECONDS) as scope:
            async with await self._puller.open(holder) as stream:
                while True:
                    asks: list[bytes] = []
                    while (index := self.plan.next(name, trio.current_time())) is not None:
                        size = self._artifact.pieces[index].size
                        asks.append(answers.ask(Ask(Kind.PIECE, root, index), size))
                    if asks:
                        await stream.send([b"".join(asks)])
                    scope.deadline = trio.current_time() + PIECE_SECONDS
                    if answers.in_flight:
                        await self._take(right(await receive(stream, answers), holder), holder)
                    else:
                        scope.deadline = float("inf")
                        await self._wait(name)
        if scope.cancelled_caught:
            raise slow(holder)

    async def _wait(self, name: str) -> None:
        """Until there may be something to ask of this holder."""
        changed, until = self._changed, self.plan.look_again(name, trio.current_time())
        with trio.move_on_at(float("inf") if until is None else until):
            await changed.wait()

    async def _take(self, answer: Answer, holder: Holder) -> None:
        index = answer.ask.index
        if not await trio.to_thread.run_sync(partial(self._part.put, index, answer.body)):
            raise Lied(holder.peer, f"other bytes than those of piece {index}")
        fate = self.plan.came(holder.peer.text, index, trio.current_time())
        if fate is Fate.NEW:
            self.fetched += len(answer.body)
            self._progress()
        self._change()
