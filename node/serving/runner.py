"""What runs a model's calls, as `Served` sees it; built-in models run in the peer's own threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import trio

from modelnet_p2p.node.serving.backends.contract import Backend, Emit, run_method
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.policy.scarcity import no_more
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.payload import Value

T = TypeVar("T")


class Runner(Protocol):
    """What runs a model's calls."""

    @property
    def waits(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def is_down(self) -> bool: ...

    @property
    def remembered(self) -> Remembered | None: ...

    on_changed: Callable[[], None]

    async def describe(self) -> Description: ...

    async def warm(self) -> None: ...

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value: ...

    def allocate(self, size: int) -> memoryview | None: ...


class InProcess:
    """Runs a built-in model in the peer's own threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.waits = backend.waits
        self.on_changed: Callable[[], None] = lambda: None  # it never does

    pid = None  # none of its own
    is_down = False
    remembered = None  # it is loaded in no time

    async def warm(self) -> None:
        pass  # `describe` has loaded it

    async def describe(self) -> Description:
        try:
            await self._backend.load()
        except RuntimeError as error:  # no thread could be started
            raise no_more("cannot load a built-in model", error) from error
        return self._backend.describe()

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value:
        if method == "invoke" and not self.waits:  # a few lines of ours: nothing to guard
            return await self._backend.invoke(value, params)
        return await run_method(self._backend, False, method, value, params, emit)

    def allocate(self, size: int) -> memoryview | None:
        return None  # the peer's own memory is as good as any


async def in_thread(step: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(step)
