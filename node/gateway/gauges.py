"""The figures of /metrics: what passes through the gateway, and what its peer is at, in Prometheus' form.

The names are vLLM's with `modelnet:` before them, so that its dashboards need one word changed. A model's
name is a label only once it has answered, and only so many of them: whoever asks cannot fill our memory
with names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from modelnet_p2p.errors import ModelnetError

if TYPE_CHECKING:
    from modelnet_p2p.node.peer import Peer

MAX_MODELS = 256  # with figures of their own; the rest is "other"
OTHER = "other"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_LONG = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
    240.0,
    600.0,
)


class _OfModel(NamedTuple):
    """The figures of one model's calls."""

    success: Counter
    items: Counter
    first: Histogram
    whole: Histogram
    queued: Histogram


class Gauges:
    """All figures of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        model = ("model_name",)

        def counter(name: str, words: str, labels: tuple[str, ...] = model) -> Counter:
            return Counter(f"modelnet:{name}", words, labels, registry=registry)

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"modelnet:{name}", words, model, buckets=buckets, registry=registry)

        def gauge(name: str, words: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"modelnet:{name}", words, labels, registry=registry)

        self.running = gauge("num_requests_running", "Requests that the gateway is answering now.")
        self.refused = counter("requests_refused", "Requests refused because there were too many.", ())
        self.success = counter("request_success", "Calls that ended well.")
        self.failed = counter("request_failure", "Calls that ended in an error, by its code.", ("code",))
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, as far as models count them.")
        self.generation_tokens = counter(
            "generation_tokens", "Tokens generated, as far as models count them."
        )
        self.items = counter("generation_items", "Pieces of answers passed on.")
        self.resumed = counter("requests_resumed", "Answers that went on at another provider.")
        self.first = histogram(
            "time_to_first_token_seconds", "From the request to its first piece.", _SECONDS
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "From the request to the end of its answer.", _LONG
        )
        self.queued = histogram(
            "request_queue_time_seconds", "That calls waited at their providers.", _SECONDS
        )
        self.connections = gauge("peer_connections", "Peers connected.")
        self.table = gauge("peer_table_entries", "Peers in the routing table.")
        self.records = gauge("peer_records", "Records kept for others.")
        self.rss = gauge("peer_resident_memory_bytes", "Memory of the peer's process.")
        self.uptime = gauge("peer_uptime_seconds", "Since the peer was opened.")
        self.served = {
            name: gauge(f"model_{name}", words, model)
            for name, words in (
                ("in_flight", "Calls that a model of this peer is running."),
                ("queued", "Calls that wait for a model of this peer."),
                ("calls", "Calls that ever came for a model of this peer."),
                ("faults", "Those of them that ended in a fault."),
            )
        }
        self._models: dict[str, _OfModel] = {}

    def name(self, model: str) -> str:
        """The label for a model."""
        return model if model in self._models or len(self._models) < MAX_MODELS else OTHER

    def _of(self, model: str) -> _OfModel:
        """What each call of a model counts: looked up by its labels once."""
        if (found := self._models.get(model)) is None:
            name = self.name(model)
            found = self._models[name] = _OfModel(
                self.success.labels(name),
                self.items.labels(name),
                self.first.labels(name),
                self.whole.labels(name),
                self.queued.labels(name),
            )
        return found

    def ended(self, model: str, started: float, first: float | None, items: int, queue_ms: float) -> None:
        """A call of `model`, begun at `started` (trio time), whose first item came at `first`, ended well."""
        of, now = self._of(model), trio.current_time()
        of.success.inc()
        of.items.inc(items)
        of.first.observe((now if first is None else first) - started)
        of.whole.observe(now - started)
        of.queued.observe(queue_ms / 1e3)

    def counted(self, model: str, usage: Mapping[str, Any]) -> None:
        """What a model says that it has read and written. Any: a stranger's JSON."""
        name = self.name(model)
        for key, counter in (
            ("prompt_tokens", self.prompt_tokens),
            ("completion_tokens", self.generation_tokens),
        ):
            number = usage.get(key)
            if isinstance(number, int) and 0 <= number < 1 << 40:
                counter.labels(name).inc(number)

    def failure(self, error: ModelnetError) -> None:
        self.failed.labels(error.code.value).inc()

    async def page(self, peer: Peer) -> bytes:
        """What Prometheus reads."""
        status = await peer.status()
        for gauge, key in (
            (self.connections, "connections"),
            (self.table, "table"),
            (self.records, "records"),
            (self.rss, "rss_bytes"),
            (self.uptime, "uptime_s"),
        ):
            gauge.set(_number(status.get(key)))
        lines = status.get("models")
        for served in self.served.values():
            served.clear()
        for line in lines if isinstance(lines, list) else ():
            for name, served in self.served.items():
                if name in line:  # one that is still being loaded has no figures
                    served.labels(str(line["model"])).set(_number(line[name]))
        return generate_latest(self.registry)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
