"""How results look in a notebook and at a prompt: offers as a table.

All that stands in an offer is a stranger's text. It is escaped for HTML, stripped of what moves a terminal's
cursor, and only so much of it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from modelnet_p2p.offers import Offer

MAX_ROWS = 100  # a notebook keeps its outputs in the file
MAX_CELL = 80  # characters: as long as the longest model name
HEADS = ("model", "task", "provider", "state", "rtt ms", "load")


class Offers(list[Offer]):
    """What `find` returns: a list, best first, that shows itself in brief."""

    def __repr__(self) -> str:
        """A line for each offer; the records themselves are kilobytes of signed bytes."""
        if not self:
            return "no offers"
        lines = [f"{len(self)} offer{'s' if len(self) > 1 else ''}"]
        lines += ["  ".join(cell for cell in row if cell) for row in self._rows()]
        return "\n  ".join(lines + self._rest())

    def _repr_html_(self) -> str:
        """The same as a table, which Jupyter draws."""
        if not self:
            return "<em>no offers</em>"
        heads = "".join(f"<th>{head}</th>" for head in HEADS)
        rows = "".join(_html_row(row) for row in self._rows())
        rest = "".join(f"<p>{escape(line)}</p>" for line in self._rest())
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{rest}"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for offer in self[:MAX_ROWS]:
            rtt = "" if offer.rtt_ms is None else f"{offer.rtt_ms:.1f}"
            load = "" if offer.load is None else f"{offer.load:.0%}"
            provider = offer.record.provider.short
            yield _cell(offer.model), _cell(offer.task), _cell(provider), offer.state.value, rtt, load

    def _rest(self) -> list[str]:
        return [f"and {len(self) - MAX_ROWS} more"] if len(self) > MAX_ROWS else []


def _cell(text: str) -> str:
    """Printable characters alone: no line breaks, no escape sequences, nothing that turns writing round."""
    seen = "".join(char if char.isprintable() else "�" for char in text[: MAX_CELL + 1])
    return seen if len(seen) <= MAX_CELL else seen[: MAX_CELL - 1] + "…"


def _html_row(row: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
