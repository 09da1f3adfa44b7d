"""What `status --watch` shows: lines that fit a terminal of any size, and nothing else.

Lines are cut here and not by a layout engine, so that a small terminal loses the ends of lists and never
a heading or a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

from modelnet_p2p.node.checkup.health import Concern
from modelnet_p2p.node.cli.output import duration, plain

Line = tuple[str, str]  # the words, and rich's name for how they look
Map = Mapping[str, Any]  # Any: what a peer tells of itself

PLAIN, TITLE, DIM, GRAVE = "", "bold", "dim", "bold yellow"
GAP = 2  # columns between those of a table
WIDE = 116  # columns from which on a peer's whole id and its address stand side by side
MIN_CONCERNS = 2  # that are shown however small the terminal is
# of what a model does, with their widths
_MODEL_COLUMNS = {"RUN": 3, "WAIT": 4, "CALLS": 7, "FAULTS": 6, "/S": 7, "P50 MS": 7, "P99 MS": 7}


@dataclass(frozen=True, slots=True)
class View:
    """What one look at the peer found, or what was last known of it."""

    status: Map
    peers: Sequence[Map] = ()
    concerns: Sequence[Concern] = ()
    clock: str = ""
    trouble: str = ""  # why there is nothing newer
    footer: str = "Ctrl-C leaves"


def screen(view: View, width: int, height: int) -> list[Line]:
    """At most `height` lines of at most `width` columns."""
    head = [*_head(view), *_numbers(view.status)]
    models = [_model(model, width) for model in view.status.get("models") or ()]
    peers = [_peer(peer, width) for peer in sorted(view.peers, key=_nearest_first)]
    # of what the head, the footer and the two headings leave, each with an empty line before it
    room = max(0, height - len(head) - 6)
    told = _concerns(view.concerns, max(2 * MIN_CONCERNS + 1, room // 3))
    room = max(0, room - len(told) - bool(told))
    for_models, for_peers = _share(room, len(models), len(peers))
    lines = [
        *head,
        *([("", PLAIN), *told] if told else []),
        ("", PLAIN),
        (_table("MODELS", _MODEL_COLUMNS, _widths(width)), TITLE),
        *_cut(models, for_models, "no model is published: modelnet-peer publish builtin:digits"),
        ("", PLAIN),
        (_peer_heading(width), TITLE),
        *_cut(peers, for_peers, "no other peer is known"),
    ]
    lines = lines[: height - 1]
    lines += [("", PLAIN)] * (height - 1 - len(lines)) + [(view.footer, DIM)]
    return [(set_cell_size(_harmless(words), width).rstrip(), style) for words, style in lines]


def _harmless(words: str) -> str:
    """Without control characters, its spaces kept: they are what makes columns."""
    return plain(words).replace("\n", " ").replace("\t", " ")


def _head(view: View) -> list[Line]:
    status = view.status
    name = f"modelnet-peer {status.get('version', '')}  network {status.get('network', '')}"
    up = f"up {duration(status.get('uptime_s') or 0)}"
    addrs = [str(addr).partition("/p2p/")[0] for addr in status.get("addrs") or ()]
    lines = [
        (f"{name}  {up}  {view.clock}", TITLE),
        (str(status.get("peer", "")), PLAIN),
        (", ".join(addrs) or "it listens nowhere: a client", DIM),
    ]
    return [*lines, (view.trouble, GRAVE)] if view.trouble else lines


def _numbers(status: Map) -> list[Line]:
    refused = sum((status.get("refused") or {}).values())
    models = status.get("models") or ()

    def total(key: str) -> int:
        return sum(model.get(key) or 0 for model in models)

    node = (
        f"connections {status.get('connections', 0)}   known {status.get('table', 0)}"
        f"   records {status.get('records', 0)}   refused {refused}"
        f"   memory {(status.get('rss_bytes') or 0) / 2**20:.0f} MiB"
    )
    calls = (
        f"calls/s {number(status.get('calls_per_s'))}   p50 {number(status.get('p50_ms'))} ms"
        f"   p99 {number(status.get('p99_ms'))} ms   running {total('in_flight')}"
        f"   waiting {total('queued')}   calls {total('calls')}   faults {total('faults')}"
    )
    return [("", PLAIN), (node, PLAIN), (calls, PLAIN)]


def _concerns(concerns: Sequence[Concern], room: int) -> list[Line]:
    """Two lines each, as many as there is room for; the last line says how many are left out."""
    lines: list[Line] = []
    for concern in concerns:
        style = GRAVE if concern.grave else DIM
        lines += [(f"! {concern.message}", style), (f"  {concern.hint}", DIM)]
    if len(lines) <= room:
        return lines
    kept = max(1, (room - 1) // 2)
    return [*lines[: 2 * kept], (f"  and {len(concerns) - kept} more: modelnet-peer status", DIM)]


def _share(room: int, models: int, peers: int) -> tuple[int, int]:
    """Rows for each of two lists: half the room each, and what one leaves for the other."""
    models, peers = max(models, 1), max(peers, 1)  # an empty list says so in one row
    first = min(models, max(room // 2, room - peers))
    return first, min(peers, room - first)


def _cut(lines: Sequence[Line], room: int, empty: str) -> list[Line]:
    if not lines:
        return [(empty, DIM)][:room]
    if len(lines) <= room:
        return list(lines)
    return [*lines[: max(0, room - 1)], (f"and {len(lines) - max(0, room - 1)} more", DIM)][:room]


def _model(model: Map, width: int) -> Line:
    state = model.get("state") or "serving"
    name = str(model.get("model")) + ("" if state == "serving" else f" ({state})")
    cells = (
        str(model.get("in_flight") or 0),
        str(model.get("queued") or 0),
        str(model.get("calls") or 0),
        str(model.get("faults") or 0),
        number(model.get("calls_per_s")),
        number(model.get("p50_ms")),
        number(model.get("p99_ms")),
    )
    return _table(name, cells, _widths(width)), PLAIN if state == "serving" else DIM


def _widths(width: int) -> list[int]:
    """Of a model's name, and of its numbers."""
    numbers = list(_MODEL_COLUMNS.values())
    return [max(8, width - sum(numbers) - GAP * len(numbers)), *numbers]


