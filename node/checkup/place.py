"""This home and this user's corner of the machine: config, disk, key, state, runtime directory, port."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.assembly import EVERYWHERE, LOOPBACK
from modelnet_p2p.node.checkup.finding import Tell, failed, failed_with, note, ok
from modelnet_p2p.node.checkup.machine import misspelt_variables
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import MAX_SOCKET_PATH, Runtime
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.joining import check_bootstraps
from modelnet_p2p.node.logs.level import LEVELS
from modelnet_p2p.node.transport.listening import listen_on
from modelnet_p2p.tuning import preset

MIN_FREE_BYTES = (
    16 << 20
)  # state, log and key take under 8 MiB; less than twice that and the next write fails
LOW_FREE_BYTES = 256 << 20  # the digits model, a small corpus, a log of 4 MiB: not much more fits
PROBE_BYTES = 4096  # a block, so that a full disk or a quota shows
VARIABLES = ("HOME", "BOOTSTRAP", "LISTEN", "NETWORK", "TUNING", "LOG", "VENV", "REQUIRE_JS")


def check_config(settings: Settings, environ: Mapping[str, str], tell: Tell) -> None:
    """Values that only a start would refuse, and variables that nobody reads."""
    wrong = False
    origins = settings.origins
    try:
        preset(settings.tuning)
    except LocalError as error:
        wrong = True
        tell(failed_with("config", error, why=f"from {origins.get('tuning', 'a flag')}"))
    for addr in settings.bootstrap:
        try:
            check_bootstraps([addr])
        except LocalError as error:
            wrong = True
            tell(failed_with("config", error, why=f"from {origins.get('bootstrap', 'a flag')}"))
    for name, meant in misspelt_variables(VARIABLES, environ):
        wrong = True
        tell(note("config", f"nobody reads {name}", why="it looks misspelt", hint=f"export {meant}=…"))
    if (level := environ.get("MODELNET_LOG", "")) and level not in LEVELS:
        wrong = True
        hint = f"export MODELNET_LOG=info; it takes {', '.join(LEVELS)}"
        tell(note("config", f"MODELNET_LOG is {level[:40]!r}", why="so only errors are logged", hint=hint))
    if not wrong:
        path = settings.home.config_path
        where = f"{path}" if path.exists() else f"no {path.name}: defaults"
        tell(ok("config", f"network {settings.network!r}; {where}"))


def check_home(home: Home, tell: Tell) -> None:
    """The home can be written, has room, and is its owner's alone."""
    path = home.path
    try:
        exists = path.exists()
    except OSError as error:
        tell(failed("home", f"cannot look at {path}: {reason(error)}", hint="choose another: --home DIR"))
        return
    if exists and not path.is_dir():
        tell(failed("home", f"{path} is not a directory", hint="choose another: --home DIR"))
        return
    place = path if exists else next(parent for parent in path.parents if parent.exists())
    try:
        _probe(place) if exists else _may_write(place)
        free = shutil.disk_usage(place).free
    except OSError as error:
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"make room: df -h {quote(str(place))}" if no_room else f"ls -ld {quote(str(place))}"
        tell(failed("home", f"cannot write into {place}: {reason(error)}", hint=f"{hint}; or --home DIR"))
        return
    room = f"{free / 2**20:,.0f} MiB free"
    if free < MIN_FREE_BYTES:
        tell(
            failed(
                "home", f"{place}: {room}", why="the next write may fail", hint=f"df -h {quote(str(place))}"
            )
        )
    elif exists and path.stat().st_mode & 0o022:
        why = "who may write there may replace the key"
        tell(
            failed(
                "home", f"other users may write into {path}", why=why, hint=f"chmod 700 {quote(str(path))}"
            )
        )
    elif free < LOW_FREE_BYTES:
        tell(note("home", f"{path}: only {room}", hint=f"df -h {quote(str(place))}"))
    else:
        tell(ok("home", f"{path}: writable, {room}" if exists else f"{path}: will be made, {room}"))


def _probe(place: Path) -> None:
    """Write a block there, as the next change of state will."""
    path = place / f".doctor.{os.getpid()}.tmp"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(PROBE_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _may_write(place: Path) -> None:
    """For a directory that is not this peer's: asked, nothing is written."""
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_key(home: Home, tell: Tell) -> None:
    """The key can be read and is nobody else's to read; a missing one is made by the first start."""
    try:
        key = home.load_key()
    except LocalError as error:
        tell(failed_with("identity", error))
        return
    if key is None:
        tell(
            note(
                "identity",
                "no key yet",
                why=f"there is no {home.key_path}",
                hint="modelnet-peer join makes one",
            )
        )
    else:
        tell(ok("identity", str(key.id), f"{home.key_path}, mode 0600"))


def check_state(home: Home, tell: Tell) -> None:
    """What this peer has promised can be read; a running peer has read its own already."""
    if not home.state_path.exists():
        return
    try:
        with Runtime("", home).lock():
            state = State.open(home)
    except LocalError as error:
        if error.code is Code.IN_USE:
            why = "it holds the lock, but has no control socket: it is starting, or ending"
            hint = "modelnet-peer doctor again in a few seconds; if it stays: kill -9 that process"
            tell(failed("state", error.message, why=why, hint=hint, code=error.code))
        else:  # the file's name is in the message; what lies beside it stays sound
            tell(failed_with("state", error, hint="move that file away: the rest is kept"))
        return
    tell(ok("state", f"{len(state.published)} published before"))


def check_runtime(settings: Settings, environ: Mapping[str, str], tell: Tell) -> None:
    """The directory of control sockets, by which commands reach a peer and peers of this user meet."""
    try:
        runtime = Runtime(settings.network, settings.home, environ=environ)
    except ModelnetError as error:
        tell(failed_with("runtime", error, hint="export XDG_RUNTIME_DIR=$(mktemp -d)"))
        return
    size = len(os.fsencode(runtime.socket_path))
    if size > MAX_SOCKET_PATH:
        text = f"{runtime.directory} has too long a name for a socket"
        tell(failed("runtime", text, hint="set XDG_RUNTIME_DIR to a directory with a short name"))
    elif (base := environ.get("XDG_RUNTIME_DIR")) and Path(base) != runtime.directory.parent:
        why = "its name is too long, or it is not yours alone (mode 0700)"
        text = f"XDG_RUNTIME_DIR is not used, but {runtime.directory}"
        tell(note("runtime", text, why=why, hint=f"chmod 700 {quote(base)}, or set a shorter one"))
    else:
        tell(ok("runtime", str(runtime.directory)))


async def check_port(settings: Settings, tell: Tell) -> None:
    """Whether a peer that is started now could listen where the settings say."""
    addrs = settings.listen or (EVERYWHERE if settings.lan else LOOPBACK,)
    for addr in addrs:
        try:
            listeners = await listen_on([addr])
        except LocalError as error:
            port = addr.rpartition("/tcp/")[2].partition("/")[0]
            who = f"ss -ltnp 'sport = :{port}' shows who has it; or --listen /ip4/127.0.0.1/tcp/0"
            hint = who if error.code is Code.IN_USE else "modelnet-peer join --listen /ip4/127.0.0.1/tcp/0"
            origin = settings.origins.get("listen", "default")
            tell(failed("port", error.message, why=f"from {origin}", hint=hint, code=error.code))
            continue
        for listener in listeners:
            await listener.aclose()
        tell(ok("port", f"can listen on {addr}"))
    await trio.lowlevel.checkpoint()
