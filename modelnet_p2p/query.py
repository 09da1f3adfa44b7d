"""What somebody looks for: which key to walk to, and which of the records there are meant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from shlex import quote
from typing import Self

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.expression import (
    MAX_KEYS,
    WILD,
    Expression,
    Index,
    Word,
    best,
    failing,
    keys_of,
    keys_of_owner,
    reasons,
    starred_places,
    uncovered,
)
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
    digest_text,
    parse_digest,
    provider_key,
)
from modelnet_p2p.records import Record
from modelnet_p2p.searching import parse_search

EXAMPLE_PLACE = "task:text-generation"  # of a hint


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
    where: Expression | None = None

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

    @classmethod
    def asked(
        cls,
        task: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        where: str | None = None,
        *,
        network: str = PUBLIC_NETWORK,
    ) -> Self:
        """What people and programs say: `model` is a name, `name@version` or a URI, `where` a search.

        Raises LocalError (bad-input).
        """
        for name, text in (("task", task), ("model", model), ("tag", tag), ("where", where)):
            if text is not None and not isinstance(text, str):
                words = f"{name} must be a string, not {type(text).__name__}"
                raise LocalError(Code.BAD_INPUT, words)
        query = cls(network=network) if model is None else cls.of_uri(ModelUri.parse(model), network)
        expression = None if where is None else parse_search(where)
        return replace(query, task=task, tag=tag, where=expression)

    def indexes(self) -> tuple[Index, ...]:
        """The keys under which all that is meant lies: those that fewest records share, mostly one.

        Digest, model, provider, owner, task, tag, in this order. Raises LocalError (bad-input) for a name
        that is none, when nothing is asked, and when nothing that is asked is a key.
        """
        self._check()
        named = (
            ("digest", self.digest and digest_text(self.digest)),
            ("model", self.model),
            ("provider", self.provider and self.provider.text),
            ("task", self.task),
            ("tag", self.tag),
        )
        asked = [frozenset([Index(kind, name)]) for kind, name in named if name]
        owned = None if self.owner is None else keys_of_owner(self.owner.text)
        keys = best([*asked, owned, None if self.where is None else keys_of(self.where)])
        if keys is None:
            raise _nowhere(self.where)
        if len(keys) > MAX_KEYS:
            raise LocalError(
                Code.BAD_INPUT,
                f"the search looks in {len(keys)} places at once, more than {MAX_KEYS}",
                hint="ask for fewer tasks, models or tags at once",
            )
        return tuple(sorted(keys, key=lambda key: (key.rank, key.name)))

    def key_name(self, index: Index | None = None) -> str:
        """The name of such a key in this network, by default of the first."""
        kind, name = index or self.indexes()[0]
        keys = Keys(self.network)
        match kind:
            case "digest":
                return keys.digest(parse_digest(name))
            case "model":
                return keys.model(name)
            case "provider":
                return keys.peer(PeerId.parse(name))
            case "owner":
                return keys.owner(PeerId.parse(name))
            case "task":
                return keys.task(name)
            case _:
                return keys.tag(name)

    def key(self, index: Index | None = None) -> bytes:
        """That key as the multihash that GET_PROVIDERS carries."""
        return provider_key(self.key_name(index))

    def finds_cards(self) -> bool:
        """Whether the first key holds cards (task, tag) and not offers."""
        return self.indexes()[0].holds_cards

    @property
    def sifts(self) -> bool:
        """Whether much of what lies under the keys may not be meant, so that more has to be read."""
        in_both = self.task is not None and self.tag is not None
        return in_both or self.version is not None or self.owner is not None or self.where is not None

    def matches(self, record: Record) -> bool:
        """Whether `record` is meant. A card matches all that its summary cannot rule out, and its offer, once
        read, decides. Tombstones match like the offer that they take back; merge first, then match."""
        return self.refusal(record) is None

    def surely_means(self, card: Record) -> bool:
        """Whether nothing is left open: its offer will be meant, if the card is true."""
        return self.where is None or self.where.test(card) is True

    def refusal(self, record: Record) -> str | None:
        """What of the question rules `record` out, None if nothing does."""
        asked = (
            ("network", self.network, record.network),
            ("task", self.task, record.task),
            ("model", self.model, record.name),
            ("version", self.version, record.version),
            ("owner", self.owner, record.owner),
            ("digest", self.digest, record.digest),
            ("provider", self.provider, record.provider),
        )
        for kind, wanted, found in asked:
            if wanted is not None and wanted != found:
                return kind
        if self.tag is not None and Word("tag", self.tag).test(record) is False:
            return "tag"
        if self.where is not None and self.where.test(record) is False:
            return failing(self.where, record)
        return None

    def reasons(self, record: Record) -> list[str]:
        """Why `record` is meant, a line for each part of the question."""
        given = (
            ("task", self.task),
            ("model", self.model),
            ("version", self.version),
            ("tag", self.tag),
            ("owner", self.owner),
            ("digest", self.digest and digest_text(self.digest)),
            ("provider", self.provider),
        )
        lines = [f"{kind}:{value}" for kind, value in given if value]
        return lines + (reasons(self.where, record) if self.where is not None else [])

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


def _nowhere(where: Expression | None) -> LocalError:
    """For a question that no key answers."""
    if where is None:
        return LocalError(
            Code.BAD_INPUT,
            "nothing to look for",
            hint="give a task, a model, a tag, a digest or an owner",
        )
    part = uncovered(where)
    about = "the search" if part == where else f"its part {str(part)!r}"
    words = (
        f"{about} does not say where to look: offers lie under task, model, tag, digest, provider and owner"
    )
    starred = starred_places(part)
    if starred:
        words += f", each by its whole name, and {starred[0]} has a star: that is no place"
    of_task = next((word for word in starred if word.attribute == "task"), None)
    if of_task is not None:
        meant = str(where).replace(str(of_task), EXAMPLE_PLACE)
        return LocalError(
            Code.BAD_INPUT, words, hint=f"name the task as a whole: modelnet-peer find {quote(meant)}"
        )
    every = starred and where == starred[0] and not starred[0].pattern.strip(WILD)
    meant = EXAMPLE_PLACE if every else f"{EXAMPLE_PLACE} and ({where})"
    return LocalError(Code.BAD_INPUT, words, hint=f"add one of these: modelnet-peer find {quote(meant)}")
