"""What all commands share: the flags of the contract, and how a command reaches a peer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.cli.words import folders
from modelnet_p2p.node.config import Settings, load_settings

if TYPE_CHECKING:
    from modelnet_p2p.node.control.client import ControlClient

Function = TypeVar("Function", bound=Callable[..., Any])
Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array
DAEMON_SPARE = 5.0  # seconds beyond --timeout that a command waits for a running peer's own verdict


class Session:
    """One command's settings and output, and the peer that it asks."""

    def __init__(self, settings: Settings, output: Output, *, bootstrap_flag: bool = False) -> None:
        self.settings = settings
        self.output = output
        self._bootstrap_flag = bootstrap_flag

    def ask_running(
        self,
        method: str,
        params: Mapping[str, Value],
        value: Value = None,
        *,
        on_item: Callable[[Value], None] = lambda item: None,
        timeout: float | None = None,
        needed: bool = True,
    ) -> Value:
        """Ask the peer on this home; raises LocalError (not-running) when there is none.

        One that is starting is waited for; where it is not `needed`, none that may only be about to.
        """
        with self.reach(needed=needed) as client:
            return self._call(client, method, params, value, on_item, timeout)

    def reach(self, *, needed: bool = True, silence: float | None = None) -> ControlClient:
        """The peer on this home, for one call; one that is starting is waited for, --timeout at most."""
        from modelnet_p2p.node.control.client import START_GRACE, ControlClient

        return ControlClient.awaited(
            self.settings.home,
            on_wait=self.output.notice,
            grace=START_GRACE if needed else 0.0,
            timeout=self.settings.timeout,
            silence=silence,
        )

    def ask(
        self,
        method: str,
        params: Mapping[str, Value],
        value: Value = None,
        *,
        on_item: Callable[[Value], None] = lambda item: None,
        endless: bool = False,
    ) -> Value:
        """Ask the peer on this home, or a temporary one that lasts as long as the question.

        One that is `endless` is answered by items until somebody interrupts it.
        """
        from modelnet_p2p.node.control.client import StillStarting

        try:
            client = self.reach(needed=False)
        except LocalError as error:
            if error.code is not Code.NOT_RUNNING or isinstance(error, StillStarting):
                raise
            return self._ask_temporary(method, params, value, on_item)
        timeout = None if endless else self.settings.timeout + DAEMON_SPARE
        with client:
            return self._call(client, method, params, value, on_item, timeout)

    def _call(
        self,
        client: ControlClient,
        method: str,
        params: Mapping[str, Value],
        value: Value,
        on_item: Callable[[Value], None],
        timeout: float | None,
    ) -> Value:
        settings, output = self.settings, self.output
        if self._bootstrap_flag:
            output.notice(f"a peer is running on {settings.home.path}: --bootstrap is not used")
        return client.call(
            method,
            params,
            value,
            timeout=timeout,
            on_item=on_item,
            on_notice=output.step,
            network=settings.network if settings.network_asked else None,
            meter=lambda total: output.transfer("sending the input", total),
        )

    def _ask_temporary(
        self,
        method: str,
        params: Mapping[str, Value],
        value: Value,
        on_item: Callable[[Value], None],
    ) -> Value:
        from modelnet_p2p.node.cli.temporary import ask_temporary

        home = self.settings.home.path
        self.output.notice(f"no peer is running on {home}: asking as a temporary client")
        return ask_temporary(self.settings, method, params, value, on_item, self.output.step)


def common_flags(function: Function) -> Function:
    """The flags that every command has; the command gets a `Session` as its first argument."""

    @click.option(
        "--home", metavar="DIR", shell_complete=folders, help="Where the peer keeps its key and state."
    )
    @click.option("--network", metavar="NAME", help="The network's name (default: public).")
    @click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A peer to begin at; repeatable.")
    @click.option("--timeout", type=float, metavar="S", help="Seconds to wait (default: 30).")
    @click.option("--json", "as_json", is_flag=True, help="Print results as one JSON object a line.")
    @wraps(function)
    def command(
        home: str | None,
        network: str | None,
        bootstrap: tuple[str, ...],
        timeout: float | None,
        as_json: bool,
        **others: Any,  # Any: the command's own flags, as click parsed them
    ) -> Any:
        settings = load_settings(
            home=home,
            network=network,
            bootstrap=bootstrap,
            timeout=timeout,
            listen=others.pop("listen", ()),
            lan=others.pop("lan", False),
            gateway=others.pop("gateway", None),
        )
        session = Session(settings, Output(as_json=as_json), bootstrap_flag=bool(bootstrap))
        try:
            return function(session, **others)
        except ModelnetError as error:
            from modelnet_p2p.node.cli.nearest import add_hint

            add_hint(error, session, click.get_current_context().info_name or "", others)
            raise

    return command  # type: ignore[return-value]  # click's parameters take the place of the Session
