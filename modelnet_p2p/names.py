"""Names of models, tasks and tags, model URIs, DHT key names and protocol ids.

Everything a name may contain is decided here once, for the CLI, the records and the wire alike.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, quote

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import PeerId

MAX_NAME_BYTES = 80
MAX_VERSION_BYTES = 32
MAX_TASK_BYTES = 64
MAX_TAG_BYTES = 32
MAX_NETWORK_BYTES = 64
PUBLIC_NETWORK = "public"
MAX_SHARD_DEPTH = 3  # 4,096 shards of 4,096 records are 16 million under one key

_PART = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?", re.ASCII)
_TASK = re.compile(rf"(?:x-{_PART}/)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)
_TAG = re.compile(_PART, re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def _check(kind: str, text: str, pattern: re.Pattern[str], limit: int, rule: str) -> str:
    if not isinstance(text, str):  # of a program: its types are only hints
        raise LocalError(Code.BAD_INPUT, f"a {kind} is a string, not {type(text).__name__}")
    if len(text) > limit or not pattern.fullmatch(text):
        words = f"{text[:limit]!r} is not a {kind}: {rule}, at most {limit} bytes"
        meant = "-".join(text[: limit + 1].lower().split())
        is_near = len(meant) <= limit and meant != text and pattern.fullmatch(meant)
        raise LocalError(Code.BAD_INPUT, words, hint=f"did you mean {meant}?" if is_near else "")
    return text


def check_model_name(text: str) -> str:
    """`[namespace/]name`; raises LocalError (bad-input) otherwise."""
    rule = "[namespace/]name of lower case letters, digits, '-', '_', '.'"
    return _check("model name", text, _NAME, MAX_NAME_BYTES, rule)


def is_model_name(text: str) -> bool:
    return len(text) <= MAX_NAME_BYTES and _NAME.fullmatch(text) is not None


def check_version(text: str) -> str:
    """A version; the empty string is `no version`."""
    rule = "letters, digits, '.', '_', '+', '-'"
    return text and _check("version", text, _VERSION, MAX_VERSION_BYTES, rule)


def check_task(text: str) -> str:
    """One of Hugging Face's pipeline tags, or `x-<org>/<task>`."""
    return _check("task", text, _TASK, MAX_TASK_BYTES, "such as text-classification, or x-<org>/<task>")


def check_tag(text: str) -> str:
    return _check("tag", text, _TAG, MAX_TAG_BYTES, "lower case letters, digits, '-', '_', '.'")


def check_network(text: str) -> str:
    # the space is the one printable character that is white
    if not text or not text.isprintable() or " " in text or len(text.encode()) > MAX_NETWORK_BYTES:
        rule = f"1 to {MAX_NETWORK_BYTES} bytes of printable characters, no spaces"
        raise LocalError(Code.BAD_INPUT, f"{text[:MAX_NETWORK_BYTES]!r} is not a network's name: {rule}")
    return text


def digest_text(digest: bytes) -> str:
    """`sha256:<hex>` for 32 raw bytes."""
    return f"sha256:{digest.hex()}"


def parse_digest(text: str) -> bytes:
    """The 32 raw bytes of `sha256:<hex>`."""
    _check("digest", text, _DIGEST, 71, "sha256: and 64 hex digits")
    return bytes.fromhex(text[7:])


@dataclass(frozen=True, slots=True)
class ModelUri:
    """`modelnet:acme/sentiment@2?owner=…&digest=sha256:…&provider=…`; all after the name is optional."""

    name: str
    version: str = ""
    owner: PeerId | None = None
    digest: bytes | None = None  # 32 bytes
    provider: PeerId | None = None

    SCHEME = "modelnet:"

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """A URI, or a bare `name[@version]`; raises LocalError (bad-input) on anything else."""
        if not isinstance(text, str):
            raise LocalError(Code.BAD_INPUT, f"a model is named by a string, not {type(text).__name__}")
        return _parse_uri(text)

    def __str__(self) -> str:
        parts = [
            f"{key}={quote(str(value), safe=':')}"
            for key, value in (
                ("owner", self.owner),
                ("digest", self.digest and digest_text(self.digest)),
                ("provider", self.provider),
            )
            if value
        ]
        version = f"@{self.version}" if self.version else ""
        query = f"?{'&'.join(parts)}" if parts else ""
        return f"{self.SCHEME}{self.name}{version}{query}"


@lru_cache(maxsize=1024)  # of 512 bytes; a peer is asked for the same few again and again
def _parse_uri(text: str) -> ModelUri:
    if len(text) > 512:
        raise LocalError(Code.BAD_INPUT, "a model URI has at most 512 bytes")
    path, _, query = text.removeprefix(ModelUri.SCHEME).partition("?")
    name, at, version = path.partition("@")
    if at and not version:
        raise LocalError(Code.BAD_INPUT, f"{text!r} ends its version at the '@'")
    fields: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("owner", "digest", "provider") or key in fields:
            raise LocalError(
                Code.BAD_INPUT,
                f"{key!r} is unknown or twice in {text!r}",
                hint="a model URI takes owner, digest and provider",
            )
        fields[key] = value
    return ModelUri(
        check_model_name(name),
        check_version(version),
        PeerId.parse(fields["owner"]) if "owner" in fields else None,
        parse_digest(fields["digest"]) if "digest" in fields else None,
        PeerId.parse(fields["provider"]) if "provider" in fields else None,
    )


class Keys:
    """The names of one network's DHT keys; `provider_key` turns a name into what goes on the wire."""

    __slots__ = ("_prefix",)

    def __init__(self, network: str) -> None:
        self._prefix = f"/modelnet/{network}/"

    def model(self, name: str) -> str:
        return f"{self._prefix}model/{name}"

    def digest(self, digest: bytes) -> str:
        return f"{self._prefix}digest/{digest.hex()}"

    def task(self, task: str) -> str:
        return f"{self._prefix}task/{task}"

    def tag(self, tag: str) -> str:
        return f"{self._prefix}tag/{tag}"

    def peer(self, peer: PeerId) -> str:
        return f"{self._prefix}peer/{peer}"

    def owner(self, owner: PeerId) -> str:
        """Where offers by others of that owner's models lie, and its revocation; its own lie under `peer`."""
        return f"{self._prefix}owner/{owner}"


@lru_cache(2048)  # a hundred cards of one task name the same key
def provider_key(name: str) -> bytes:
    """A key's name as the multihash that ADD_PROVIDER and GET_PROVIDERS carry: 12 20 sha256(name)."""
    return b"\x12\x20" + hashlib.sha256(name.encode()).digest()


def shard_key(key: bytes, prefix: str) -> bytes:
    """Where the records of a full key go on: those of the peers whose `shard_prefix` begins so.

    It is made from the key's multihash and not from its name: `model/chat` with a shard `c` must not be
    `model/chat/c`.
    """
    return b"\x12\x20" + hashlib.sha256(key + b"#" + prefix.encode()).digest()


def shard_prefix(peer: PeerId, depth: int) -> str:
    """The first `depth` hex digits of the peer's place: one of 16 shards, of 256, of 4,096."""
    return hashlib.sha256(peer).hexdigest()[:depth]


def protocol(network: str, part: str) -> str:
    """`/modelnet/<part>/1.0.0` on the public network, with the hash of its name between on others."""
    if network == PUBLIC_NETWORK:
        return f"/modelnet/{part}/1.0.0"
    return f"/modelnet/{hashlib.sha256(network.encode()).hexdigest()[:16]}/{part}/1.0.0"
