"""The command line as a whole: which commands there are, and how every failure ends.

Commands live in modules of their own that are imported when one is called; this one imports click
and the errors, nothing heavier. All failures leave by one door (`main`): one line for the cause, one
for the next step, with --json one object, and the contract's exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING

import click

from modelnet_p2p import __version__
from modelnet_p2p.errors import Code, LocalError, ModelnetError, RemoteError
from modelnet_p2p.node.cli.helping import examples, help_alone

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM = "modelnet-peer"
_COMMANDS = {  # in the order in which help lists them, with the module of each and its short help
    "join": ("serving", "Start this machine's peer and stay in the network."),
    "publish": ("serving", "Serve a model from the running peer."),
    "unpublish": ("serving", "Withdraw a model."),
    "pull": ("pulling", "Fetch a model's weights from those who share them."),
    "find": ("finding", "List who offers a task, a model or a tag."),
    "invoke": ("asking", "Call a model and print its answer."),
    "mcp": ("agents", "Give an agent the network's models as tools."),
    "status": ("looking", "Show how the running peer is."),
    "peers": ("looking", "List the peers that the running peer knows."),
    "id": ("looking", "Print this home's peer id."),
    "ping": ("looking", "Measure the round trip to a peer."),
    "show": ("looking", "Print a model's signed records."),
    "owner": ("owning", "Choose whose model a name means, or own models yourself."),
    "logs": ("logs", "Show what the peer on this home has written."),
    "config": ("configuring", "Show the settings in force and where each came from."),
    "doctor": ("doctor", "Find out what is wrong on this machine, and what to type."),
    "completion": ("completing", "Print the script that completes commands in your shell."),
}
_EXITS = {
    Code.NOT_FOUND: 3,
    Code.AMBIGUOUS: 3,
    Code.UNREACHABLE: 4,
    Code.DEADLINE: 4,
    Code.NOT_RUNNING: 7,
    Code.CANCELLED: 130,
}
_LOCAL_EXITS = {
    Code.BAD_INPUT: 2,
    Code.UNKNOWN_METHOD: 2,
    Code.INTERNAL: 1,
    Code.MODEL_ERROR: 5,
    Code.BUSY: 5,
}
INTERRUPTED = 130
COMPLETE = "_MODELNET_PEER_COMPLETE"  # how a shell asks; click's name, made of the program's
_NEXT = {  # the next step after an error that brought none of its own
    Code.NOT_FOUND: "modelnet-peer find --help",
    Code.UNREACHABLE: "modelnet-peer peers lists who is there",
    Code.DEADLINE: "give it longer: --timeout 60",
    Code.BUSY: "try again, or ask another one: --provider ID",
    Code.BAD_INPUT: "modelnet-peer COMMAND --help shows examples",
    Code.MODEL_ERROR: "its peer's log says more; modelnet-peer find --model MODEL lists others",
    Code.TOO_LARGE: "send less at once",
    Code.BAD_STATE: "make room or repair it, or be another peer: --home DIR",
    Code.IN_USE: "modelnet-peer status",
}
_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def exit_code(error: ModelnetError) -> int:
    """The contract's exit status: 5 for a fault of the other side, 6 for what is refused here."""
    if isinstance(error, RemoteError):
        return _EXITS.get(error.code, 5) if error.code is not Code.CANCELLED else 5
    return _EXITS.get(error.code) or _LOCAL_EXITS.get(error.code, 6)


