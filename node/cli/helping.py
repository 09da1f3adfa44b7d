"""A command's help: examples to copy at its end, and when it is shown unasked."""

from __future__ import annotations

import click


def examples(*lines: str) -> str:
    """An epilog for click, one example a line, not reflowed."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def help_alone(ctx: click.Context) -> None:
    """A command that only holds others, and was typed alone: its help, as a mistake in usage."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)
