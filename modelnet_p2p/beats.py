"""What peers tell each other about who is alive, and how it is written down.

Three things are sealed by whoever says them, so that others can pass them on and nobody can make them up:
a *roster* (these watch over me), a *beat* (I live), a *verdict* (of one whom I watch over, I hear nothing any
more). A roster and the verdicts of enough of its watchers are an *obituary*, which convinces whoever
reads it, whoever handed it over. The rest are notes between two peers, true by their connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.envelope import Opened, open_envelope, seal
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

MAX_WATCHERS = 5  # of one peer: two of them may lie or be gone, and three still tell the truth
MAX_KEYS = 64  # whose holders are told of a death: of a dozen models with their tasks and tags, 2 KiB
MAX_ASKED = 64  # peers of whom one question asks, 2.5 KiB
MAX_SEALED_BYTES = 640  # a roster of five has about 400, the longest network's name in it
MAX_MESSAGE_BYTES = 4096  # of canonical msgpack
MAX_INT = 2**53 - 1  # what every language holds exactly; microseconds of three centuries fit

ROSTER_TYPE = b"/modelnet/roster/1"
BEAT_TYPE = b"/modelnet/beat/1"
VERDICT_TYPE = b"/modelnet/verdict/1"


# --- what is sealed ---


@dataclass(frozen=True, slots=True)
class Roster:
    """`subject` names who watches over it; the newest `seq` is the one that counts."""

    subject: PeerId
    seq: int
    watchers: tuple[PeerId, ...]
    envelope: bytes = b""

    @property
    def quorum(self) -> int:
        """How many of them together prove a death: more than half, and never one alone."""
        return max(2, len(self.watchers) // 2 + 1)


@dataclass(frozen=True, slots=True)
class Beat:
    """`subject` lives. `incarnation` rises when it hears that it is doubted, `seq` with each beat."""

    subject: PeerId
    incarnation: int
    seq: int
    envelope: bytes = b""

    @property
    def place(self) -> tuple[int, int]:
        """Which of two beats is the later one."""
        return self.incarnation, self.seq


@dataclass(frozen=True, slots=True)
class Verdict:
    """`watcher` says that `subject` is suspect, or `dead`; void once that one has a higher incarnation."""

    watcher: PeerId
    subject: PeerId
    incarnation: int
    dead: bool
    at_us: int  # unix microseconds, by the watcher's clock
    envelope: bytes = b""


# --- what is sent ---


@dataclass(frozen=True, slots=True)
class Watch:
    """To a watcher: watch over me, and tell those who hold these keys when I am gone."""

    roster: Roster
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """From a watcher to its subject: your beat came; `doubted`: somebody says that you are gone."""

    incarnation: int
    seq: int
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Send me a beat of `subject`: to itself, or to another who watches over it."""

    subject: PeerId


@dataclass(frozen=True, slots=True)
class Obituary:
    """The proof that a peer is gone: its roster, and verdicts of a quorum of it on one incarnation."""

    roster: Roster
    verdicts: tuple[Verdict, ...]

    @property
    def subject(self) -> PeerId:
        return self.roster.subject

    @property
    def incarnation(self) -> int:
        return self.verdicts[0].incarnation if self.verdicts else 0

    @property
    def at_us(self) -> int:
        """The oldest verdict's time."""
        return min((verdict.at_us for verdict in self.verdicts), default=0)

    @property
    def proven(self) -> bool:
        """Whether the verdicts prove the death; their seals were checked when they were decoded."""
        sound = {
            verdict.watcher
            for verdict in self.verdicts
            if verdict.dead
            and verdict.subject == self.subject
            and verdict.incarnation == self.incarnation
            and verdict.watcher in self.roster.watchers
        }
        return len(sound) == len(self.verdicts) >= self.roster.quorum


@dataclass(frozen=True, slots=True)
class Ask:
    """To a holder: of whom of these do you have an obituary?"""

    subjects: tuple[PeerId, ...]


