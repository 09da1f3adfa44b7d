"""Examples at the end of a command's help: what to copy, before what each flag means."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """An epilog for click, one example a line, not reflowed."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))
