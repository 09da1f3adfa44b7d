"""`status --watch`: the running peer, looked at again and again, until Ctrl-C.

On a terminal one screen that is drawn anew, on the alternate screen, so that what was there is there again
afterwards; into a pipe a line for each look. A peer that stops meanwhile is waited for.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.checkup.health import Concern, concerns
from modelnet_p2p.node.cli.common import Session
from modelnet_p2p.node.cli.output import duration, no_color
from modelnet_p2p.node.control.client import ControlClient, home_flag

Map = Mapping[str, Any]  # Any: what a peer tells of itself

INTERRUPTED = 130
SILENCE_SECONDS = 3.0  # a peer that says nothing for so long is shown as silent, and asked again
MEMORY_SECONDS = 60.0  # what is compared with: "rising" means within a minute
TURN_SECONDS = 0.1  # between two looks at the terminal's size, and at whether it was taken away (Ctrl-Z)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found; without an answer the `status` of the last one, and the `trouble`."""

    status: Map
    peers: tuple[Map, ...] = ()
    concerns: tuple[Concern, ...] = ()
    trouble: str = ""
    news: str = ""  # that the peer has stopped, or is back: said once


class Watch:
    """One peer, look after look; a machine that is told what answered and when."""

    def __init__(self, flag: str = "") -> None:
        self._flag = flag
        self._last: Look | None = None
        self._earlier: deque[tuple[float, Map]] = deque()  # of the last minute, of the same run

    def on_answer(self, status: Map, peers: tuple[Map, ...], now: float) -> Look:
        """The peer answered at `now` (monotonic seconds)."""
        news, last = "", self._last
        if last is not None:
            known = last.status
            again = (status.get("uptime_s") or 0) < (known.get("uptime_s") or 0)
            if again or status.get("peer") != known.get("peer"):
                self._earlier.clear()
                news = "the peer has been restarted"
            elif last.trouble:
                news = "the peer answers again"
        while self._earlier and now - self._earlier[0][0] > MEMORY_SECONDS:
            self._earlier.popleft()
        earlier = self._earlier[0][1] if self._earlier else None
        self._earlier.append((now, status))
        found = tuple(concerns(status, earlier, self._flag))
        self._last = Look(status, peers, found, news=news)
        return self._last

    def on_silence(self, error: ModelnetError) -> Look:
        """It did not answer; raises `error` if it never has."""
        if self._last is None:
            raise error
        if error.code is Code.NOT_RUNNING:
            trouble = f"the peer has stopped; waiting for it: modelnet-peer join{self._flag}"
        else:
            trouble = f"the peer does not answer: {error.message}"
        news = "" if self._last.trouble == trouble else trouble
        self._last = replace(self._last, concerns=(), trouble=trouble, news=news)
        return self._last


def watch(session: Session, interval: float) -> int:
    """Show the peer on this home every `interval` seconds until Ctrl-C; raises LocalError (not-running) if
    none runs now. The exit status."""
    output = session.output
    on_terminal = output.to_terminal and not output.as_json
    try:
        if on_terminal:
            _watch_on_screen(session, interval)
        else:
            for look in _looks(session, interval, time.sleep):
                _print(session, look)
    except KeyboardInterrupt:  # the way to end it, and no error to tell
        return INTERRUPTED
    return 0


def _looks(session: Session, interval: float, wait: Callable[[float], object]) -> Iterator[Look]:
    """A look every `interval` seconds; one that is late makes up for nothing.

    The first waits for a peer that is starting; after it one that is not there is something to show.
    """
    home = session.settings.home
    machine = Watch(home_flag(home))
    reach = partial(session.reach, silence=SILENCE_SECONDS)
    while True:
        began = time.monotonic()
        try:
            status = _ask(session, reach, "status")
            reach = partial(ControlClient.connect, home, silence=SILENCE_SECONDS)
            peers: list[Map] = []
            _ask(session, reach, "peers", peers.append)
            look = machine.on_answer(status, tuple(peers), time.monotonic())
        except LocalError as error:
            look = machine.on_silence(error)
        yield look
        wait(max(0.0, began + interval - time.monotonic()))