class _Lazy(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"modelnet_p2p.node.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in _COMMANDS or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from modelnet_p2p.node.cli.nearest import no_such_command

        raise no_such_command(PROGRAM, args, _COMMANDS)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        fitting = [
            CompletionItem(name, help=short)
            for name, (_, short) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return fitting + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=examples(
        "modelnet-peer join                      # in one terminal: a peer, on this machine only",
        "modelnet-peer publish builtin:digits    # in another one",
        "modelnet-peer find --task image-classification",
    ),
)
@click.version_option(__version__, "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def app(ctx: click.Context) -> None:
    """A peer of a network of AI models without a centre: publish, find and call models."""
    help_alone(ctx)


def run_app(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status is returned, or given to the shell when `argv` is None."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # None where the shell closed it: `>&-`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  as long as the process
    as_json = "--json" in arguments
    if argv is None:
        sys.excepthook = _on_bug(as_json)
        if arguments[:1] != ["join"]:  # which has its own manner of ending, from the first moment on
            signal.signal(signal.SIGINT, signal.default_int_handler)
    status = _run(arguments, as_json)
    if argv is None:
        sys.exit(status)
    return status


def _run(arguments: list[str], as_json: bool) -> int:
    try:
        if asked := os.environ.get(COMPLETE):  # by a shell: what could stand where the cursor is?
            from modelnet_p2p.node.cli.completing import answer

            return answer(app, PROGRAM, COMPLETE, asked)
        outcome = app.main(arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except ModelnetError as error:
        hint = _NEXT.get(error.code, "")
        from modelnet_p2p.node.cli.homing import at_home, home_given

        hint = error.hint or hint.replace("COMMAND", app_command(arguments))
        error.hint = at_home(hint, home_given(arguments), app)
        print_error(error, as_json=as_json)
        return exit_code(error)
    except click.UsageError as error:
        print_error(_usage(error, arguments), as_json=as_json)
        return 2
    except click.ClickException as error:
        print_error(LocalError(Code.BAD_INPUT, error.format_message()), as_json=as_json)
        return 2
    except (click.Abort, KeyboardInterrupt):
        print_error(LocalError(Code.CANCELLED, "interrupted"), as_json=as_json)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # whoever read the results has had enough (click makes an exit of that); without this Python
        # complains again at exit
        _no_more_output()
        return 0
    except OSError as error:  # all others are translated where they happen
        _no_more_output()
        words = f"cannot write the results: {error.strerror or error}"
        print_error(LocalError(Code.BAD_STATE, words, hint="make room where stdout goes"), as_json=as_json)
        return 6


def _usage(error: click.UsageError, arguments: list[str]) -> LocalError:
    """A wrong command line, with the help that is about it; the line that is right for what newcomers try."""
    where = error.ctx.command_path if error.ctx is not None else PROGRAM
    message, hint = error.format_message(), f"{where} --help"
    if isinstance(error, click.NoSuchOption) and where == PROGRAM and app_command(arguments) != "COMMAND":
        message = f"the flag {error.option_name} stands before the command"
        hint = f"put it behind: {PROGRAM} {app_command(arguments)} {error.option_name} …"
    elif where == f"{PROGRAM} join" and _is_of_publish(error):
        hint = f"{PROGRAM} publish --help"
    elif where == f"{PROGRAM} invoke" and "extra argument" in message:
        hint = f"text with spaces needs quotes: {where} MODEL 'some text'"
    return LocalError(Code.BAD_INPUT, message, hint=hint)


def _is_of_publish(error: click.UsageError) -> bool:
    """Whether it is about an option of `publish`: `join` takes most of them, and its help has none."""
    if isinstance(error, click.BadParameter):
        return isinstance(error.param, click.Option) and error.param.hidden
    if not isinstance(error, click.NoSuchOption):
        return False
    publish = app.get_command(click.Context(app), "publish")
    assert publish is not None
    return any(error.option_name in option.opts for option in publish.params)


def _no_more_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def app_command(arguments: Sequence[str]) -> str:
    """The command among these arguments, `COMMAND` where there is none."""
    return next((word for word in arguments if word in _COMMANDS), "COMMAND")


def print_error(error: ModelnetError, *, as_json: bool) -> None:
    """An error as the last lines of stderr."""
    from modelnet_p2p.node.cli.output import one_line

    if as_json:
        import json

        print(json.dumps({"error": error.to_map()}, ensure_ascii=False), file=sys.stderr)
        return
    about = f" (peer {error.peer})" if error.peer and error.peer not in error.message else ""
    print(f"error: {one_line(error.message)}{about}", file=sys.stderr)
    if error.hint:
        print(f"hint: {one_line(error.hint)}", file=sys.stderr)


def _on_bug(as_json: bool) -> _Hook:
    """What happens to an exception that nobody foresaw: one line, its traceback for debug."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if os.environ.get("MODELNET_LOG") == "debug":
            sys.__excepthook__(kind, error, trace)
        while isinstance(error, BaseExceptionGroup):  # nurseries wrap; the first cause tells the most
            error = error.exceptions[0]
        bug = LocalError(
            Code.INTERNAL,
            f"{type(error).__name__}: {error}",
            hint="this is a bug; MODELNET_LOG=debug prints its traceback",
        )
        print_error(bug, as_json=as_json)

    return hook