Message = Watch | Beat | Heard | Probe | Verdict | Obituary | Ask


# --- sealing ---


class Seals:
    """Seals what one peer says in one network."""

    def __init__(self, key: KeyPair, network: str, wall_us: Callable[[], int]) -> None:
        self._key = key
        self._network = network
        self._wall_us = wall_us

    def roster(self, seq: int, watchers: tuple[PeerId, ...]) -> Roster:
        ids = [bytes(watcher) for watcher in watchers]
        return Roster(self._key.id, seq, watchers, self._seal(ROSTER_TYPE, {"seq": seq, "watchers": ids}))

    def beat(self, incarnation: int, seq: int) -> Beat:
        wire = {"incarnation": incarnation, "seq": seq}
        return Beat(self._key.id, incarnation, seq, self._seal(BEAT_TYPE, wire))

    def verdict(self, subject: PeerId, incarnation: int, dead: bool) -> Verdict:
        at_us = self._wall_us()
        wire = {"at": at_us, "dead": dead, "incarnation": incarnation, "subject": bytes(subject)}
        return Verdict(self._key.id, subject, incarnation, dead, at_us, self._seal(VERDICT_TYPE, wire))

    def _seal(self, payload_type: bytes, wire: Mapping[str, object]) -> bytes:
        return seal(payload_type, pack({**wire, "network": self._network}), self._key)


def open_roster(envelope: bytes, network: str) -> Roster:
    """The roster in `envelope`, its seal checked; raises BadRecord."""
    opened, fields = _open(envelope, ROSTER_TYPE, network)
    watchers = _ids(fields, "watchers", MAX_WATCHERS)
    if opened.signer in watchers:
        raise MalformedRecord("a peer that watches over itself")
    return Roster(opened.signer, _count(fields, "seq"), watchers, envelope)


def open_beat(envelope: bytes, network: str) -> Beat:
    """The beat in `envelope`, its seal checked; raises BadRecord."""
    opened, fields = _open(envelope, BEAT_TYPE, network)
    return Beat(opened.signer, _count(fields, "incarnation"), _count(fields, "seq"), envelope)


def open_verdict(envelope: bytes, network: str) -> Verdict:
    """The verdict in `envelope`, its seal checked; raises BadRecord."""
    opened, fields = _open(envelope, VERDICT_TYPE, network)
    return Verdict(
        opened.signer,
        _id(fields.get("subject")),
        _count(fields, "incarnation"),
        _flag(fields, "dead"),
        _count(fields, "at"),
        envelope,
    )


# --- messages ---


def frame(message: Message) -> bytes:
    """The message as it goes on a stream: its length in two bytes, then its msgpack."""
    data = encode(message)
    return len(data).to_bytes(2) + data