def _ask(
    session: Session,
    reach: Callable[[], ControlClient],
    method: str,
    on_item: Callable[[Any], None] = lambda item: None,
) -> Map:
    settings = session.settings
    network = settings.network if settings.network_asked else None
    with reach() as client:
        answer: Map = client.call(method, {}, timeout=settings.timeout, on_item=on_item, network=network)
    return answer


# --- into a pipe ---


def _print(session: Session, look: Look) -> None:
    if look.news:
        session.output.notice(look.news)
    if look.trouble:
        return
    if session.output.as_json:
        told = [concern.to_map() for concern in look.concerns]
        session.output.line({**look.status, "at_unix": round(time.time(), 3), "warnings": told})
    else:
        session.output.text(_line(look))


def _line(look: Look) -> str:
    status = look.status
    refused = sum((status.get("refused") or {}).values())
    faults = sum(model.get("faults") or 0 for model in status.get("models") or ())
    parts = [
        time.strftime("%H:%M:%S"),
        f"up {duration(status.get('uptime_s') or 0)}",
        f"connections {status.get('connections', 0)}",
        f"records {status.get('records', 0)}",
        f"models {len(status.get('models') or ())}",
        f"calls/s {status.get('calls_per_s', 0)}",
        f"p50 {_ms(status.get('p50_ms'))}",
        f"p99 {_ms(status.get('p99_ms'))}",
        f"faults {faults}",
        f"refused {refused}",
        *(f"warning: {concern.message}" for concern in look.concerns if concern.grave),
    ]
    return "  ".join(parts)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


# --- on a terminal ---


def _watch_on_screen(session: Session, interval: float) -> None:
    screen = _Screen(interval)
    looks = _looks(session, interval, screen.wait)
    first = next(looks)  # before the screen changes: "no peer is running" belongs on the one that stays
    with screen.open():
        screen.show(first)
        for look in looks:
            screen.show(look)


class _Screen:
    """The alternate screen of this terminal, as long as `open` lasts."""

    def __init__(self, interval: float) -> None:
        # not at the top: a pipe needs none of it
        from rich.console import Console
        from rich.live import Live

        self._console = Console(no_color=no_color())
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._footer = f"every {interval:g} s    Ctrl-C leaves"
        self._look = Look({})
        self._clock = ""
        self._stopped = False  # Ctrl-Z was pressed

    @contextmanager
    def open(self) -> Iterator[None]:
        """SIGTERM ends the block like Ctrl-C does, so that the terminal is given back."""
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler),
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._on_stop),
        }
        try:
            with self._live:
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def show(self, look: Look) -> None:
        self._look, self._clock = look, time.strftime("%H:%M:%S")
        self._draw()

    def wait(self, seconds: float) -> None:
        """Sleep, but follow the terminal: its size may change, and Ctrl-Z takes it away for a while."""
        until, size = time.monotonic() + seconds, self._console.size
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TURN_SECONDS))
            if self._stopped:
                self._stopped = False
                self._live.stop()
                _stop_here()
                self._live.start()
                self._draw()
            elif size != self._console.size:
                size = self._console.size
                self._draw()

    def _draw(self) -> None:
        from rich.text import Text

        from modelnet_p2p.node.cli.screen import View, screen

        look, size = self._look, self._console.size
        view = View(look.status, look.peers, look.concerns, self._clock, look.trouble, self._footer)
        lines = screen(view, size.width, size.height)
        drawn = Text(no_wrap=True, overflow="crop", end="")
        for number, (words, style) in enumerate(lines, 1):
            drawn.append(words if number == len(lines) else f"{words}\n", style)
        self._live.update(drawn, refresh=True)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True


def _stop_here() -> None:
    """Stop this process as Ctrl-Z does; returns when it goes on."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
