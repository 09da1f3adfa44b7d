"""What the gateway costs: the first token, each token, a small call, and three hundred streams at once.

A peer with a gateway, and others that serve, are processes of their own; the client is this one. A model that
talks is as fast as it is told to be, so that its own speed is no part of what is measured.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import httpx
import trio
from rich.console import Console

from benches import talk
from benches.figure import Figure, quantile
from benches.rigs.gateway_modelnet import CROWD_TASK, MODULE, SAME, WORDS
from benches.rigs.stage import SMALL_BYTES
from benches.systems import OURS, Running, spawn
from processes import undisturbed

START_TIMEOUT = 120.0  # seconds
PATIENCE = 300.0  # seconds, of one answer
PROVIDERS = 5  # with 64 slots each
PACE_MS = 10  # a token: a hundred a second, which a small model on a CPU gives
WARM_UP = 10
TURN = 20  # small calls, then the other way's: the machine's speed changes within tenths of a second
CROWD_PACE_MS = 400


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    answers: int  # a round, of `tokens` each
    tokens: int
    fast: int  # tokens of an answer that nothing slows
    calls: int  # small ones, a round and way
    streams: int  # at once
    crowd_tokens: int  # of each of them


FULL = Plan(rounds=5, answers=4, tokens=100, fast=3000, calls=300, streams=300, crowd_tokens=30)
QUICK = Plan(rounds=2, answers=2, tokens=40, fast=500, calls=60, streams=300, crowd_tokens=20)


def measure(quick: bool, console: Console) -> Iterator[Figure]:
    plan = QUICK if quick else FULL
    with opened(PROVIDERS) as rig:
        yield from tokens(rig.ready["gateway"], plan)
        yield from small_calls(rig.ready["gateway"], rig.ready["plain"], plan)
        console.print(f"  {plan.streams} streams at once ...", style="dim", highlight=False)
        yield from crowd(rig.ready["gateway"], plan)


@contextmanager
def opened(providers: int) -> Iterator[Running]:
    rig = spawn(OURS, MODULE, ["--strangers", str(providers)])
    try:
        rig.ready = rig.read_line(START_TIMEOUT)
        yield rig
    finally:
        with undisturbed():
            rig.end()


@dataclass(frozen=True, slots=True)
class Told:
    """Of one streamed answer: seconds to its first token and to its last, and how many came in order."""

    first: float
    last: float
    tokens: int


class Client:
    """One connection, kept."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def post(self, path: str, body: bytes) -> http.client.HTTPResponse:
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read(500)
        return answer

    def stream(self, wish: str) -> Told:
        started = perf_counter()
        first, pieces = 0.0, []
        answer = self.post("/v1/chat/completions", chat(WORDS, wish))
        while line := answer.readline():
            if (piece := piece_of(line)) is not None:
                first = first or perf_counter() - started
                pieces.append(piece)
        return Told(first, perf_counter() - started, in_order(pieces))


def chat(model: str, wish: str) -> bytes:
    messages = [{"role": "user", "content": wish}]
    return json.dumps({"model": model, "stream": True, "messages": messages}).encode()


def piece_of(line: str | bytes) -> str | None:
    """The text in a line of a stream of events; None for one that has none."""
    text = line.decode() if isinstance(line, bytes) else line
    if not text.startswith("data: {"):
        return None
    event = json.loads(text.removeprefix("data: "))
    assert "error" not in event, event
    [choice] = event["choices"] or [{}]
    return choice.get("delta", {}).get("content") or None


def in_order(pieces: list[str]) -> int:
    """How many of the numbered words came, each where it belongs."""
    words = "".join(pieces).split()
    return sum(word == str(number) for number, word in enumerate(words))


def itself(wish: str) -> Told:
    """The same model in this process."""
    started = perf_counter()
    first, pieces = 0.0, []
    for piece in talk.words(wish):
        first = first or perf_counter() - started
        pieces.append(piece)
    return Told(first, perf_counter() - started, in_order(pieces))


