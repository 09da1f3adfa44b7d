"""Commands that look: status, peers, id, ping, show."""

from __future__ import annotations

from typing import Any

import click

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.describing import prices
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.cli.output import duration

WATCH_SECONDS = 2.0  # between two looks of `status --watch`: quick enough to see, nothing for the peer


@click.command(
    "status",
    epilog=examples(
        "modelnet-peer status",
        "modelnet-peer status --watch               # a live screen, until Ctrl-C",
        "modelnet-peer status --watch --json >> status.ndjson",
    ),
)
@common_flags
@click.option("--watch", "watched", is_flag=True, help="Go on showing it, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    metavar="S",
    help="With --watch: seconds between two looks (default: 2).",
)
def status_command(session: Session, watched: bool, interval: float | None) -> int:
    """Show how the running peer is: connections, records, models, what it refused."""
    if watched:
        from modelnet_p2p.node.cli.watching import watch

        return watch(session, interval or WATCH_SECONDS)
    if interval is not None:
        raise LocalError(
            Code.BAD_INPUT, "--interval goes with --watch", hint="modelnet-peer status --watch --interval 5"
        )
    _status(session)
    return 0


def _status(session: Session) -> None:
    from modelnet_p2p.node.checkup.health import concerns
    from modelnet_p2p.node.control.client import home_flag

    status = session.ask_running("status", {}, timeout=session.settings.timeout)
    output = session.output
    found = concerns(status, flag=home_flag(session.settings.home))
    if output.as_json:
        output.line({**status, "warnings": [concern.to_map() for concern in found]})
        return
    models = status.get("models", [])
    refused = {name: count for name, count in status.get("refused", {}).items() if count}
    output.fields(
        [
            ("peer", status.get("peer")),
            *(("address", addr) for addr in status.get("addrs", [])),
            ("network", status.get("network")),
            ("version", status.get("version")),
            ("up", duration(status.get("uptime_s", 0))),
            ("control", status.get("control")),
            *(("gateway", f"{url}/v1") for url in [status.get("gateway")] if url),
            ("connections", status.get("connections")),
            ("routing table", status.get("table")),
            *(("network size", f"about {size} peers") for size in [status.get("network_size")] if size),
            ("records held", status.get("records")),
            ("memory", f"{status.get('rss_bytes', 0) / 2**20:.0f} MiB"),
            ("refused", ", ".join(f"{count} {name}" for name, count in refused.items()) or "nothing"),
            *(
                ("warning" if concern.grave else "note", f"{concern.message} ({concern.hint})")
                for concern in found
            ),
        ]
    )
    columns = ("model", "state", "in_flight", "queued", "calls", "faults", "seq")
    if models:
        output.text("")
        output.table(columns, [[model.get(name) for name in columns] for model in models])


@click.command(
    "peers",
    epilog=examples(
        "modelnet-peer peers",
        "modelnet-peer peers --json",
    ),
)
@common_flags
def peers_command(session: Session) -> None:
    """List the peers that the running peer knows."""
    lines: list[dict[str, Any]] = []
    output = session.output
    sink = output.line if output.as_json else lines.append
    session.ask_running("peers", {}, on_item=sink, timeout=session.settings.timeout)
    if output.as_json:
        return
    if not lines:
        output.notice("no other peer is known yet")
        return
    rows = [
        (
            line.get("peer"),
            line.get("state"),
            "yes" if line.get("connected") else "no",
            _ms(line.get("rtt_ms")),
            (line.get("addrs") or [None])[0],
        )
        for line in lines
    ]
    output.table(("peer", "state", "connected", "rtt ms", "address"), rows)


@click.command(
    "id",
    epilog=examples(
        "modelnet-peer id",
        "modelnet-peer id --home /tmp/second",
    ),
)
@common_flags
def id_command(session: Session) -> None:
    """Print this home's peer id, making its key on first use; with the addresses if it is running."""
    key = session.settings.home.load_or_make_key()
    try:
        addrs = session.ask_running("id", {}, timeout=session.settings.timeout, needed=False)["addrs"]
    except LocalError as error:
        if error.code is not Code.NOT_RUNNING:
            raise
        addrs = []
    if session.output.as_json:
        session.output.line({"peer": str(key.id), "addrs": addrs})
        return
    session.output.text(str(key.id))
    for addr in addrs:
        session.output.text(addr)


@click.command(
    "ping",
    epilog=examples(
        "modelnet-peer ping 12D3KooW…",
        "modelnet-peer ping /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW… -c 10",
    ),
)
@common_flags
@click.argument("target", metavar="PEER|MULTIADDR")
@click.option(
    "-c", "--count", type=click.IntRange(1, 1000), default=3, metavar="N", help="Pings (default: 3)."
)
def ping_command(session: Session, target: str, count: int) -> None:
    """Measure the round trip to a peer."""
    output = session.output
    asked = {"target": target, "count": count, "timeout": session.settings.timeout}
    with output.progress(f"pinging {target}"):
        try:
            answer = session.ask("ping", asked)
        except RemoteError as error:
            if output.as_json and error.peer is not None:  # whose silence is the result
                output.line({"peer": error.peer, "ok": False, "rtt_ms": []})
            raise
    if output.as_json:
        output.line(answer)
    elif answer.get("rtt_ms"):
        times = [float(ms) for ms in answer["rtt_ms"]]
        output.text(f"{answer['peer']}  {len(times)} of {count}  {', '.join(f'{ms:.2f}' for ms in times)} ms")
    if not answer.get("rtt_ms"):
        raise RemoteError(
            Code.UNREACHABLE, f"{target} did not answer", hint="modelnet-peer peers", peer=answer.get("peer")
        )


@click.command(
    "show",
    epilog=examples(
        "modelnet-peer show modelnet/digits",
        "modelnet-peer show modelnet/digits --json",
    ),
)
@common_flags
@click.argument("model", shell_complete=words.known_models)
def show_command(session: Session, model: str) -> None:
    """Print a model's signed records, and whether their seals were checked."""
    output = session.output
    seen: list[dict[str, Any]] = []

    def show(line: dict[str, Any]) -> None:
        output.quiet()
        seen.append(line)
        if output.as_json:
            output.line(line)
            return
        if len(seen) > 1:
            output.text("")
        seals = "verified" if line.get("verified") else "NOT VERIFIED"
        pairs = [("model", line.get("model")), ("provider", line.get("provider")), ("seals", seals)]
        record = line.get("record") or {}
        if price := record.get("price"):
            record["price"] = prices({name: number / 1e6 for name, number in price.items()})
        output.fields(
            pairs + [(name, value) for name, value in record.items() if value not in (None, "", [], {})]
        )

    with output.progress(f"looking for {model}"):
        session.ask("show", {"model": model, "timeout": session.settings.timeout}, on_item=show)
    if not seen:
        raise NotFound(f"nobody offers {model}", hint="modelnet-peer find --help")


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
