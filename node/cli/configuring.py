"""The command `config`: which settings are in force, where each came from, and where to change them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples, help_alone
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.config import locate_home
from modelnet_p2p.node.disk.home import Home

Command = Callable[..., Any]  # Any: what click makes of a command's flags, and what it returns


def despite_bad_config(
    fallback: Callable[[Home, Output, LocalError], object],
) -> Callable[[Command], Command]:
    """For a command that is asked because a config.toml is broken: `fallback` answers without its settings.

    A file that says where the home is must be sound: without it there is no home to speak of.
    """

    def around(command: Command) -> Command:
        @wraps(command)
        def despite(**flags: Any) -> Any:
            try:
                return command(**flags)
            except LocalError as error:
                home = locate_home(flags["home"], os.environ)
                if error.code is not Code.BAD_STATE or str(home.config_path) not in error.message:
                    raise
                return fallback(home, Output(as_json=flags["as_json"]), error)

        return despite

    return around


@click.group(
    "config",
    invoke_without_command=True,
    epilog=examples(
        "modelnet-peer config show --origin",
        'echo \'bootstrap = ["/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…"]\' >> "$(modelnet-peer config path)"',
    ),
)
@click.pass_context
def config_command(ctx: click.Context) -> None:
    """Show the settings in force: a flag wins over the environment, that over config.toml."""
    help_alone(ctx)


@config_command.command(
    "show", epilog=examples("modelnet-peer config show", "modelnet-peer config show --origin --json")
)
@common_flags
@click.option("--origin", is_flag=True, help="Say where each came from.")
def show_command(session: Session, origin: bool) -> None:
    """Print the settings that a command typed here would have."""
    settings, output = session.settings, session.output
    values: dict[str, object] = {
        "home": str(settings.home.path),
        "network": settings.network,
        "tuning": settings.tuning,
        "bootstrap": list(settings.bootstrap),
        "listen": None if settings.listen is None else list(settings.listen),
        "lan": settings.lan,
        "timeout": settings.timeout,
        "gateway": settings.gateway,
        "gateway_key_file": str(settings.gateway_key_file) if settings.gateway_key_file else None,
        "gateway_origins": list(settings.gateway_origins),
    }
    origins = settings.origins
    if settings.listen is None and not output.as_json:
        values["listen"] = "every interface, any port" if settings.lan else "loopback, any port"
    if output.as_json:
        output.line({**values, "origin": dict(origins)} if origin else values)
        return
    if origin:
        output.table(("setting", "value", "from"), [(n, _words(v), origins[n]) for n, v in values.items()])
    else:
        output.fields([(name, _words(value)) for name, value in values.items()])


def _print_path(home: Home, output: Output, broken: LocalError | None = None) -> None:
    path = home.config_path
    exists = path.exists()
    output.answer({"path": str(path), "exists": exists}, str(path))
    if broken is not None:
        output.notice(f"warning: {broken.message}")
    elif not exists:
        output.notice("there is none yet: every setting is a default, or from a flag or the environment")


@config_command.command("path", epilog=examples('"$EDITOR" "$(modelnet-peer config path)"'))
@despite_bad_config(_print_path)
@common_flags
def path_command(session: Session) -> None:
    """Print where this home's config.toml is, or would be."""
    _print_path(session.settings.home, session.output)


def _words(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case list():
            return " ".join(map(str, value)) or "none"
    return f"{value:g} s" if isinstance(value, float) else str(value)
