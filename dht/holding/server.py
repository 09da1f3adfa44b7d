"""What this peer answers to the kad messages of others: a pure function of request, table and store.

Whoever asks, every reply carries our extension field (empty at least), stays within 64 KiB, and refuses
cleanly: `refused` says why, and each reason is counted. A request that calls for no answer (a stock peer's
ADD_PROVIDER, nonsense) gets None, as the other implementations do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from modelnet_p2p.dht.holding.cache import MAX_RECORDS as MAX_COPIES
from modelnet_p2p.dht.holding.cache import Cache
from modelnet_p2p.dht.holding.revocations import PRIVATE, Revocations
from modelnet_p2p.dht.holding.store import RECORD_OVERHEAD, BadCursor, Full, OfferStore, contact_bytes
from modelnet_p2p.dht.keyspace import is_provider_key, position
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.region import STORED_OF_SLOT
from modelnet_p2p.envelope import Roots
from modelnet_p2p.errors import LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import (
    CACHED_CONTACTS,
    MAX_MESSAGE_BYTES,
    MAX_RECORDS_ADDED,
    Contact,
    Kind,
    Message,
    Value,
)
from modelnet_p2p.names import check_model_name, check_version
from modelnet_p2p.records import (
    MAX_LIFETIME_US,
    BadRecord,
    Card,
    Record,
    Refusal,
    Revocation,
    Sealed,
    admit,
    kept_until,
    revocation_identity,
    seals,
)

MAX_KEY_BYTES = 256  # the longest value key of ours is 52 + 20 + 80 + 1 + 32 bytes
MAX_ADDRS_TOLD = 8  # of one contact in a reply: 30 contacts of 8 addresses are 12 KiB, 33 at the very worst
MAX_ADDR_TOLD_BYTES = 128  # the longest honest ones, relayed over DNS names, have about 100
MESSAGE_OVERHEAD = 512  # kind, key, cursor, field tags of one reply
VALUE_PREFIX = b"/modelnet/rec/"
MAX_PROOFS = 8  # of revoked keys in one reply: one suffices, and 64 would leave no room for anybody else
CROWD_LOOKED_AT = 4  # times as many as are named: a crowd fills no more than a bucket or two of a table


@lru_cache(CACHED_CONTACTS)
def told(contact: Contact) -> Contact:
    """The contact as we pass it on: no more addresses than a reply has room for."""
    addrs = contact.addrs
    if len(addrs) <= MAX_ADDRS_TOLD and max(map(len, addrs), default=0) <= MAX_ADDR_TOLD_BYTES:
        return contact  # as nearly all are
    addrs = tuple(addr for addr in addrs if len(addr) <= MAX_ADDR_TOLD_BYTES)[:MAX_ADDRS_TOLD]
    return Contact(contact.id, addrs)


_cost = lru_cache(CACHED_CONTACTS)(contact_bytes)


def value_key(peer: PeerId, model: str, version: str = "") -> bytes:
    """Where an offer lies for GET_VALUE: `/modelnet/rec/<peer>/<name[@version]>`; it alone writes it."""
    offer = f"{model}@{version}" if version else model
    return VALUE_PREFIX + f"{peer}/{offer}".encode()


def parse_value_key(key: bytes) -> tuple[PeerId, str, str] | None:
    """Peer, model and version of a value key; None for any other key."""
    if not key.startswith(VALUE_PREFIX) or len(key) > MAX_KEY_BYTES or not key.isascii():
        return None
    peer, _, offer = key[len(VALUE_PREFIX) :].decode("ascii").partition("/")
    model, _, version = offer.partition("@")
    try:
        parsed = PeerId.parse(peer), check_model_name(model), check_version(version)
    except LocalError:
        return None
    return parsed if value_key(*parsed) == key else None


def _may_write(sealed: Sealed, key: bytes) -> bool:
    """Whether this value key is that offer's own. A card is no value: task and tag keys alone hold it."""
    identity = sealed.identity
    own = value_key(identity.provider, identity.name, identity.version)
    return key == own and not isinstance(sealed.record, Card | Revocation)


class _Placed(NamedTuple):
    distance: int
    contact: Contact
    counts: bool = True


