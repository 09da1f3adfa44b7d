"""The end of a key, carried through all rooms of a peer: told to the network, its models served no more.

Which keys are over, and what is remembered of that, is `node/revoking.py`; this page acts on it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import Keys, check_model_name, provider_key
from modelnet_p2p.node.deadlines import within
from modelnet_p2p.node.disk.revocations import MAX_KEYS
from modelnet_p2p.node.hosting import Hosting
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.node.revoking import Revoking, fate_of, told_of
from modelnet_p2p.query import Query
from modelnet_p2p.records import MAX_SEQ as END_OF_TIME_US
from modelnet_p2p.records import BadRecord, Revocation, Sealed, admit, kept_until, revocation_keys

log = logging.getLogger(__name__)

MAX_MODELS = 64  # of one key that are sought before it is revoked: each is a walk
MAX_OFFERS = 64  # of each of them that are looked at


class Ending:
    """One peer's."""

    def __init__(
        self,
        overlay: Overlay,
        revoking: Revoking,
        finder: Finder,
        publisher: Publisher,
        hosting: Hosting,
        owners: Owners,
        nursery: trio.Nursery,
    ) -> None:
        self._overlay = overlay
        self._revoking = revoking
        self._finder = finder
        self._publisher = publisher
        self._hosting = hosting
        self._owners = owners
        self._nursery = nursery
        revoking.on_learnt(self._on_learnt)
        overlay.answering.on_answered = revoking.look
        finder.revoking = revoking
        publisher.on_revoked = self._hear

    async def revoke(self, envelope: bytes, models: Sequence[str], timeout: float) -> dict[str, object]:
        """`Peer.revoke`."""
        sealed = self._opened(envelope)
        key = sealed.record.provider
        names = [check_model_name(model) for model in models]
        with within(timeout, "the search for what the key has sealed"):
            names, keys = await self._sealed_by(key, names)
        sealed = self._revoking.of(key) or sealed  # the first one stands
        told = self._revoking.tell(sealed, keys)
        published = await self._publisher.revoke(_endless(sealed), told)
        return {
            **fate_of(sealed),
            "models": names,
            "keys": len(told),
            "holders": {"asked": published.asked, "stored": published.stored},
        }

    async def why(self, query: Query, what: str) -> NotFound | None:
        """Why nobody offers `what`, if it is because of a revoked key; the owner's key is asked about."""
        owner = query.owner or self._owners.meant(query)
        if owner is not None and self._revoking.of(owner) is None:
            tuning = self._overlay.tuning
            with trio.move_on_after(tuning.dial_timeout + tuning.request_timeout):
                await self._finder.read([provider_key(Keys(self._overlay.name).owner(owner))], 1)
        return self._revoking.error(query, what)

    def keep_under(self, directory: Path) -> None:
        """`Peer.keep_revocations_under`."""
        for kept in self._revoking.keep_under(directory):
            self._nursery.start_soon(self._tell, kept.sealed, kept.told)

    async def _sealed_by(self, key: PeerId, models: Sequence[str]) -> tuple[list[str], list[bytes]]:
        """Models with a seal of `key`, as far as this peer can find any, and the DHT keys where they lie."""
        network = self._overlay.name
        kept = [sealed.identity for _, sealed in self._overlay.server.store.records()]
        used = [known.name for known in self._owners.all() if known.owner == key]
        names = dict.fromkeys([*models, *used, *(i.name for i in kept if i.name and key in i[:2])])
        queries = [Query(model=name, network=network) for name in names][:MAX_MODELS]
        queries += [Query(provider=key, network=network), Query(owner=key, network=network)]
        found = [offer for query in queries for offer in await self._finder.offers(query, MAX_OFFERS)]
        mine = [offer.record for offer in found if key in offer.record.identity[:2]]
        names |= dict.fromkeys(record.name for record in mine)
        keys = Keys(network)
        places = [*revocation_keys(network, key), *map(keys.model, names)]
        for record in mine:
            places += [*record.key_names(), keys.task(record.task), *map(keys.tag, record.tags)]
        return list(names), list(dict.fromkeys(map(provider_key, places)))[:MAX_KEYS]

    def _on_learnt(self, sealed: Sealed) -> None:
        if not self._nursery.cancel_scope.cancel_called:  # a late answer to a peer that is leaving
            self._nursery.start_soon(self._disown, sealed)

    async def _disown(self, sealed: Sealed) -> None:
        """Stop serving what a revoked key has sealed, say so, and tell it where it lay."""
        key = sealed.record.provider
        if key == self._overlay.me:
            self._revoking.notices.say(
                f"warning: this peer's own key was revoked {told_of(sealed)}: whoever has heard of it takes"
                " none of its records; be another peer: modelnet-peer join --home DIR"
            )
        names, keys = await self._hosting.disown(key)
        for name in names:
            self._revoking.notices.say(
                f"warning: {name} is withdrawn: the key {key}, which sealed it, was revoked {told_of(sealed)}"
            )
        if keys:
            try:
                keys = list(self._revoking.tell(sealed, keys))
            except LocalError as error:
                log.error("after a restart the end of %s is not told again: %s", key.short, error.message)
            await self._tell(sealed, keys)

    async def _tell(self, sealed: Sealed, keys: Sequence[bytes]) -> None:
        try:
            await self._publisher.revoke(_endless(sealed), keys)
        except RemoteError as error:
            log.warning("the end of %s is not told yet: %s", sealed.record.provider.short, error.message)

    def _hear(self, proofs: Sequence[bytes], signers: set[PeerId]) -> None:
        self._revoking.hear(proofs, signers, self._overlay.wall_us())

    def _opened(self, envelope: bytes) -> Sealed:
        """Raises LocalError (bad-input) for bytes that others would refuse."""
        try:
            sealed = admit(envelope, network=self._overlay.name, now_us=self._overlay.wall_us())
        except BadRecord as error:
            words = f"no revocation that others would take: {error.message}"
            raise LocalError(Code.BAD_INPUT, words, hint="modelnet-peer owner revoke --help") from error
        if not isinstance(sealed.record, Revocation):
            raise LocalError(Code.BAD_INPUT, "these bytes are a record, and no revocation")
        return sealed


def _endless(sealed: Sealed) -> Sealed:
    """As it is told: again and again, without an end."""
    return kept_until(sealed, END_OF_TIME_US)
