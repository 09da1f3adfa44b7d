"""Completion for shells: the command that prints the script, and bash's way with colons.

click does the rest; the words that only we know are in `words`.
"""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import ClassVar

import click
from click.shell_completion import (
    BashComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
    split_arg_string,
)

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples

_KEEP = {  # where a shell looks for it in every new terminal
    "bash": "echo 'source <(modelnet-peer completion bash)' >> ~/.bashrc",
    "zsh": "echo 'source <(modelnet-peer completion zsh)' >> ~/.zshrc    # below its line with compinit",
    "fish": "modelnet-peer completion fish > ~/.config/fish/completions/modelnet-peer.fish",
}

# click's own script hands over bash's words, which end at each colon: builtin:digits would be three. This
# one hands over the line, and takes from the answers what stands before the word's last colon, as bash wants.
_BASH = r"""
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" word="" type value IFS=$'\n'
    [[ $line == *[[:space:]] ]] || word="${line##*[[:space:]]}"
    local known=""
    [[ $COMP_WORDBREAKS == *:* && $word == *:* ]] && known="${word%%:*}:"
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("${value#"$known"}") ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class LineComplete(BashComplete):
    """click's for bash, with the script above."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH.lstrip()

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_WORDS", "")
        words = split_arg_string(line)
        incomplete = words.pop() if len(words) > 1 and not line[-1:].isspace() else ""
        return words[1:], incomplete


def answer(group: click.Group, program: str, variable: str, asked: str) -> int:
    """Print what a shell asked for by the environment's `variable`; the exit status."""
    return shell_complete(group, {}, program, variable, asked)


@click.command(
    "completion",
    epilog=examples(
        "source <(modelnet-peer completion bash)         # in this terminal",
        *_KEEP.values(),
    ),
)
@common_flags
@click.argument("shell", required=False, type=click.Choice(tuple(_KEEP)))
def completion_command(session: Session, shell: str | None) -> None:
    """Print the script that makes bash, zsh or fish complete commands, flags and models with the Tab key."""
    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    if shell not in _KEEP:
        raise LocalError(
            Code.BAD_INPUT, f"say for which shell: {', '.join(_KEEP)}", hint="modelnet-peer completion bash"
        )
    from modelnet_p2p.node.cli.app import COMPLETE, PROGRAM, app

    complete = get_completion_class(shell)
    assert complete is not None  # click has all three
    script = complete(app, {}, PROGRAM, COMPLETE).source()
    output = session.output
    if output.as_json:
        output.line({"shell": shell, "script": script})
        return
    print(script, end="", flush=True)
    if output.to_terminal:
        output.notice(f"to keep it: {_KEEP[shell]}")
