"""The models that this peer offers: loaded, announced, remembered across restarts, and withdrawn.

Brings together three rooms that know nothing of each other: serving (what runs), the publisher (what
the network is told) and the state (what survives kill -9). What is remembered is on disk before the
network is told: a promise that was made is kept after a crash.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from modelnet_p2p.errors import LocalError, ModelnetError, NotFound
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.node.serving.backends.contract import Description, Source
from modelnet_p2p.node.serving.drafting import draft_offer
from modelnet_p2p.node.serving.models import Models, Served
from modelnet_p2p.node.state import State
from modelnet_p2p.offers import Offer
from modelnet_p2p.records import BadRecord, Identity, OfferRecord, admit

log = logging.getLogger(__name__)

Notice = Callable[[str], None]


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
        self._highest = max(self._highest + 1, time.time_ns() // 1_000_000)
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
    ) -> None:
        self._key = key
        self._network = network
        self._models = models
        self._publisher = publisher
        self._sequences = sequences
        self._state = state
        self._identities: dict[str, Identity] = {}  # by model name: what of mine is published
        self._changing = trio.Lock()  # one publish or unpublish at a time: they touch disk, table and network

    async def publish(self, source: Source, notice: Notice, *, remember: bool = True) -> dict[str, object]:
        """Serve `source` and tell the network; the contract's `publish` object.

        Raises LocalError (the model cannot be loaded, the state not written), RemoteError (no majority).
        """
        async with self._changing:
            notice(f"loading {source.spec}")
            served = await self._models.add(source)
            draft = self._draft(served, self._sequences.take())
            before = self._identities.get(draft.name)
            self._identities[draft.name] = draft.identity
            if remember and self._state is not None:
                self._state.remember(draft.name, source.to_map(), draft.seq)
            if before is not None and before != draft.identity:
                await self._publisher.bury(self._publisher.entomb(before))
            notice(f"telling the network of {draft.name}")
            published = await self._publisher.publish(draft)
        return {
            **_report(draft),
            "holders": {"asked": published.asked, "stored": published.stored},
            "expires_unix": published.sealed.expires_us // 1_000_000,
        }

    async def rehearse(self, source: Source, notice: Notice) -> dict[str, object]:
        """What publishing `source` would say; the model is loaded and let go, nobody is told."""
        async with self._changing:
            notice(f"loading {source.spec}")
            draft = self._draft_of(await self._models.rehearse(source), source.tags, 0)
        holders = {"asked": 0, "stored": 0}
        return {**_report(draft), "holders": holders, "expires_unix": None, "dry_run": True}

    async def withdraw(self, model: str) -> dict[str, object]:
        """Serve `model` no longer and take its record back; the contract's `unpublish` object."""
        async with self._changing:
            name = ModelUri.parse(model).name
            identity = self._identities.pop(name, None)
            if identity is None:
                hint = "modelnet-peer status lists what it serves"
                raise NotFound(f"this peer does not serve {name!r}", hint=hint)
            await self._models.remove(name)
            tombstone = self._publisher.entomb(identity)
            if self._state is not None:
                expires_unix = tombstone.expires_us // 1_000_000
                self._state.forget(name, tombstone.seq, tombstone.envelope, expires_unix)
            buried = await self._publisher.bury(tombstone)
        return {
            "model": name,
            "withdrawn": True,
            "seq": tombstone.seq,
            "holders": {"asked": buried.asked, "stored": buried.stored},
        }

    async def restore(self) -> None:
        """Serve again what an earlier run had published, and tell of what it had withdrawn."""
        if self._state is None:
            return
        self._state.settle(time.time())
        for model, owed in list(self._state.withdrawn.items()):
            await self._restore_tombstone(model, owed.envelope)
        for model, fields in list(self._state.published.items()):
            await self._restore_model(model, fields)

    def lines(self) -> list[dict[str, object]]:
        """The models of the contract's `status` object."""
        return [self._line(served) for served in self._models.all().values()]

    def _line(self, served: Served) -> dict[str, object]:
        name, version = served.description.name, served.description.version
        identity = self._identities.get(name)
        seq = self._publisher.seq(identity) if identity else None
        return {"model": f"{name}@{version}" if version else name, "seq": seq, **served.stats()}

    def _draft(self, served: Served, seq: int) -> OfferRecord:
        return self._draft_of(served.description, served.source.tags, seq)

    def _draft_of(self, description: Description, tags: Sequence[str], seq: int) -> OfferRecord:
        now = int(time.time())
        return draft_offer(description, tags, key=self._key, network=self._network, seq=seq, now_unix=now)

    async def _restore_tombstone(self, model: str, envelope: bytes) -> None:
        try:
            sealed = admit(envelope, network=self._network, now_us=time.time_ns() // 1000)
            await self._publisher.bury(sealed)
        except BadRecord as bad:
            log.error("the withdrawal of %s cannot be told again: %s", model, bad)
        except ModelnetError as error:
            log.warning("the withdrawal of %s is not told yet: %s", model, error.message)

    async def _restore_model(self, model: str, fields: Mapping[str, object]) -> None:
        try:
            source = Source.from_map(fields)
        except ValueError as error:
            log.error("cannot serve %s again: its remembered source is damaged: %s", model, error)
            return
        try:
            await self.publish(source, _quiet, remember=False)
        except LocalError as error:
            log.error("cannot serve %s again: %s", model, error.message)
        except ModelnetError as error:
            log.warning("%s is served, but the network is not told yet: %s", model, error.message)


def _report(draft: OfferRecord) -> dict[str, object]:
    offer = Offer(draft, b"")
    return {
        "model": offer.model,
        "uri": offer.uri,
        "provider": offer.provider,
        "owner": offer.owner,
        "digest": offer.digest,
        "task": offer.task,
        "seq": draft.seq,
    }


def _quiet(line: str) -> None:
    log.debug("%s", line)
