"""What inspection and a warm-up run told of a model, in lines for people: what `publish --dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]  # Any: an object of JSON, from a peer of perhaps another version


def described(report: Report) -> list[tuple[str, str]]:
    """The name and value of all that is known, in the order in which people ask for it."""
    limits = _map(report.get("limits"))
    known = [
        ("digest", report.get("digest")),
        ("licence", report.get("licence")),
        ("tier", report.get("tier")),
        ("price", prices(_map(report.get("price")))),
        ("tags", ", ".join(map(str, report.get("tags") or ()))),
        ("framework", report.get("framework")),
        ("precision", report.get("precision")),
        ("parameters", _count(report.get("parameters"))),
        ("size", _bytes(limits.get("size_bytes"))),
        ("latency", _time(limits.get("latency_us"))),
        ("context", _unit(report.get("context_length"), "tokens")),
        ("languages", ", ".join(map(str, report.get("languages") or ()))),
        *(("input", _spec(spec)) for spec in report.get("inputs") or ()),
        *(("output", _spec(spec)) for spec in report.get("outputs") or ()),
        ("gives", ", ".join(map(str, report.get("gives") or ()))),
        ("batches", _unit(limits.get("batch_rows"), "rows of several calls in one step")),
        *((_words(name), f"{value / 1e6:g}") for name, value in _map(report.get("metrics")).items()),
    ]
    return [(name, str(value)) for name, value in known if value]


def prices(amounts: Mapping[str, Any]) -> str:
    """Amounts in whole units, by name."""
    shown = {name: f"{amount:.6f}".rstrip("0").rstrip(".") for name, amount in amounts.items()}
    return ", ".join(f"{amount} {name}" for name, amount in shown.items())


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _spec(spec: object) -> str:
    fields = _map(spec)
    shape = fields.get("shape")
    sizes = (
        "" if shape is None else "[" + ",".join("n" if size is None else str(size) for size in shape) + "]"
    )
    parts = [fields.get("name"), fields.get("kind"), fields.get("dtype"), sizes]
    return " ".join(str(part) for part in parts if part)


def _count(value: object) -> str:
    """A number of parameters as people say it."""
    if not isinstance(value, int) or not value:
        return ""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit} ({value:,})"
    return str(value)


def _bytes(value: object) -> str:
    if not isinstance(value, int):
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def _time(value: object) -> str:
    return "" if not isinstance(value, int) else f"{value / 1000:.3g} ms for one small call on this machine"


def _unit(value: object, unit: str) -> str:
    return f"{value} {unit}" if value else ""


def _words(name: str) -> str:
    return name.replace("_", " ")
