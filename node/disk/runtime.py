"""What lasts only as long as a process: the home's lock, the control socket, and who else is here.

Peers of one user, machine and network name meet through a directory of small files, one per peer.
Each is locked by its peer for life, so that the kernel says which are stale, after kill -9 and
across containers too, where process numbers mean nothing. The directory is the user's own (mode
0700); what lies in it is still read as if a stranger had written it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import (
    TEMPORARY,
    make_private_directory,
    read_bounded,
    reason,
    write_durably,
)
from modelnet_p2p.node.disk.home import Home

MAX_SOCKET_PATH = 100  # bytes: the kernel's sun_path has 104 (macOS) or 108, its closing zero included
MAX_MEETING_BYTES = 8192  # 16 addresses of 256 bytes, the id, and JSON around them
MAX_MEETING_FILES = 256  # read per look: as many as connections, more would not be dialled
MAX_ADDRS = 16
MAX_ADDR_CHARS = 256
LOCK_TRIES = 5  # of a lock that somebody may only be looking at
LOCK_PAUSE = 0.01  # seconds between them

_JOINING: set[Path] = set()  # locks that this process holds for a peer which it is about to open


class Runtime:
    """One process's place in the runtime directory of this user.

    `home` names the lock and the control socket; a peer without a home has neither and may only meet
    others. The directories are made when first needed.
    """

    def __init__(
        self, network: str, home: Home | Path | str | None = None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        self.home = home if isinstance(home, Home) or home is None else Home(home)
        self.directory = runtime_directory(os.environ if environ is None else environ)
        self._meeting = self.directory / f"net-{_short_hash(network)}"
        self._announced: tuple[Path, int] | None = (
            None  # the file that tells of me, and its locked descriptor
        )

    @property
    def socket_path(self) -> Path:
        """Where the control socket of this home's peer is, at most 100 bytes long."""
        if self.home is None:
            raise LocalError(Code.NOT_RUNNING, "a peer without a home has no control socket")
        return self.directory / f"{_short_hash(str(self.home.path.resolve()))}.sock"

    @contextmanager
    def lock(self, *, joining: bool = False) -> Iterator[None]:
        """Hold this home alone, as long as the block lasts; raises LocalError (in-use) if another does.

        The kernel lets go of it with the process, however that ends. Who is `joining` has yet to load what a
        peer needs, and says already where its socket will be: commands wait for it. The peer's own `lock` is
        then part of this one.
        """
        if self.home is None or self.home.lock_path in _JOINING:
            yield
            return
        make_private_directory(self.home.path)
        path = self.home.lock_path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot open {path}: {reason(error)}") from error
        try:
            self._take(descriptor, path)
            if not joining:
                with suppress(OSError):  # a killed one's; a program's own peer opens no socket
                    self.home.control_path.unlink()
                yield
                return
            _JOINING.add(path)
            self.note_control()
            try:
                yield
            finally:
                self.forget_control()
        finally:
            _JOINING.discard(path)
            os.close(descriptor)

    def _take(self, descriptor: int, path: Path) -> None:
        try:
            _lock_soon(descriptor)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            who = f" (process {holder})" if holder.isdigit() else ""
            home = path.parent
            raise LocalError(
                Code.IN_USE,
                f"a peer is already running on {home}{who}",
                hint=f"modelnet-peer status --home {quote(str(home))}",
            ) from error
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot lock {path}: {reason(error)}") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot write {path}: {reason(error)}") from error

    def announce(self, peer_id: str, addrs: Sequence[str]) -> None:
        """Tell other peers of this user where I am; again with new addresses replaces the old ones."""
        make_private_directory(self._meeting)
        body = json.dumps({"peer": peer_id, "pid": os.getpid(), "addrs": list(addrs[:MAX_ADDRS])}).encode()
        # a name of its own each time: removing a stale file can then never hit a living one
        name = f"{_short_hash(peer_id)}-{os.urandom(6).hex()}.json"
        temporary, path = self._meeting / f".{name}{TEMPORARY}", self._meeting / name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = -1
        try:
            descriptor = os.open(temporary, flags, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it is seen: unlocked means dead
            os.write(descriptor, body)
            os.replace(temporary, path)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise LocalError(Code.BAD_STATE, f"cannot write {path}: {reason(error)}") from error
        self.withdraw()
        self._announced = path, descriptor

    def withdraw(self) -> None:
        """Take my file away; harmless when there is none."""
        if self._announced is None:
            return
        path, descriptor = self._announced
        self._announced = None
        path.unlink(missing_ok=True)
        os.close(descriptor)

    def others(self) -> list[str]:
        """Text multiaddrs of the other living peers of this user and network, newest first.

        Files of dead peers are removed; whatever is not a sound file of this user is ignored.
        """
        found: list[tuple[float, tuple[str, ...]]] = []
        for path in self._meeting_files():
            if self._announced is not None and path == self._announced[0]:
                continue
            try:
                if _is_stale(path):
                    path.unlink(missing_ok=True)
                    continue
                data, status = read_bounded(path, MAX_MEETING_BYTES)
            except OSError:
                continue  # gone meanwhile, or not a file that a peer made
            if status.st_uid == os.getuid():
                found.append((status.st_mtime, _addresses(data)))
        found.sort(key=lambda entry: entry[0], reverse=True)
        return [addr for _, addrs in found for addr in addrs]

    def _meeting_files(self) -> list[Path]:
        try:
            with os.scandir(self._meeting) as entries:
                names = [entry.name for entry in entries if entry.name.endswith(".json")]
        except OSError:
            return []  # nobody has been here yet
        return [
            self._meeting / name for name in sorted(names)[:MAX_MEETING_FILES] if not name.startswith(".")
        ]

    def note_control(self) -> None:
        """Write into the home where the socket is: another shell may have another XDG_RUNTIME_DIR."""
        if self.home is not None:
            write_durably(self.home.control_path, f"{self.socket_path}\n".encode())

    def forget_control(self) -> None:
        """The control socket is gone: say so."""
        if self.home is not None:
            self.home.control_path.unlink(missing_ok=True)
            self.socket_path.unlink(missing_ok=True)


def joining(home: Home) -> str:
    """The process id of the `join` that holds this home and has, or will have, a socket; else empty."""
    try:
        descriptor = os.open(home.lock_path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not home.control_path.exists():  # a program's own peer, which never opens a socket
            return ""
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def _lock_soon(descriptor: int) -> None:
    """Lock it alone; a command that looks whether it is locked holds it for a moment, too."""
    for _ in range(LOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def find_control(home: Home, *, environ: Mapping[str, str] | None = None) -> Path:
    """Where the control socket of the peer on `home` would be; whether it is there, connecting tells."""
    try:
        text = read_bounded(home.control_path, MAX_SOCKET_PATH + 1)[0].decode().rstrip("\n")
    except (OSError, ValueError):
        text = ""
    if text.startswith("/") and "\0" not in text:
        return Path(text)
    return Runtime("", home, environ=environ).socket_path


def runtime_directory(environ: Mapping[str, str]) -> Path:
    """`$XDG_RUNTIME_DIR/modelnet`, or `/tmp/modelnet-UID`; mine and mine alone, made if it is not there.

    Raises LocalError (bad-state) where somebody else sits in its place.
    """
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and len(os.fsencode(base)) <= MAX_SOCKET_PATH - 40 and _is_mine(Path(base)):
        directory = Path(base) / "modelnet"
    else:
        directory = Path("/tmp") / f"modelnet-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LocalError(Code.BAD_STATE, f"cannot make {directory}: {reason(error)}") from error
    if not _is_mine(directory):
        raise LocalError(
            Code.BAD_STATE,
            f"{directory} is not a directory of yours alone (mode 0700)",
            hint="set XDG_RUNTIME_DIR to such a directory with a short name",
        )
    return directory


def _is_mine(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    mode = status.st_mode
    return stat.S_ISDIR(mode) and status.st_uid == os.getuid() and not stat.S_IMODE(mode) & 0o077


def _is_stale(path: Path) -> bool:
    """Whether nobody holds the lock on a file that a peer locks before it is seen."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _addresses(data: bytes) -> tuple[str, ...]:
    """The addresses in a meeting file, none if it is not one."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    addrs = body.get("addrs") if isinstance(body, dict) else None
    if not isinstance(addrs, list):
        return ()
    sound = [a for a in addrs if isinstance(a, str) and len(a) <= MAX_ADDR_CHARS and a.startswith("/")]
    return tuple(sound[:MAX_ADDRS])


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
