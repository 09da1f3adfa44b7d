"""What this peer promised and must still know after kill -9: models, sequence numbers, withdrawals.

One checksummed file per model under `state/models/` and one for the highest sequence number, each
replaced whole; so damage is confined to the file that the error names, and moving that file away
keeps all the others. A change is on disk before the method returns, and in memory only then. There
is one sequence for all offers of a peer: a number given out is never given out again, not even
for a model that was forgotten and comes back.

Whoever opens the state holds the home's lock (`Runtime.lock`): two writers would not see each other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import quote as url_quote

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import (
    DISK,
    TEMPORARY,
    Disk,
    make_private_directory,
    open_json,
    read_bounded,
    reason,
    remove_durably,
    seal_json,
    write_durably,
)
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.records import MAX_SEQ, next_seq

MAX_FILE_BYTES = 1 << 20  # a source with its publisher's whole environment stays well below
MAX_MODELS = 1024  # files read at start, withdrawn ones included


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A tombstone that is still owed to the holders of the record, until that would have expired."""

    envelope: bytes
    seq: int
    expires_unix: int


@dataclass(slots=True)
class State:
    """What is under one home's `state/`; read it freely, change it by its methods only."""

    path: Path
    disk: Disk = DISK
    published: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> Source map (JSON values)
    described: dict[str, dict[str, Any]] = field(default_factory=dict)  # of them, as far as that is known
    withdrawn: dict[str, Withdrawn] = field(default_factory=dict)
    _seqs: dict[str, int] = field(default_factory=dict)
    _highest: int = 0

    @classmethod
    def open(cls, home: Home, *, disk: Disk = DISK) -> State:
        """Read all of it; raises LocalError (bad-state), one line that names the damaged file."""
        state = cls(home.state_path, disk)
        make_private_directory(state.path / "models")
        try:
            names = sorted(entry.name for entry in (state.path / "models").iterdir())
            for directory in (state.path, state.path / "models"):
                for leftover in directory.glob(f".*{TEMPORARY}"):
                    disk.remove(leftover)
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot read {state.path}: {reason(error)}") from error
        names = [name for name in names if name.endswith(".json") and not name.startswith(".")]
        if len(names) > MAX_MODELS:
            raise LocalError(Code.BAD_STATE, f"{state.path / 'models'} holds more than {MAX_MODELS} models")
        state._load_sequence()
        for name in names:
            state._load_model(state.path / "models" / name)
        return state

    def last_seq(self, model: str) -> int:
        """The sequence number last used for `model`, 0 if it is not remembered."""
        return self._seqs.get(model, 0)

    def take_seq(self, now_unix: float) -> int:
        """A sequence number above all that this peer ever took (`next_seq`).

        It is on disk before it is returned, so that a crash right after cannot give it out twice.
        Raises LocalError (bad-state) on a disk that takes nothing, and at the end of the numbers.
        """
        seq = next_seq(self._highest, int(now_unix * 1_000_000))
        write_durably(self._sequence_path, seal_json({"highest": seq}), disk=self.disk)
        self._highest = seq
        return seq

    def remember(
        self, model: str, source: Mapping[str, Any], seq: int, described: Mapping[str, Any] | None = None
    ) -> None:
        """Keep that `source` is published as `model`, and what it turned out to be (JSON values); a tombstone
        still owed for it is dropped."""
        known = model in self._seqs
        if not known and len(self._seqs) >= MAX_MODELS:
            raise LocalError(Code.BAD_STATE, f"{self.path / 'models'} holds {MAX_MODELS} models already")
        body: dict[str, Any] = {"model": model, "seq": seq, "source": dict(source)}
        self._write(model, body if described is None else {**body, "described": dict(described)})
        self.withdrawn.pop(model, None)
        self.published[model] = dict(source)
        self.described.pop(model, None)
        if described is not None:
            self.described[model] = dict(described)
        self._note(model, seq)

    def forget(self, model: str, seq: int, tombstone: bytes, expires_unix: int) -> None:
        """`model` is no longer published; its sealed tombstone is owed until `expires_unix`."""
        owed = Withdrawn(tombstone, seq, expires_unix)
        envelope = base64.b64encode(tombstone).decode()
        body = {"model": model, "seq": seq, "withdrawn": {"envelope": envelope, "expires_unix": expires_unix}}
        self._write(model, body)
        self.published.pop(model, None)
        self.described.pop(model, None)
        self.withdrawn[model] = owed
        self._note(model, seq)

    def revive(self, model: str) -> None:
        """`model` is published again by somebody who remembers it elsewhere: no tombstone is owed."""
        if model in self.withdrawn:
            remove_durably(self._model_path(model), disk=self.disk)
            del self.withdrawn[model], self._seqs[model]

    def drop(self, model: str) -> None:
        """Forget a published model whose record nobody can take back; it expires by itself."""
        remove_durably(self._model_path(model), disk=self.disk)
        self.published.pop(model, None)
        self.described.pop(model, None)
        self._seqs.pop(model, None)

    def settle(self, now_unix: float) -> None:
        """Let go of tombstones whose records would have expired by now."""
        for model in [name for name, owed in self.withdrawn.items() if owed.expires_unix <= now_unix]:
            remove_durably(self._model_path(model), disk=self.disk)
            del self.withdrawn[model], self._seqs[model]

    @property
    def _sequence_path(self) -> Path:
        return self.path / "sequence.json"

    def _model_path(self, model: str) -> Path:
        # the hash keeps apart versions that differ in case only, on file systems that do not
        mark = hashlib.sha256(model.encode()).hexdigest()[:8]
        return self.path / "models" / f"{url_quote(model, safe='')}.{mark}.json"

    def _write(self, model: str, body: dict[str, Any]) -> None:
        data = seal_json(body)
        if len(data) > MAX_FILE_BYTES:
            raise LocalError(
                Code.TOO_LARGE, f"the source of {model} takes more than {MAX_FILE_BYTES} bytes to keep"
            )
        write_durably(self._model_path(model), data, disk=self.disk)

    def _note(self, model: str, seq: int) -> None:
        self._seqs[model] = max(seq, self._seqs.get(model, 0))
        self._highest = max(seq, self._highest)

    def _load_sequence(self) -> None:
        path = self._sequence_path
        body = _read(path)
        if body is not None:
            self._highest = _seq(path, body.get("highest"))

    def _load_model(self, path: Path) -> None:
        body = _read(path)
        if body is None:
            return  # removed between listing and reading
        model, source, owed = body.get("model"), body.get("source"), body.get("withdrawn")
        seq = _seq(path, body.get("seq"))
        if not isinstance(model, str) or self._model_path(model) != path:
            raise _damaged(path, "it belongs to another model")
        if isinstance(source, dict) and owed is None:
            self.published[model] = source
            if isinstance(described := body.get("described"), dict):  # whoever uses it looks at it closely
                self.described[model] = described
        elif isinstance(owed, dict) and source is None:
            self.withdrawn[model] = _withdrawn(path, owed, seq)
        else:
            raise _damaged(path, "it is neither published nor withdrawn")
        self._note(model, seq)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data, _ = read_bounded(path, MAX_FILE_BYTES)
        return open_json(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, reason(error)) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _seq(path: Path, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SEQ:
        raise _damaged(path, "its sequence number is no such number")
    return value


def _withdrawn(path: Path, owed: dict[str, Any], seq: int) -> Withdrawn:
    envelope, expires_unix = owed.get("envelope"), owed.get("expires_unix")
    try:
        if not isinstance(envelope, str) or type(expires_unix) is not int:
            raise ValueError("a field has the wrong type")
        return Withdrawn(base64.b64decode(envelope, validate=True), seq, expires_unix)
    except (ValueError, binascii.Error) as error:
        raise _damaged(path, f"its tombstone is damaged: {error}") from error


def _damaged(path: Path, why: str) -> LocalError:
    hint = f"put a good copy in its place, or go on without: mv {quote(str(path))} {quote(f'{path}.damaged')}"
    return LocalError(Code.BAD_STATE, f"cannot use the state file {path}: {why}", hint=hint)
