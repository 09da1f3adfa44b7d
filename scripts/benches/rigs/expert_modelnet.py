"""Ours: a peer that serves the expert in a worker, and one that only asks by `Peer.invoke`."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import trio

from benches.expert import WIDTH, Expert, make_expert, write_expert
from benches.rigs import in_trio, serving_stage, stage
from benches.rigs.serving_stage import EXPERT
from benches.rigs.stage import Line
from modelnet_p2p import Peer, RemoteError
from modelnet_p2p.errors import Code
from modelnet_p2p.node.serving.backends.torch_packing import pack

MODULE = "benches.rigs.expert_modelnet"
MODELS = Path(__file__).resolve().parent.parent  # where expert.py and napping.py lie
NETWORK, WEIGHTS = "MODELNET_NETWORK", "BENCH_EXPERT"  # in the environment: the caller names both
ONLY = "BENCH_MODELS"  # there too, for who needs but some of SOURCES
TIMEOUT = 120.0  # seconds
NAP = 60.0  # of the call that is running when its worker is killed
BUSY_PAUSE = 0.001  # seconds until a caller who was told `busy` asks again; its call's time goes on
BEGUN = 0.3  # seconds after which that call has surely begun
SOURCES = {  # of each model, by its name in the orders
    "together": "expert:Together",
    "one": "expert:Alone",
    "napping": "napping:Napping",
}


async def serve() -> None:
    weights = os.environ[WEIGHTS]
    os.chdir(MODELS)
    with tempfile.TemporaryDirectory(prefix="mn-bench-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # one that nobody else meets others in
        async with Peer.open(network=os.environ[NETWORK]) as peer:
            await peer.publish(weights, module="expert:Expert", model=EXPERT)
            for name in os.environ.get(ONLY, " ".join(SOURCES)).split():
                await peer.publish(SOURCES[name], model=name)
            stage.tell({"addrs": peer.addrs})
            await trio.to_thread.run_sync(sys.stdin.read)


class ModelnetExpert:
    """The caller's end."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._inputs: dict[int, np.ndarray] = {}
        self._alone, self._packed = make_expert(), make_expert()
        pack(self._packed)

    def _input(self, rows: int) -> np.ndarray:
        if rows not in self._inputs:
            rng = np.random.default_rng(rows)
            self._inputs[rows] = rng.standard_normal((rows, WIDTH), np.float32)
        return self._inputs[rows]

    async def _call(self, model: str, rows: int) -> None:
        x = self._input(rows)
        while True:
            try:
                answer = await self._peer.invoke(model, x, timeout=TIMEOUT)
                break
            except RemoteError as error:
                if error.code is not Code.BUSY:
                    raise
                await trio.sleep(BUSY_PAUSE)  # its queue is shorter than there are callers
        assert isinstance(answer, np.ndarray)
        assert answer.shape == x.shape

    async def calls(self, model: str, rows: int, count: int) -> list[float]:
        return await stage.timed(functools.partial(self._call, model, rows), count)

    async def rate(self, model: str, rows: int, callers: int, seconds: float) -> list[float]:
        each: list[float] = []
        until = perf_counter() + seconds

        async def keep_calling() -> None:
            while perf_counter() < until:
                each.extend(await self.calls(model, rows, 1))

        await in_trio.together([keep_calling] * callers)
        return each

    def alone(self, rows: int) -> Callable[[], object]:
        return self._step(self._alone, rows)

    def packed(self, rows: int) -> Callable[[], object]:
        return self._step(self._packed, rows)

    def _step(self, expert: Expert, rows: int) -> Callable[[], object]:
        x = torch.from_numpy(self._input(rows))

        def step() -> torch.Tensor:
            with torch.inference_mode():
                answer: torch.Tensor = expert(x)
                return answer

        return step

    async def kill(self, model: str) -> Line:
        """Seconds from `kill -9` of a worker until its caller has the fault, and until it answers again."""
        old = await self._pid(model)
        seen = trio.Event()
        told: Line = {}

        async def be_called() -> None:
            try:
                await self._peer.invoke(model, nobody(), params={"nap": NAP}, timeout=TIMEOUT)
            except RemoteError as error:
                told.update(fault=perf_counter() - killed, code=error.code.value)
            seen.set()

        killed = float("nan")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_called)
            await trio.sleep(BEGUN)
            killed = perf_counter()
            os.kill(old, signal.SIGKILL)
            await seen.wait()
        await self._call(EXPERT, 1)
        told["others"] = perf_counter() - killed  # the peer serves on
        while True:
            try:
                assert await self._pid(model) != old
                told["back"] = perf_counter() - killed
                return told
            except RemoteError:
                await trio.sleep(0.01)

    async def _pid(self, model: str) -> int:
        pid = await self._peer.invoke(model, nobody(), timeout=TIMEOUT)
        assert isinstance(pid, int)
        return pid


def nobody() -> np.ndarray:
    """An input without rows: it asks a model for its process."""
    return np.zeros((0, WIDTH), np.float32)


async def call(wanted: stage.Options) -> None:
    with tempfile.TemporaryDirectory(prefix="mn-expert-") as folder:
        os.environ[NETWORK] = f"bench-{os.getpid()}"
        os.environ[WEIGHTS] = str(Path(folder, "expert.safetensors"))
        write_expert(Path(os.environ[WEIGHTS]))
        server, told = stage.start_server(MODULE, wanted)
        async with Peer.open(listen=[], network=os.environ[NETWORK], bootstrap=told["addrs"][:1]) as peer:
            versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            await serving_stage.obey(ModelnetExpert(peer), server.pid, in_trio.order, versions)
        stage.end_server(server)


def main() -> None:
    wanted = stage.options()
    trio.run(serve) if wanted.serve else trio.run(call, wanted)


if __name__ == "__main__":
    main()
