"""The command that makes the network's models an agent's tools: mcp."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import click

from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.config import DEFAULT_ORIGIN

DEFAULT_SECONDS = 60.0  # of a call: `tools.DEFAULT_SECONDS`, whose import would cost the SDK's


@click.command(
    "mcp",
    epilog=examples(
        "modelnet-peer mcp --config              # the lines for Claude, Cursor, VS Code, …",
        "modelnet-peer mcp                       # what an agent starts",
        "modelnet-peer mcp --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…",
    ),
)
@common_flags
@click.option("--config", is_flag=True, help="Print what to write into an agent's configuration.")
def mcp_command(session: Session, config: bool) -> None:
    """Give an agent the network's models as tools, by the Model Context Protocol on stdin and stdout."""
    settings, output = session.settings, session.output
    if config:
        indent = None if output.as_json else 2
        click.echo(json.dumps(_configuration(session), ensure_ascii=False, indent=indent))
        return
    from modelnet_p2p.node.mcp.sdk import check_sdk

    check_sdk()
    if sys.stdin.isatty():
        output.notice("an agent is meant to start this, and speaks on stdin and stdout; Ctrl-C ends it")
        output.notice("what to write into its configuration: modelnet-peer mcp --config")
    from modelnet_p2p.node.logs.level import set_up_logging
    from modelnet_p2p.node.mcp.stdio import serve_stdio

    set_up_logging()
    serve_stdio(settings, settings.timeout if settings.timeout_asked else DEFAULT_SECONDS, output.notice)


def _configuration(session: Session) -> dict[str, object]:
    """`mcpServers` as most agents take it.

    With absolute paths, and what says where peers are: agents start their tools without this shell's
    environment.
    """
    settings = session.settings
    program = shutil.which(sys.argv[0]) or shutil.which("modelnet-peer")
    command = str(Path(program).absolute()) if program else "modelnet-peer"
    arguments = ["mcp"]
    if settings.origins["home"] != DEFAULT_ORIGIN or "XDG_DATA_HOME" in os.environ:
        arguments += ["--home", str(settings.home.path.absolute())]
    if settings.network_asked:
        arguments += ["--network", settings.network]
    if settings.origins["bootstrap"] in ("--bootstrap", "MODELNET_BOOTSTRAP"):
        arguments += [word for addr in settings.bootstrap for word in ("--bootstrap", addr)]
    if settings.timeout_asked:
        arguments += ["--timeout", f"{settings.timeout:g}"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    environment = {"env": {"XDG_RUNTIME_DIR": runtime}} if runtime else {}
    return {"mcpServers": {"modelnet": {"command": command, "args": arguments, **environment}}}
