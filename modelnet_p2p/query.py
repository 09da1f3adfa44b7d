"""What somebody looks for: which key to walk to, and which of the records there are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import (
    PUBLIC_NETWORK,
    Keys,
    ModelUri,
    check_model_name,
    check_network,
    check_tag,
    check_task,
    check_version,
    provider_key,
)
from modelnet_p2p.records import Card, Record


@dataclass(frozen=True, slots=True)
class Query:
    """All that is given must hold; None asks nothing."""

    task: str | None = None
    model: str | None = None  # the name, without a version
    version: str | None = None
    tag: str | None = None
    owner: PeerId | None = None
    digest: bytes | None = None  # 32 bytes
    provider: PeerId | None = None
    network: str = PUBLIC_NETWORK

    @classmethod
    def of_uri(cls, uri: ModelUri, network: str = PUBLIC_NETWORK) -> Self:
        return cls(
            model=uri.name,
            version=uri.version or None,
            owner=uri.owner,
            digest=uri.digest,
            provider=uri.provider,
            network=network,
        )

    def key_name(self) -> str:
        """The key that fewest records share: digest, model, provider, task, tag, in this order.

        Raises LocalError (bad-input) for a name that is none, and when nothing is asked.
        """
        self._check()
        keys = Keys(self.network)
        if self.digest is not None:
            return keys.digest(self.digest)
        if self.model is not None:
            return keys.model(self.model)
        if self.provider is not None:
            return keys.peer(self.provider)
        if self.task is not None:
            return keys.task(self.task)
        if self.tag is not None:
            return keys.tag(self.tag)
        raise LocalError(
            Code.BAD_INPUT, "nothing to look for", hint="give a task, a model, a tag, a digest or a provider"
        )

    def key(self) -> bytes:
        """That key as the multihash that GET_PROVIDERS carries."""
        return provider_key(self.key_name())

    def finds_cards(self) -> bool:
        """Whether the key holds cards (task, tag) and not offers."""
        return self.digest is None and self.model is None and self.provider is None

    def matches(self, record: Record) -> bool:
        """Whether `record` is meant. A card does not know all its offer's tags: it matches any tag
        that it cannot rule out, and its offer, once read, decides. Tombstones match like the offer
        that they take back; merge first, then match."""
        asked = (
            (self.network, record.network),
            (self.task, record.task),
            (self.model, record.name),
            (self.version, record.version),
            (self.owner, record.owner),
            (self.digest, record.digest),
            (self.provider, record.provider),
        )
        if any(wanted is not None and wanted != found for wanted, found in asked):
            return False
        return self.tag is None or isinstance(record, Card) or self.tag in record.tags

    def _check(self) -> None:
        check_network(self.network)
        for check, text in (
            (check_task, self.task),
            (check_model_name, self.model),
            (check_version, self.version),
            (check_tag, self.tag),
        ):
            if text is not None:
                check(text)
        if self.digest is not None and len(self.digest) != 32:
            raise LocalError(Code.BAD_INPUT, f"a digest has 32 bytes, not {len(self.digest)}")
