"""hivemind's expert server as its callers use it: `RemoteExpert`, called from a thread for each caller.

The server is `background_server` with one `ffn` expert, two handlers and no compression. The caller's torch
is not touched before the server has been forked: one that has begun its threads would hang the child.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import hivemind
import torch
from hivemind.moe.client.expert import RemoteExpert, create_remote_experts
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.moe.server.layers import name_to_block
from hivemind.moe.server.server import background_server
from hivemind.proto.runtime_pb2 import CompressionType

from benches.rigs import serving_stage, stage
from benches.rigs.serving_stage import EXPERT
from benches.rigs.stage import Line

UID, KIND, WIDTH = "ffn.0", "ffn", 1024
HANDLERS = 2  # processes that take calls, its own default


class HivemindExpert:
    """The caller's end."""

    def __init__(self, expert: RemoteExpert) -> None:
        self._expert = expert
        self._inputs: dict[int, torch.Tensor] = {}
        self._alone = name_to_block[KIND](WIDTH).eval()

    def _input(self, rows: int) -> torch.Tensor:
        if rows not in self._inputs:
            self._inputs[rows] = torch.randn(rows, WIDTH)
        return self._inputs[rows]

    def _call(self, rows: int) -> float:
        x = self._input(rows)
        started = perf_counter()
        with torch.no_grad():
            answer = self._expert(x)
        seconds = perf_counter() - started
        assert answer.shape == x.shape
        return seconds

    async def calls(self, model: str, rows: int, count: int) -> list[float]:
        assert model == EXPERT
        return [self._call(rows) for _ in range(count)]

    async def rate(self, model: str, rows: int, callers: int, seconds: float) -> list[float]:
        assert model == EXPERT
        self._input(rows)
        until = perf_counter() + seconds

        def keep_calling(_: int) -> list[float]:
            each = []
            while perf_counter() < until:
                each.append(self._call(rows))
            return each

        with ThreadPoolExecutor(callers) as threads:
            return [one for each in threads.map(keep_calling, range(callers)) for one in each]

    def alone(self, rows: int) -> Callable[[], object]:
        x = self._input(rows)

        def step() -> torch.Tensor:
            with torch.no_grad():
                answer: torch.Tensor = self._alone(x)
                return answer

        return step

    def packed(self, rows: int) -> Callable[[], object]:
        raise SystemExit("only ours packs the weights of what it serves")

    async def kill(self, model: str) -> Line:
        raise SystemExit("only ours is asked what its callers see when a worker is killed")


async def next_line() -> str:
    return stage.next_order()


def main() -> None:
    stage.options()
    torch.set_grad_enabled(False)
    served = background_server(
        expert_uids=[UID],
        expert_cls=KIND,
        hidden_dim=WIDTH,
        device="cpu",
        num_handlers=HANDLERS,
        compression=CompressionType.NONE,
        optim_cls=None,
    )
    with served as info:
        dht = hivemind.DHT(initial_peers=[str(addr) for addr in info.addrs], start=True)
        [expert] = create_remote_experts([ExpertInfo(UID, info.peer_id)], dht)
        versions = {"hivemind": hivemind.__version__, "threads": torch.get_num_threads()}
        asyncio.run(serving_stage.obey(HivemindExpert(expert), os.getpid(), next_line, versions))
        dht.shutdown()
    sys.stdout.flush()
    os._exit(0)  # its background threads do not end by themselves


if __name__ == "__main__":
    main()
