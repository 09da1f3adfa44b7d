"""Commands that are named to people, with the `--home` that they gave themselves: so they can be copied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote

import click

# "there", or "on that machine": it has a home of its own
_NAMED = re.compile(
    r"modelnet-peer ((?:owner |config )?[a-z]+)\b(?! --help|`? (?:prints )?there| on that machine)"
)


def home_given(arguments: Sequence[str]) -> str:
    """` --home DIR` as it stands on a command line, in the shell's words; empty if it does not."""
    words = iter(arguments)
    for word in words:
        flag, equals, home = word.partition("=")
        if flag == "--home":
            return f" --home {quote(home if equals else next(words, ''))}"
    return ""


def at_home(text: str, flag: str, commands: click.Group) -> str:
    """`text` with that flag behind each command in it that takes one, unless it names a home already."""

    def homed(match: re.Match[str]) -> str:
        command: click.Command | None = commands
        for word in match[1].split():
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), word)
        takes_it = command is not None and any(parameter.name == "home" for parameter in command.params)
        return match[0] + flag if takes_it else match[0]

    return text if not flag or "--home" in text else _NAMED.sub(homed, text)