class Framer:
    """Cuts a stream into messages. It holds at most one unfinished one, 4 KiB, and what was just fed."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """The messages that `data` completes, each checked as it is taken; raises BadRecord.

        After that the stream is lost. What is not taken is kept for the next time.
        """
        self._buffer += data
        while len(self._buffer) >= 2:
            end = 2 + int.from_bytes(self._buffer[:2])
            if end > 2 + MAX_MESSAGE_BYTES:
                raise BadRecord(Refusal.OVERSIZED, f"a message of {end - 2} bytes")
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[2:end])
            del self._buffer[:end]
            yield decode(body, self._network)


def encode(message: Message) -> bytes:
    """The message as canonical msgpack; raises BadRecord (oversized) past MAX_MESSAGE_BYTES."""
    match message:
        case Watch(roster, keys):
            return pack({"keys": list(keys), "kind": "watch", "roster": roster.envelope})
        case Beat(envelope=envelope):
            return pack({"beat": envelope, "kind": "beat"})
        case Heard(incarnation, seq, doubted):
            return pack({"doubted": doubted, "incarnation": incarnation, "kind": "heard", "seq": seq})
        case Probe(subject):
            return pack({"kind": "probe", "subject": bytes(subject)})
        case Verdict(envelope=envelope):
            return pack({"kind": "verdict", "verdict": envelope})
        case Obituary(roster, verdicts):
            sealed = [verdict.envelope for verdict in verdicts]
            return pack({"kind": "obituary", "roster": roster.envelope, "verdicts": sealed})
        case Ask(subjects):
            return pack({"kind": "ask", "subjects": [bytes(subject) for subject in subjects]})


def decode(data: bytes, network: str) -> Message:
    """The message in `data`, every seal in it checked; raises BadRecord, and nothing else.

    An obituary that comes out is proven. What else the message may mean depends on who sent it.
    """
    fields = unpack(data)
    match fields.get("kind"):
        case "watch":
            keys = tuple(_bytes(key, 64) for key in _list(fields, "keys", MAX_KEYS))
            return Watch(open_roster(_sealed(fields.get("roster")), network), keys)
        case "beat":
            return open_beat(_sealed(fields.get("beat")), network)
        case "heard":
            return Heard(_count(fields, "incarnation"), _count(fields, "seq"), _flag(fields, "doubted"))
        case "probe":
            return Probe(_id(fields.get("subject")))
        case "verdict":
            return open_verdict(_sealed(fields.get("verdict")), network)
        case "obituary":
            return _obituary(fields, network)
        case "ask":
            return Ask(_ids(fields, "subjects", MAX_ASKED))
    raise MalformedRecord("a message of unknown kind")


def _obituary(fields: Mapping[str, object], network: str) -> Obituary:
    sealed = [_sealed(item) for item in _list(fields, "verdicts", MAX_WATCHERS)]
    roster = open_roster(_sealed(fields.get("roster")), network)
    obituary = Obituary(roster, tuple(open_verdict(envelope, network) for envelope in sealed))
    if not obituary.proven:
        raise BadRecord(Refusal.WRONG_OWNER, "an obituary without a quorum of its subject's watchers")
    return obituary


def _open(envelope: bytes, payload_type: bytes, network: str) -> tuple[Opened, dict[str, object]]:
    opened = open_envelope(envelope, max_bytes=MAX_SEALED_BYTES)
    if opened.payload_type != payload_type:
        raise MalformedRecord("an envelope of another kind than its place says")
    fields = unpack(opened.payload)
    if fields.get("network") != network:
        raise BadRecord(Refusal.FOREIGN_KEY, "of another network")
    return opened, fields


# --- fields: whatever has another form is malformed; unknown fields are for later versions ---


def _count(fields: Mapping[str, object], key: str) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INT:
        raise MalformedRecord(f"{key} is no count")
    return value


def _flag(fields: Mapping[str, object], key: str) -> bool:
    value = fields.get(key)
    if not isinstance(value, bool):
        raise MalformedRecord(f"{key} is neither true nor false")
    return value


def _list(fields: Mapping[str, object], key: str, limit: int) -> list[object]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > limit:
        raise MalformedRecord(f"{key} is no list of at most {limit}")
    return value


def _bytes(value: object, limit: int) -> bytes:
    if not isinstance(value, bytes) or not 0 < len(value) <= limit:
        raise MalformedRecord(f"not 1 to {limit} bytes")
    return value


def _sealed(value: object) -> bytes:
    return _bytes(value, MAX_SEALED_BYTES)


def _id(value: object) -> PeerId:
    peer = PeerId(raw) if len(raw := _bytes(value, 64)) > 1 else None
    if peer is None or peer.public_key is None:
        raise MalformedRecord("not the id of a peer that can sign")
    return peer


def _ids(fields: Mapping[str, object], key: str, limit: int) -> tuple[PeerId, ...]:
    ids = tuple(_id(item) for item in _list(fields, key, limit))
    if len(set(ids)) != len(ids):
        raise MalformedRecord(f"{key} names somebody twice")
    return ids
