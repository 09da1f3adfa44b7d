"""The models that this peer offers: loaded, announced, remembered across restarts, and withdrawn.

Brings together three rooms that know nothing of each other: serving (what runs), the publisher (what
the network is told) and the state (what survives kill -9). What is remembered is on disk before the
network is told: a promise that was made is kept after a crash.
"""

from __future__ import annotations

import logging
import time
from weakref import WeakValueDictionary

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.notices import Notice
from modelnet_p2p.node.overlay.announcing import Published
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.reports import idle_line, published_line
from modelnet_p2p.node.revoking import Revoking
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.drafting import draft_offer
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.policy.recent import Pace, merged
from modelnet_p2p.node.serving.remembering import Remembered
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import is_address
from modelnet_p2p.node.weights.hashing import OnDisk
from modelnet_p2p.node.weights.sharing import Sharing
from modelnet_p2p.records import Identity, OfferRecord, Sealed, next_seq
from modelnet_p2p.tasks import is_known, meant

log = logging.getLogger(__name__)


MAX_ENDED = 256  # models that a revocation ended, of which `status` tells


class Sequences:
    """Sequence numbers for this peer's records: above all that it ever took.

    With a state they are on disk before they are used; without, the peer's key is as new as its clock.
    """

    def __init__(self, state: State | None) -> None:
        self._state = state
        self._highest = 0

    def take(self) -> int:
        if self._state is not None:
            return self._state.take_seq(time.time())
        self._highest = next_seq(self._highest, time.time_ns() // 1000)
        return self._highest


class Hosting:
    """Publishes and withdraws this peer's models."""

    def __init__(
        self,
        key: KeyPair,
        network: str,
        models: Models,
        publisher: Publisher,
        sequences: Sequences,
        state: State | None,
        revoking: Revoking,
        sharing: Sharing,
    ) -> None:
        self._key = key
        self._revoking = revoking
        self._sharing = sharing
        self._network = network
        self._models = models
        self._publisher = publisher
        self._sequences = sequences
        self._state = state
        self._identities: dict[str, Identity] = {}  # by model name: what of mine is published
        self.unrestored: dict[str, str] = {}  # by model name: "loading", or why it is not served again
        self.ended: dict[str, dict[str, object]] = {}  # by model name: what a revocation ended in this run
        # one change of a model at a time: they touch disk, table and network
        self._changing = WeakValueDictionary[str, trio.Lock]()

    @property
    def me(self) -> str:
        """This peer's id."""
        return self._key.id.text

    def _change(self, name: str) -> trio.Lock:
        return self._changing.setdefault(name, trio.Lock())

    async def publish(
        self,
        source: Source,
        notice: Notice,
        *,
        remember: bool = True,
        remembered: Remembered | None = None,
    ) -> dict[str, object]:
        """Serve `source` and tell the network; the contract's `publish` object.

        What is `remembered` of it is told before it is loaded. Raises LocalError (the model cannot be loaded,
        the state not written), RemoteError (no majority).
        """
        self._revoking.check(self._key.id, "this peer's own key")
        notice(f"loading {source.spec}")
        seq = self._sequences.take()  # first: a full disk is found out before anything is loaded
        served = await self._models.add(source, remembered)
        name = served.description.name
        try:
            shared = await self._shared(served, notice)
            async with self._change(name):
                if self._models.get(name) is not served:
                    raise LocalError(Code.IN_USE, f"{name} was published again, or withdrawn, meanwhile")
                # nobody is told, and nothing kept, of what cannot be told and kept
                draft = self._draft(served, seq)
                self._check_keys(draft.owner)
                self._publisher.check(draft)
                before = self._identities.get(name)
                replaced = before is not None and before != draft.identity
                tombstone = self._publisher.entomb(before) if before is not None and replaced else None
                if remember:
                    self.keep(served, seq)
                elif self._state is not None:
                    self._state.revive(name)
                self._identities[draft.name] = draft.identity
                self._sharing.put(name, shared)
                self.unrestored.pop(draft.name, None)
                self.ended.pop(draft.name, None)
                notice(f"telling the network of {draft.name}")
                published = await self._tell(draft, tombstone)
        except (LocalError, trio.Cancelled):
            if name not in self._identities and self._models.get(name) is served:
                with trio.CancelScope(shield=True):
                    await self._models.remove(name)
            raise
        return {
            **published_line(draft),
            **remarks(served.description, source, served.in_place_of),
            "holders": {"asked": published.asked, "stored": published.stored},
            "expires_unix": published.sealed.expires_us // 1_000_000,
        }

    def keep(self, served: Served, seq: int) -> None:
        """Have on disk that it is published, and what it is; raises LocalError if that cannot be written."""
        if self._state is not None:
            found = served.remembered
            described = None if found is None else found.to_map()
            self._state.remember(served.description.name, served.source.to_map(), seq, described)

    async def _shared(self, served: Served, notice: Notice) -> OnDisk | None:
        """The files that this model shares, None for none; raises LocalError where it cannot."""
        if not served.source.share_weights:
            return None
        name = served.description.name
        notice(f"hashing the weights of {name}")
        found = await self._sharing.examine(served.description)
        count = len(found.artifact.files)
        notice(
            f"sharing the weights of {name} with whoever asks:"
            f" {count} file{'' if count == 1 else 's'}, {found.size:,} bytes"
        )
        return found

    async def _tell(self, draft: OfferRecord, tombstone: Sealed | None) -> Published:
        """Publish `draft`, and take back what it replaces: both at once, for either may fail or be left."""
        trouble: RemoteError | None = None
        async with trio.open_nursery() as nursery:
            if tombstone is not None:
                nursery.start_soon(self._bury, tombstone)
            try:
                published = await self._publisher.publish(draft)
            except RemoteError as error:
                trouble = error
        if trouble is not None:
            self._check_keys(draft.owner)  # the holders may have proven why
            raise trouble
        return published

    def _check_keys(self, owner: PeerId) -> None:
        """Raises LocalError (forbidden) if nobody would take what these keys seal."""
        self._revoking.check(self._key.id, "this peer's own key")
        self._revoking.check(owner, "the key of its owner")

    async def _bury(self, tombstone: Sealed) -> None:
        try:
            await self._publisher.bury(tombstone)
        except RemoteError as error:
            log.warning("the withdrawal of %s is not told yet: %s", tombstone.identity.name, error.message)

    async def rehearse(self, source: Source, notice: Notice) -> dict[str, object]:
        """What publishing `source` would say; the model is loaded and let go, nobody is told."""
        notice(f"loading {source.spec}")
        description = await self._models.rehearse(source)
        draft = self._draft_of(description, source, 0)
        self._publisher.check(draft)
        before = self._models.get(draft.name)
        return {
            **published_line(draft),
            **remarks(description, source, None if before is None else before.source),
            "holders": {"asked": 0, "stored": 0},
            "expires_unix": None,
            "dry_run": True,
        }

    async def withdraw(self, model: str) -> dict[str, object]:
        """Serve `model` no longer and take its record back; the contract's `unpublish` object.

        Raises NotFound, RemoteError as `bury` does, LocalError where the disk takes no withdrawal: then it is
        served no more, and nobody is told.
        """
        uri = ModelUri.parse(model)
        name = uri.name
        async with self._change(name):
            identity = self._identities.get(name)
            if identity is None and name in self.unrestored and self._state is not None:
                seq = self._state.last_seq(name)
                self._state.drop(name)
                del self.unrestored[name]
                return {"model": name, "withdrawn": True, "seq": seq, "holders": {"asked": 0, "stored": 0}}
            if identity is None or not _is_meant(uri, identity):
                hint = "modelnet-peer status lists what it serves"
                raise NotFound(f"this peer does not serve {model!r}", hint=hint)
            try:
                tombstone = self._publisher.entomb(identity)
                if self._state is not None:
                    expires_unix = tombstone.expires_us // 1_000_000
                    self._state.forget(name, tombstone.seq, tombstone.envelope, expires_unix)
            except LocalError as error:
                raise await self._let_go(name, identity, error) from error
            del self._identities[name]
            self._sharing.put(name, None)
            await self._models.remove(name)
            buried = await self._publisher.bury(tombstone)
        return {
            "model": name,
            "withdrawn": True,
            "seq": tombstone.seq,
            "holders": {"asked": buried.asked, "stored": buried.stored},
        }

    async def _let_go(self, name: str, identity: Identity, error: LocalError) -> LocalError:
        """Serve `name` no longer though its withdrawal cannot be kept; what to say of it.

        A withdrawal needs a sequence number on disk; to remove what is there needs no room. Where that cannot
        be done either, all stays as it was, for it would be back after the next start. So does a server's
        model, which its keeper would publish again.
        """
        if self._state is None or name not in self._state.published:
            return error
        try:
            self._state.drop(name)
        except LocalError:
            return error
        self._publisher.abandon(identity)
        del self._identities[name]
        self._sharing.put(name, None)
        await self._models.remove(name)
        hint = (
            f"its record expires by itself; or make room, then publish and unpublish {name} to take it back"
        )
        words = f"{name} is served no more, but the network cannot be told: {error.message}"
        return LocalError(error.code, words, hint=hint)

    async def give_up(self, served: Served, why: str) -> None:
        """It cannot be served as it was announced: take that back; it stays remembered for the next start."""
        name = served.description.name
        tombstone = None
        async with self._change(name):
            identity = self._identities.get(name)
            if self._models.get(name) is not served or identity is None:
                return  # it was withdrawn, or published again, meanwhile
            try:
                tombstone = self._publisher.entomb(identity)
            except LocalError as error:
                log.error("the record of %s stays until it expires: %s", name, error.message)
                self._publisher.abandon(identity)
            del self._identities[name]
            self._sharing.put(name, None)
            await self._models.remove(name)
            self.lost(name, why)
        if tombstone is not None:
            await self._bury(tombstone)

    def lost(self, model: str, why: str) -> None:
        """What was published before is not served now."""
        self.unrestored[model] = "failed"
        log.error("cannot serve %s again: %s (to forget it: modelnet-peer unpublish %s)", model, why, model)

    async def disown(self, revoked: PeerId) -> tuple[list[str], list[bytes]]:
        """Serve no more what a revoked key has sealed; which models these were, and where they lay.

        No tombstone follows: holders that have heard of it keep neither.
        """
        names: list[str] = []
        keys: dict[bytes, None] = {}
        for name, identity in list(self._identities.items()):
            if revoked not in (identity.provider, identity.owner):
                continue
            async with self._change(name):
                if self._identities.get(name) != identity:
                    continue  # it was withdrawn, or is another's, by now
                names.append(name)
                self._note_end(identity, revoked)
                keys.update(dict.fromkeys(self._publisher.abandon(identity)))
                del self._identities[name]
                self._sharing.put(name, None)
                await self._models.remove(name)
                try:
                    if self._state is not None:
                        self._state.drop(name)
                except LocalError as error:  # it is refused when it is published again
                    log.error("%s is served no more, but still remembered: %s", name, error.message)
        return names, list(keys)

    def _note_end(self, identity: Identity, revoked: PeerId) -> None:
        """To be told by `status` until it is published again: it is in no other list any more."""
        name, version = identity.name, identity.version
        if len(self.ended) >= MAX_ENDED:
            del self.ended[next(iter(self.ended))]
        self.ended[name] = {
            "model": f"{name}@{version}" if version else name,
            "ended_unix": int(time.time()),
            **(self._revoking.fate(revoked) or {"revoked": revoked.text}),
        }

    def lines(self) -> list[dict[str, object]]:
        """The models of the contract's `status` object; those not yet served again after them."""
        waiting = [idle_line(name, state) for name, state in self.unrestored.items()]
        return [self._line(served) for served in self._models.all().values()] + waiting

    def pace(self) -> Pace:
        """How quickly all of them together answer, of late."""
        return merged([served.recent for served in self._models.all().values()], trio.current_time())

    def names(self) -> list[str]:
        """Of the models that are published here."""
        return [*self._identities, *self.unrestored]

    def spec_of(self, name: str) -> str | None:
        """Where the model of that name comes from; None if there is none."""
        served = self._models.get(name)
        if served is not None:
            return served.source.spec
        return (
            str(self._state.published[name].get("spec")) if name in self.unrestored and self._state else None
        )

    def _line(self, served: Served) -> dict[str, object]:
        name, version = served.description.name, served.description.version
        identity = self._identities.get(name)
        seq = self._publisher.seq(identity) if identity else None
        full = f"{name}@{version}" if version else name
        recent = served.recent
        return {
            "model": full,
            "state": served.state,
            **({"upstream": spec} if is_address(spec := served.source.spec) else {}),
            "seq": seq,
            **served.stats(),
            **recent.pace(trio.current_time()).to_map(),
            "failing": recent.failing,
            "failed_with": recent.words or None,
        }

    def _draft(self, served: Served, seq: int) -> OfferRecord:
        return self._draft_of(served.description, served.source, seq)

    def _draft_of(self, description: Description, source: Source, seq: int) -> OfferRecord:
        return draft_offer(
            description,
            source.tags,
            source.terms,
            key=self._key,
            network=self._network,
            seq=seq,
            now_unix=int(time.time()),
            shares_weights=source.share_weights,
        )


def remarks(description: Description, source: Source, before: Source | None) -> dict[str, object]:
    """What its publisher should know beside: whose place it takes, and what is odd about it."""
    notes = [*source.notes, *description.notes]
    if source.task is None and not is_known(description.task):
        notes.append(
            f"{description.task!r}, its task, is none that others search for: {meant(description.task)}"
        )
    replaces = None if before is None else before.told_beside(source)
    if before is not None and not source.is_like(before):
        notes.append(f"--model NAME keeps both: this one as NAME, {replaces} as {description.name}")
    return {"replaces": replaces, "notes": notes}


def _is_meant(uri: ModelUri, identity: Identity) -> bool:
    """Whether whatever the URI says beside the name fits this offer."""
    return (
        uri.version in ("", identity.version)
        and uri.owner in (None, identity.owner)
        and uri.provider in (None, identity.provider)
    )
