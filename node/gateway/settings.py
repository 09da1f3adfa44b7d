"""Where the gateway listens, who may ask it, and the key that opens it: checked before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import read_bounded, reason

if TYPE_CHECKING:
    from modelnet_p2p.node.config import Settings

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8765  # as in config.USUAL_GATEWAY
KEY_VARIABLE = "MODELNET_GATEWAY_KEY"
MIN_KEY_CHARS = 16  # of a key that stands between the network and this peer's models
MAX_KEY_BYTES = 4096
MAX_ORIGINS = 32
CALL_SECONDS = 600.0  # that a call may take: as long as OpenAI's own client waits


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """A gateway that may be opened. `port` 0 is any free one; `origins` are web pages that may ask it."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    timeout: float = CALL_SECONDS

    def __post_init__(self) -> None:
        """Raises LocalError: bad-input, and unsafe where other machines could ask without a key."""
        if self.key is not None and (len(self.key) < MIN_KEY_CHARS or not self.key.isascii()):
            raise LocalError(
                Code.BAD_INPUT,
                f"the gateway's key has fewer than {MIN_KEY_CHARS} characters, or some that are not ASCII",
                hint=_MAKE_KEY,
            )
        if not self.loopback and self.key is None:
            raise LocalError(
                Code.UNSAFE,
                f"a gateway on {self.host} is open to other machines, and would have no key",
                hint=f"{_MAKE_KEY}; or let it listen on {DEFAULT_HOST}",
            )
        if len(self.origins) > MAX_ORIGINS:
            raise LocalError(Code.BAD_INPUT, f"more than {MAX_ORIGINS} origins")
        for origin in self.origins:
            check_origin(origin)

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(self.host).is_loopback

    @property
    def authority(self) -> str:
        """`HOST:PORT`, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_MAKE_KEY = f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"


def parse_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `HOST`, `:PORT` or `PORT`; HOST is an IP or `localhost`. LocalError (bad-input)."""
    host, port = _split(text.strip().removeprefix("http://").rstrip("/"))
    host = {"": DEFAULT_HOST, "localhost": DEFAULT_HOST}.get(host, host)
    try:
        number = int(port) if port else DEFAULT_PORT
        if port and not (port.isascii() and port.isdecimal() and number < 1 << 16):
            raise ValueError
        return str(ip_address(host)), number
    except ValueError:
        raise LocalError(
            Code.BAD_INPUT,
            f"{text[:80]!r} is not where a gateway can listen: HOST:PORT, with HOST an IP address",
            hint=f"--gateway {DEFAULT_HOST}:{DEFAULT_PORT}",
        ) from None


def _split(text: str) -> tuple[str, str]:
    if text.isdecimal():
        return "", text
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    if text.count(":") > 1:  # an IPv6 address alone
        return text, ""
    host, _, port = text.partition(":")
    return host, port


def check_origin(origin: str) -> str:
    """`origin` if it is one as browsers send it, `http://HOST[:PORT]`; raises LocalError (bad-input)."""
    parts = urlsplit(origin)
    plain = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.netloc or origin != plain:
        raise LocalError(
            Code.BAD_INPUT,
            f"{origin[:80]!r} is not an origin, such as https://chat.example.org",
            hint="scheme, host and port as the browser's address bar has them, and nothing behind; never *",
        )
    return origin


def from_settings(settings: Settings, environ: Mapping[str, str]) -> GatewaySettings | None:
    """The gateway that flags, environment and config.toml ask for, None: none. Raises LocalError."""
    if settings.gateway is None:
        return None
    host, port = parse_listen(settings.gateway)
    key = find_key(environ, settings.gateway_key_file)
    return GatewaySettings(host, port, key, settings.gateway_origins)


def find_key(environ: Mapping[str, str], path: Path | None) -> str | None:
    """The gateway's key: of the environment, or of that file, which only its owner may read (0600).

    Raises LocalError (bad-state) that names the file.
    """
    if key := environ.get(KEY_VARIABLE):
        return key
    if path is None:
        return None
    try:
        data, status = read_bounded(path, MAX_KEY_BYTES, follow=True)
        key = data.decode("ascii").strip()
    except OSError as error:
        raise _bad_key(path, reason(error)) from error
    except ValueError as error:
        raise _bad_key(path, "it is not ASCII text") from error
    if status.st_mode & 0o077:
        raise _bad_key(path, "other users may read it", f"chmod 600 {quote(str(path))}")
    return key


def _bad_key(path: Path, why: str, hint: str = "") -> LocalError:
    hint = hint or f"(umask 077; openssl rand -hex 32 > {quote(str(path))})"
    return LocalError(Code.BAD_STATE, f"cannot use the gateway's key {path}: {why}", hint=hint)
