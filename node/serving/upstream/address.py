"""Where an OpenAI-compatible server is, as its publisher writes it, and what its models are called here.

`http://127.0.0.1:11434/v1` means all models of that server, `http://127.0.0.1:11434/v1#llama3.2:1b` one of
them. A URL without a path means `/v1`, which all of these servers have. Pure text: nothing is asked.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import quote, unquote, urlsplit

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import MAX_NAME_BYTES

SCHEMES = ("http://", "https://")
MAX_UPSTREAM_NAME = 200  # characters of a model's name over there; paths of files are such names
MAX_QUOTED = 200  # of the address when it is the name of a file in the peer's state: a file name ends at 255
MARK_CHARS = 6  # of a hash that keeps two names apart: 16 million of them
_HINT = "such as http://127.0.0.1:11434/v1, or http://127.0.0.1:11434/v1#MODEL for one of its models"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_address(spec: str) -> bool:
    """Whether a source is the URL of a server."""
    return spec.lower().startswith(SCHEMES)


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and the one model of it that is meant ("": all of them)."""

    scheme: str
    host: str
    port: int
    path: str  # of the API, with no slash at its end
    model: str = ""  # as that server calls it

    @classmethod
    def parse(cls, spec: str) -> Address:
        """Raises LocalError (bad-input) for what is no URL of a server, and for one that holds a secret."""
        try:
            parts = urlsplit(spec)
            port = parts.port
        except ValueError as error:
            raise _no_address(spec, str(error)) from error
        scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
        if scheme not in _DEFAULT_PORTS or not host:
            raise _no_address(spec, "it names no host")
        if parts.username is not None or parts.password is not None or parts.query:
            hint = "a key belongs into the environment: MODELNET_UPSTREAM_KEY or OPENAI_API_KEY"
            raise LocalError(Code.BAD_INPUT, "a server's URL takes no user, password or query", hint=hint)
        path = parts.path.rstrip("/") or "/v1"
        if not _is_plain(host + path):
            raise _no_address(spec, "it holds characters that must be written as %XX")
        model = unquote(parts.fragment)
        if not model.isprintable() or len(model) > MAX_UPSTREAM_NAME:
            raise _no_address(spec, "what follows the # is no model's name")
        address = cls(scheme, host, port or _DEFAULT_PORTS[scheme], path, model)
        if len(quote(address.spec, safe="")) > MAX_QUOTED:
            raise _no_address(spec, "it is too long")
        return address

    @property
    def authority(self) -> str:
        """Host and port, as in the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def base(self) -> str:
        """The URL of the API."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def spec(self) -> str:
        """The one way to write it."""
        model = self.model.replace("%", "%25")  # the one character that is read otherwise than it is written
        return f"{self.base}#{model}" if model else self.base

    @property
    def is_private(self) -> bool:
        """Whether what is sent there stays on this machine, or is encrypted."""
        if self.scheme == "https" or self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def _is_plain(text: str) -> bool:
    return text.isascii() and not any(char.isspace() or char in '<>"\\^`{|}' or char < "!" for char in text)


def _no_address(spec: str, why: str) -> LocalError:
    return LocalError(Code.BAD_INPUT, f"{spec[:80]!r} is no server's URL: {why}", hint=_HINT)


_FILE = re.compile(r"^(?:[./~\\]|[A-Za-z]:[\\/])")  # llama-server calls a model after its file


def served_name(upstream: str) -> str:
    """A name of ours for a model that a server calls `upstream`: `llama3.2:1b` becomes `llama3.2-1b`.

    A path becomes its last part, of several parts the last two stay; Ollama's `:latest` means no more than
    the name without it. The same name always becomes the same one.
    """
    text = upstream.strip().replace("\\", "/")
    if _FILE.match(upstream.strip()):
        text = text.rstrip("/").rpartition("/")[2]
    text = text.lower().removesuffix(":latest").removesuffix(".gguf")
    parts = [re.sub(r"[^a-z0-9._-]+", "-", part).strip("._-") for part in text.split("/")]
    name = "/".join([part for part in parts if part][-2:])
    if len(name) > MAX_NAME_BYTES:
        name = told_apart(name, upstream)
    return name or told_apart("model", upstream)


def told_apart(name: str, upstream: str) -> str:
    """`name` with a mark of `upstream` behind it, for when another model has that name."""
    mark = hashlib.sha256(upstream.encode()).hexdigest()[:MARK_CHARS]
    return f"{name[: MAX_NAME_BYTES - MARK_CHARS - 1].rstrip('._-/')}-{mark}"