def _table(name: str, cells: Iterable[str], widths: Sequence[int]) -> str:
    """A row: the name to the left, the numbers to the right."""
    parts = [
        _fit(name, widths[0]),
        *(f"{cell:>{size}}" for cell, size in zip(cells, widths[1:], strict=True)),
    ]
    return (" " * GAP).join(parts)


def _fit(words: str, size: int) -> str:
    words = _harmless(words)
    return set_cell_size(words, size) if cell_len(words) <= size else set_cell_size(words, size - 1) + "…"


def _peer_heading(width: int) -> str:
    return _peer_row("PEERS", "STATE", "RTT MS", "ADDRESS", width)


def _peer(peer: Map, width: int) -> Line:
    whole = str(peer.get("peer"))
    name = whole if width >= WIDE else f"…{whole[-12:]}"
    state = str(peer.get("state")) if peer.get("connected") else f"{peer.get('state')}, not connected"
    addr = str((peer.get("addrs") or ["-"])[0]).partition("/p2p/")[0]
    return _peer_row(name, state, number(peer.get("rtt_ms")), addr, width), (
        PLAIN if peer.get("connected") else DIM
    )


def _peer_row(name: str, state: str, rtt: str, addr: str, width: int) -> str:
    size = 52 if width >= WIDE else 13
    return (" " * GAP).join((_fit(name, size), _fit(state, 22), f"{rtt:>7}", addr))


def _nearest_first(peer: Map) -> tuple[bool, float]:
    rtt = peer.get("rtt_ms")
    return not peer.get("connected"), float("inf") if rtt is None else rtt


def number(value: float | None) -> str:
    """Three digits or so: a screen is no protocol."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