def tokens(url: str, plan: Plan) -> Iterator[Figure]:
    """The first token and the speed of all, beside the model's in this process; and how fast it can be."""
    wish = f"{plan.tokens} {PACE_MS}"
    over, shares, fastest, lost = [], [], [], 0
    with Client(url) as client:
        client.stream(f"{WARM_UP} 0")
        for _ in range(plan.rounds):
            alone = [itself(wish) for _ in range(plan.answers)]
            served = [client.stream(wish) for _ in range(plan.answers)]
            over.append((median(one.first for one in served) - median(one.first for one in alone)) * 1000)
            shares.append(median(one.last for one in alone) / median(one.last for one in served))
            flood = client.stream(f"{plan.fast} 0")
            fastest.append(flood.tokens / flood.last)
            lost += sum(plan.tokens - one.tokens for one in served) + plan.fast - flood.tokens
    params = {"tokens": plan.tokens, "token_ms": PACE_MS}
    yield Figure("gateway_ttft_over", "ms", over, params)
    yield Figure("gateway_tokens_share", "x", shares, params)
    yield Figure("gateway_tokens_per_s", "1/s", fastest, {"tokens": plan.fast, "token_ms": 0})
    yield Figure("gateway_tokens_lost", "", [float(lost)], {"streams": 1})


def small_calls(gateway: str, plain: str, plan: Plan) -> Iterator[Figure]:
    """By the gateway, and by a plain application beside it; by turns."""
    body = json.dumps({"input": "x" * SMALL_BYTES}).encode()
    ways = {"gateway": (gateway, f"/api/v1/invoke/{SAME}"), "plain": (plain, "/call")}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    shares = []
    for _ in range(plan.rounds):
        now: dict[str, list[float]] = {way: [] for way in ways}
        with ExitStack() as stack:
            clients = {way: stack.enter_context(Client(url)) for way, (url, _) in ways.items()}
            for way, (_, path) in ways.items():
                timed_posts(clients[way], path, body, WARM_UP)
            while len(now["plain"]) < plan.calls:
                for way, (_, path) in ways.items():
                    now[way] += timed_posts(clients[way], path, body, min(TURN, plan.calls))
        for way in ways:
            taken[way] += now[way]
        shares.append(median(now["gateway"]) / median(now["plain"]))
    for way, samples in taken.items():
        params = {"by": way, "bytes": SMALL_BYTES, "p99": round(quantile(samples, 0.99), 2)}
        yield Figure("http_small_call", "ms", samples, params)
    yield Figure("gateway_small_call_share", "x", shares, {"bytes": SMALL_BYTES})


def timed_posts(client: Client, path: str, body: bytes, count: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for _ in range(count):
        started = perf_counter()
        answer = json.loads(client.post(path, body).read())
        taken.append((perf_counter() - started) * 1000)
        assert len(answer["output"]) == SMALL_BYTES
    return taken


def crowd(url: str, plan: Plan) -> Iterator[Figure]:
    """So many streams at the same time: how many were under way at once, and what was lost of them."""
    held, lost, seconds = trio.run(hold, url, plan)
    params = {"streams": plan.streams, "tokens": plan.crowd_tokens, "token_ms": CROWD_PACE_MS}
    yield Figure("gateway_streams", "", [float(held)], params)
    yield Figure("gateway_tokens_lost", "", [float(lost)], params)
    yield Figure("gateway_crowd_tokens_per_s", "1/s", [plan.streams * plan.crowd_tokens / seconds], params)


async def hold(url: str, plan: Plan) -> tuple[int, int, float]:
    under_way = most = lost = 0
    body = chat(f"task:{CROWD_TASK}", f"{plan.crowd_tokens} {CROWD_PACE_MS}")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    async def stream(client: httpx.AsyncClient) -> None:
        nonlocal under_way, most, lost
        pieces: list[str] = []
        async with client.stream("POST", "/v1/chat/completions", content=body) as answer:
            if answer.status_code != 200:
                lost += plan.crowd_tokens
                return
            async for line in answer.aiter_lines():
                if (piece := piece_of(line)) is None:
                    continue
                if not pieces:
                    under_way += 1
                    most = max(most, under_way)
                pieces.append(piece)
        under_way -= bool(pieces)
        lost += plan.crowd_tokens - in_order(pieces)

    started = perf_counter()
    kind = {"content-type": "application/json"}
    async with (
        httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE, headers=kind) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(plan.streams):
            nursery.start_soon(stream, client)
    return most, lost, perf_counter() - started
