"""The memory that the peer shares with this worker, as the worker sees it.

A model gets its large inputs as views on this memory. When the last of them is gone, the peer is told and
may use the memory for another call; a model that keeps one keeps the memory from everybody else.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.policy.notes import Note, NoteKind

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array


class Mapped:
    """One piece of memory, mapped when it is first used."""

    __slots__ = ("handle", "map", "size")

    def __init__(self, handle: int, size: int) -> None:
        self.handle: int | None = handle
        self.size = size
        self.map: mmap.mmap | None = None

    def open(self) -> mmap.mmap:
        """Raises LocalError (model-error) when this process may have no more memory."""
        if self.map is None:
            assert self.handle is not None
            try:
                self.map = mmap.mmap(self.handle, self.size)
            except OSError as error:
                words = f"the model's process has no room for a tensor: {error.strerror}"
                raise LocalError(Code.MODEL_ERROR, words, retryable=True) from error
            self.close_handle()
        return self.map

    def close_handle(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


class Held:
    """The views that one call's input gave the model."""

    __slots__ = ("number", "worn")

    def __init__(self, number: int) -> None:
        self.number = number
        self.worn = False  # a process was forked meanwhile, and may hold them longer than this one


class WorkerMemory:
    """All of it. `wake` is called, in any thread, when something was freed outside of a call's end."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._pieces: dict[int, Mapped] = {}
        self._views: dict[int, Held] = {}  # by id: those that live
        self._spent: deque[Held] = (
            deque()
        )  # from finalizers, which run in any thread: appending is all they do
        os.register_at_fork(before=self._on_fork)

    def add(self, number: int, size: int, handle: int) -> None:
        """The peer hands over a piece."""
        self._pieces[number] = Mapped(handle, size)

    def forget(self, number: int) -> None:
        """The peer has let go of it; so does this process, when the last view is gone."""
        piece = self._pieces.pop(number, None)
        if piece is not None:
            piece.close_handle()

    def knows(self, number: int) -> bool:
        return number in self._pieces

    def room(self, number: int) -> memoryview:
        """For an answer: the peer knows itself when that ends. Raises LocalError (model-error)."""
        return memoryview(self._pieces[number].open())

    def input(self, number: int) -> memoryview:
        """What a call brought: to be freed exactly once, by the end of its last view.

        Raises LocalError (model-error), and then it is freed already.
        """
        import numpy as np  # not at the top: only a tensor brings it

        held = Held(number)
        try:
            base: Array = np.frombuffer(self._pieces[number].open(), np.uint8)
        except LocalError:
            self._spent.append(held)
            raise
        self._views[id(held)] = held
        weakref.finalize(base, self._on_end, held).atexit = False
        return base.data

    @property
    def held(self) -> bool:
        """Whether any view of any call's input lives."""
        return bool(self._views)

    def _on_end(self, held: Held) -> None:
        """In whichever thread the last view was dropped."""
        del self._views[id(held)]
        self._spent.append(held)
        self._wake()

    def _on_fork(self) -> None:
        """The child sees the same memory, not a copy of it: what lives now can never be reused."""
        for held in tuple(self._views.values()):
            held.worn = True

    def spent(self) -> list[Note]:
        """What was freed since the last time; each is to be told once."""
        notes: list[Note] = []
        while self._spent:
            held = self._spent.popleft()
            notes.append(Note(NoteKind.WORN if held.worn else NoteKind.FREED, held.number))
        return notes
