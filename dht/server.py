"""What this peer answers to the kad messages of others: a pure function of request, table and store.

Whoever asks, every reply carries our extension field (empty at least), stays within 64 KiB, and refuses
cleanly: `refused` says why, and each reason is counted. A request that calls for no answer (a stock peer's
ADD_PROVIDER, nonsense) gets None, as the other implementations do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from modelnet_p2p.dht.cache import MAX_RECORDS as MAX_COPIES
from modelnet_p2p.dht.cache import Cache
from modelnet_p2p.dht.keyspace import is_provider_key, position
from modelnet_p2p.dht.routing import RoutingTable
from modelnet_p2p.dht.store import BadCursor, Full, OfferStore, contact_bytes
from modelnet_p2p.errors import LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_MESSAGE_BYTES, Contact, Kind, Message, Value
from modelnet_p2p.names import check_model_name, check_version
from modelnet_p2p.records import BadRecord, Card, Refusal, Sealed, admit

MAX_KEY_BYTES = 256  # the longest value key of ours is 52 + 20 + 80 + 1 + 32 bytes
MAX_ADDRS_TOLD = 8  # of one contact in a reply: 30 contacts of 8 addresses are 12 KiB, 33 at the very worst
MAX_ADDR_TOLD_BYTES = 128  # the longest honest ones, relayed over DNS names, have about 100
MESSAGE_OVERHEAD = 512  # kind, key, cursor, field tags of one reply
VALUE_PREFIX = b"/modelnet/rec/"


def told(contact: Contact) -> Contact:
    """The contact as we pass it on: no more addresses than a reply has room for."""
    addrs = contact.addrs
    if len(addrs) <= MAX_ADDRS_TOLD and max(map(len, addrs), default=0) <= MAX_ADDR_TOLD_BYTES:
        return contact  # as nearly all are
    addrs = tuple(addr for addr in addrs if len(addr) <= MAX_ADDR_TOLD_BYTES)[:MAX_ADDRS_TOLD]
    return Contact(contact.id, addrs)


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
    return key == own and not isinstance(sealed.record, Card)


class KadServer:
    """The answering side of `/modelnet/kad/1.0.0`."""

    def __init__(self, me: PeerId, network: str, table: RoutingTable, store: OfferStore) -> None:
        self.me = me
        self.network = network
        self.table = table
        self.store = store
        self.cache = Cache()
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
                return self._get_providers(request, sender, now)
            case Kind.ADD_PROVIDER if request.cached:
                return self._add_copies(request, sender, sender_group, now, now_us)
            case Kind.ADD_PROVIDER:
                return self._add_provider(request, sender, sender_group, now_us)
            case Kind.GET_VALUE:
                return self._get_value(key, sender)
            case Kind.PUT_VALUE:
                return self._put_value(request, sender, sender_group, now_us)
        return None

    def is_close(self, key: bytes) -> bool:
        """Whether I am among the k closest to `key` of all the peers that I know."""
        mine, place = position(self.me), position(key)
        nearest = self.table.closest(place, self.table.k)
        return len(nearest) < self.table.k or mine ^ place < position(nearest[-1].id) ^ place

    def keep_own(self, key: bytes, sealeds: Sequence[Sealed], contact: Contact) -> bool:
        """Hold my own records too where I am among the k closest; whether all of them now lie here.

        They are never counted among the holders that a publish promises: those are other peers.
        """
        if not self.is_close(key):
            return False
        return not [reason for s in sealeds if (reason := self.store.add(key, s, told(contact))) is not None]

    def _closer(self, key: bytes, sender: PeerId) -> tuple[Contact, ...]:
        """Half as many again as k: with a fifth of them newly dead, k would hide the last of the k alive."""
        n = self.table.k + self.table.k // 2
        return tuple(told(contact) for contact in self.table.closest(key, n, exclude=sender))

    def _refuse(self, kind: Kind, key: bytes, reason: Refusal) -> Message:
        self.refused[reason] += 1
        return Message(kind, key, records=(), refused=reason.value)

    def _get_providers(self, request: Message, sender: PeerId, now: float) -> Message:
        """First page: closer peers too. Later pages: records alone, for the reader has the rest already.

        Copies are told only where nothing is held under the key, and as what they are.
        """
        kind, key = request.kind, request.key
        if not is_provider_key(key):
            return self._refuse(kind, key, Refusal.MALFORMED)
        closer = () if request.cursor else self._closer(key, sender)
        room = MAX_MESSAGE_BYTES - MESSAGE_OVERHEAD - sum(contact_bytes(contact) for contact in closer)
        try:
            page = self.store.page(key, request.cursor, room)
        except BadCursor:
            return self._refuse(kind, key, Refusal.MALFORMED)
        sealeds, contacts, cached = page.sealeds, page.contacts, False
        if not sealeds and not request.cursor:
            sealeds, contacts = self.cache.get(key, now)
            cached = bool(sealeds)
        records = tuple(sealed.envelope for sealed in sealeds)
        return Message(kind, key, closer, contacts, records=records, cursor=page.cursor, cached=cached)

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
        farther = self._nearer(key) // self.table.k
        for envelope in envelopes:
            try:
                sealed = admit(envelope, network=self.network, now_us=now_us, key=key)
            except BadRecord as bad:
                return self._refuse(kind, key, bad.refusal)  # nobody hands over what he could not admit
            provider = sealed.identity.provider
            contact = told(said.get(provider, Contact(provider, ())))
            self.cache.put(key, sealed, contact, sender=sender, group=group, farther=farther, now=now)
        return Message(kind, key, records=())

    def _nearer(self, key: bytes) -> int:
        """How many peers I know that lie nearer to `key` than I do."""
        place = position(key)
        mine = position(self.me) ^ place
        return sum(position(contact.id) ^ place < mine for contact in self.table)

    def _add_provider(self, request: Message, sender: PeerId, group: str | None, now_us: int) -> Message:
        kind, key = request.kind, request.key
        if not is_provider_key(key) or request.records is None or len(request.records) != 1:
            return self._refuse(kind, key, Refusal.MALFORMED)
        addrs = next((c.addrs for c in request.providers if c.id == sender), ())
        contact = told(Contact(sender, addrs))
        envelope = request.records[0]
        if self.store.renew(key, envelope, contact):
            return Message(kind, key, records=())
        reason = self._keep(key, key, envelope, contact, group, now_us)
        return Message(kind, key, records=(), refused="" if reason is None else reason.value)

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
        reason = self._keep(key, None, value.value, Contact(sender, ()), group, now_us)
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
    ) -> Refusal | Full | None:
        """Admit and store one record of `contact`; why not, counted, otherwise."""
        reason: Refusal | Full | None
        try:
            sealed = admit(envelope, network=self.network, now_us=now_us, key=belongs)
        except BadRecord as bad:
            reason = bad.refusal
        else:
            if sealed.identity.provider != contact.id:
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
        return reason