class KadServer:
    """The answering side of `/modelnet/kad/1.0.0`."""

    def __init__(
        self,
        me: PeerId,
        network: str,
        table: RoutingTable,
        store: OfferStore,
        revocations: Revocations | None = None,
    ) -> None:
        self.me = me
        self.network = network
        self.table = table
        self.store = store
        self.density = table.density
        self.cache = Cache()
        self.revocations = Revocations() if revocations is None else revocations
        self.refused: Counter[Refusal] = Counter()
        self.full: Counter[Full] = Counter()  # sound records that found no room

    def handle(
        self, request: Message, sender: PeerId, sender_group: str | None, now: float, now_us: int
    ) -> Message | None:
        """The reply, None if there is none to give. `sender_group` is its public IP group, if it has one."""
        self.store.expire(now_us)
        key = request.key
        match request.kind:
            case Kind.PING:
                return Message(Kind.PING, key[:MAX_KEY_BYTES], records=())
            case Kind.ADD_PROVIDER if request.records is None:
                self.refused[Refusal.UNSIGNED] += 1  # a stock peer's: it waits for no answer
                return None
            case _ if not 1 <= len(key) <= MAX_KEY_BYTES:
                return self._refuse(request.kind, b"", Refusal.MALFORMED)
            case Kind.FIND_NODE:
                return Message(Kind.FIND_NODE, key, closer=self._closer(key, sender), records=())
            case Kind.GET_PROVIDERS:
                return self._get_providers(request, sender, now, now_us)
            case Kind.ADD_PROVIDER if request.cached:
                return self._add_copies(request, sender, sender_group, now, now_us)
            case Kind.ADD_PROVIDER:
                return self._add_provider(request, sender, sender_group, now_us)
            case Kind.GET_VALUE:
                return self._get_value(key, sender)
            case Kind.PUT_VALUE:
                return self._put_value(request, sender, sender_group, now_us)
        return None

    def checks(self, request: Message, sender: PeerId) -> int:
        """The signatures that this request would have me check, at most; none for what lies here already."""
        key, envelopes = request.key, tuple[bytes, ...]()
        if request.kind is Kind.ADD_PROVIDER:
            envelopes = request.records or ()
        elif request.kind is Kind.PUT_VALUE and request.value is not None:
            envelopes = (request.value.value,)
        return seals(e for e in envelopes if not self.store.renew(key, e, Contact(sender)))

    def is_close(self, key: bytes) -> bool:
        """Whether I am among the k closest to `key` of all the peers that I know."""
        mine, place = position(self.me), position(key)
        nearest = self.table.closest(place, self.table.k)
        return len(nearest) < self.table.k or mine ^ place < position(nearest[-1].id) ^ place

    def keep_own(self, key: bytes, sealeds: Sequence[Sealed], contact: Contact) -> bool:
        """Hold my own records too where I am among the k closest; whether all of them now lie here.

        They are never counted among the holders that a publish promises: those are other peers.
        """
        if not self.is_close(key) or any(self.revocations.condemning(s.record) for s in sealeds):
            return False
        return not [reason for s in sealeds if (reason := self.store.add(key, s, told(contact))) is not None]

    def _closer(self, key: bytes, sender: PeerId) -> tuple[Contact, ...]:
        """Half as many again as k: with a fifth of them newly dead, k would hide the last of the k alive.

        Of a crowd around the key no more than a publisher would store with.
        """
        n = self.table.k + self.table.k // 2
        place, region = position(key), self.density.region
        near = self.table.nearest(place, n, exclude=sender)
        if region is not None and region.holds_crowd([distance for distance, _ in near]):
            near = self.table.nearest(place, CROWD_LOOKED_AT * n, exclude=sender)
            line, _ = region.line([_Placed(*one) for one in near], STORED_OF_SLOT)
            return tuple(told(placed.contact) for placed in line[:n])
        return tuple([told(contact) for _, contact in near])

    def _refuse(self, kind: Kind, key: bytes, reason: Refusal) -> Message:
        self.refused[reason] += 1
        return Message(kind, key, records=(), refused=reason.value)

    def _get_providers(self, request: Message, sender: PeerId, now: float, now_us: int) -> Message:
        """First page: closer peers too. Later pages: records alone, for the reader has the rest already.

        A key that is split says so with its records. Copies are told only where nothing is held under the
        key, and as what they are.
        """
        kind, key = request.kind, request.key
        if not is_provider_key(key):
            return self._refuse(kind, key, Refusal.MALFORMED)
        closer = () if request.cursor else self._closer(key, sender)
        room = MAX_MESSAGE_BYTES - MESSAGE_OVERHEAD - sum(map(_cost, closer))
        try:
            page = self.store.page(key, request.cursor, room)
        except BadCursor:
            return self._refuse(kind, key, Refusal.MALFORMED)
        sealeds, contacts, cached = page.sealeds, page.contacts, False
        if not sealeds and not request.cursor:
            sealeds, contacts = self._copies(key, room, now)
            cached = bool(sealeds)
        return Message(
            kind,
            key,
            closer,
            contacts,
            records=tuple(sealed.envelope for sealed in sealeds),
            cursor=page.cursor,
            refused=Full.KEY.value if self.store.is_split(key, now_us) else "",
            cached=cached,
        )

    def _add_copies(
        self, request: Message, sender: PeerId, group: str | None, now: float, now_us: int
    ) -> Message:
        """What a reader hands over. Where I hold the key myself I know better; acknowledged all the same."""
        kind, key = request.kind, request.key
        envelopes = request.records or ()
        if not is_provider_key(key) or not 1 <= len(envelopes) <= MAX_COPIES:
            return self._refuse(kind, key, Refusal.MALFORMED)
        if self.store.page(key, b"", 1).sealeds or not self.cache.has_room(key, sender, group, now):
            return Message(kind, key, records=())
        said = {contact.id: contact for contact in request.providers}
        farther, roots = self._nearer(key) // self.table.k, Roots()
        for envelope in envelopes:
            try:
                sealed = admit(envelope, network=self.network, now_us=now_us, key=key, roots=roots)
            except BadRecord as bad:
                return self._refuse(kind, key, bad.refusal)  # nobody hands over what he could not admit
            if self.revocations.condemning(sealed.record) is not None:
                continue
            provider = sealed.identity.provider
            contact = told(said.get(provider, Contact(provider, ())))
            self.cache.put(key, sealed, contact, sender=sender, group=group, farther=farther, now=now)
        return Message(kind, key, records=())

    def _copies(self, key: bytes, room: int, now: float) -> tuple[tuple[Sealed, ...], tuple[Contact, ...]]:
        """Those of a key, as many as fit."""
        sealeds, contacts = self.cache.get(key, now)
        where = {contact.id: contact for contact in contacts}
        fitting: list[Sealed] = []
        for sealed in sealeds:
            provider = where.get(sealed.identity.provider)
            room -= len(sealed.envelope) + RECORD_OVERHEAD + (contact_bytes(provider) if provider else 0)
            if room < 0:
                break
            fitting.append(sealed)
        told = {sealed.identity.provider for sealed in fitting}
        return tuple(fitting), tuple(contact for contact in contacts if contact.id in told)

    def _nearer(self, key: bytes) -> int:
        """How many peers I know that lie nearer to `key` than I do."""
        place = position(key)
        mine = position(self.me) ^ place
        return sum(position(contact.id) ^ place < mine for contact in self.table)

    def _add_provider(self, request: Message, sender: PeerId, group: str | None, now_us: int) -> Message:
        """Each record is judged alone; the reply names the reason of the first that was refused."""
        kind, key = request.kind, request.key
        if not is_provider_key(key) or not 1 <= len(request.records or ()) <= MAX_RECORDS_ADDED:
            return self._refuse(kind, key, Refusal.MALFORMED)
        addrs = next((c.addrs for c in request.providers if c.id == sender), ())
        contact = told(Contact(sender, addrs))
        refused, proofs, roots = "", list[bytes](), Roots()
        for envelope in request.records or ():
            if self.store.renew(key, envelope, contact):
                continue
            reason, proof = self._keep(key, key, envelope, contact, group, now_us, roots)
            refused = refused or ("" if reason is None else reason.value)
            if proof is not None and proof.envelope not in proofs and len(proofs) < MAX_PROOFS:
                proofs.append(proof.envelope)
        closer = self._closer(key, sender)  # who stores as it walks is on its way still
        return Message(kind, key, closer, records=tuple(proofs), refused=refused)

    def _get_value(self, key: bytes, sender: PeerId) -> Message:
        closer = self._closer(key, sender)
        held = self.store.page(key, b"", MAX_MESSAGE_BYTES // 2).sealeds
        newest = max(held, key=lambda sealed: sealed.seq, default=None)
        value = None if newest is None else Value(key, newest.envelope)
        return Message(Kind.GET_VALUE, key, closer, value=value, records=())

    def _put_value(self, request: Message, sender: PeerId, group: str | None, now_us: int) -> Message:
        """The reply echoes key and record, as the spec wants; a refused one comes back without the record."""
        kind, key, value = request.kind, request.key, request.value
        if value is None or value.key != key:
            return self._refuse(kind, key, Refusal.MALFORMED)
        if parse_value_key(key) is None:
            return self._refuse(kind, key, Refusal.FOREIGN_KEY)
        reason, _ = self._keep(key, None, value.value, Contact(sender, ()), group, now_us, Roots())
        if reason is not None:
            return Message(kind, key, records=(), refused=reason.value)
        return Message(kind, key, value=value, records=())

    def _keep(
        self,
        key: bytes,
        belongs: bytes | None,
        envelope: bytes,
        contact: Contact,
        group: str | None,
        now_us: int,
        roots: Roots,
    ) -> tuple[Refusal | Full | None, Sealed | None]:
        """Admit and store one record of `contact`; why not, counted, otherwise, and the proof if revoked."""
        reason: Refusal | Full | None
        proof: Sealed | None = None
        try:
            sealed = admit(envelope, network=self.network, now_us=now_us, key=belongs, roots=roots)
        except BadRecord as bad:
            reason = bad.refusal
        else:
            if isinstance(sealed.record, Revocation) and belongs is not None:
                reason = self._place(key, sealed, group)  # whoever brings it: it proves itself
            elif (proof := self._proof_against(key, sealed.record, now_us)) is not None:
                reason = Refusal.REVOKED
                self.revoke(proof, group or PRIVATE)
                self.store.add(key, proof, Contact(proof.record.provider), group)  # for those who read here
            elif sealed.identity.provider != contact.id:
                reason = Refusal.WRONG_OWNER  # only the provider may say where it is
            elif belongs is None and not _may_write(sealed, key):
                reason = Refusal.FOREIGN_KEY
            else:
                reason = self.store.add(key, sealed, contact, group)
                if reason is None:
                    self.cache.drop(key)
        if isinstance(reason, Full):
            self.full[reason] += 1
        elif reason is not None:
            self.refused[reason] += 1
        return reason, proof

    def revoke(self, sealed: Sealed, account: str | None) -> bool:
        """Keep nothing of a revoked key any more, and say why where it lay; whether that is remembered."""
        key = sealed.record.provider
        remembered = self.revocations.remember(sealed, account)
        self.cache.banish(key)
        for at, group in self.store.banish(key):
            if is_provider_key(at):
                self.store.add(at, sealed, Contact(key), group)
        return remembered

    def _place(self, key: bytes, sealed: Sealed, group: str | None) -> Refusal | Full | None:
        """Keep a revocation where it was told; remember it if it meets something here.

        Of two that one key has signed either will do: the first stays, and the other is acknowledged.
        """
        who = sealed.record.provider
        known = self.revocations.of(who)
        if known is None and (who == self.me or self.store.signs(who)):
            self.revoke(sealed, group or PRIVATE)
        first = known or self.store.find(key, sealed.identity) or sealed
        return self.store.add(key, kept_until(first, sealed.expires_us), Contact(who), group)

    def _proof_against(self, key: bytes, record: Record, now_us: int) -> Sealed | None:
        """Why `record` is not kept under `key`: its provider's or owner's key was revoked."""
        if isinstance(record, Revocation):
            return None
        proof = self.revocations.condemning(record)
        for signer in dict.fromkeys((record.provider, record.owner)):
            proof = proof or self.store.find(key, revocation_identity(signer))
        return None if proof is None else kept_until(proof, now_us + MAX_LIFETIME_US)
