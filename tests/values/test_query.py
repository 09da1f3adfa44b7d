"""What is looked for: the key that fewest records share, and which records are meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import Keys, ModelUri, provider_key
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Sealed,
    card_of,
    seal_manifest,
    seal_offer,
    seal_tombstone,
    tombstone_of,
)


def test_the_key_walked_to_is_the_most_exact_one(bob: KeyPair) -> None:
    keys = Keys("public")
    everything = {
        "digest": bytes(32),
        "model": "acme/sentiment",
        "provider": bob.id,
        "task": "text-classification",
        "tag": "fast",
    }
    expected = (
        keys.digest(bytes(32)),
        keys.model("acme/sentiment"),
        keys.peer(bob.id),
        keys.task("text-classification"),
        keys.tag("fast"),
    )
    for name in expected:
        query = Query(**everything)  # type: ignore[arg-type]
        assert query.key_name() == name
        assert query.key() == provider_key(name)
        assert query.finds_cards() == ("/task/" in name or "/tag/" in name)
        del everything[next(iter(everything))]


def test_other_networks_have_other_keys() -> None:
    assert Query(model="m").key() != Query(model="m", network="lab").key()


@pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(version="2"),
        Query(model="No Such"),
        Query(task="Not A Task"),
        Query(model="m", tag="!"),
        Query(digest=b"short"),
        Query(model="m", network=""),
    ],
)
def test_questions_that_are_none(query: Query) -> None:
    with pytest.raises(LocalError) as caught:
        query.key()
    assert caught.value.code is Code.BAD_INPUT


def test_which_records_are_meant(
    sealed: Sealed, cards: list[Sealed], alice: KeyPair, bob: KeyPair, carol: KeyPair, now_us: int
) -> None:
    tombstone = seal_tombstone(tombstone_of(sealed, seq=sealed.seq, now_us=now_us), bob)
    matching = (
        Query(model="acme/sentiment"),
        Query(model="acme/sentiment", version="2", owner=alice.id, provider=bob.id),
        Query(task="text-classification", tag="small"),
        Query(digest=bytes(range(32))),
    )
    others = (
        Query(model="acme/sentimental"),
        Query(model="acme/sentiment", version="3"),
        Query(model="acme/sentiment", owner=bob.id),
        Query(provider=carol.id),
        Query(task="text-generation", tag="small"),
        Query(digest=bytes(32)),
        Query(model="acme/sentiment", network="lab"),
    )
    for record in (sealed.record, tombstone.record, cards[0].record):
        assert all(query.matches(record) for query in matching)
        assert not any(query.matches(record) for query in others)


def test_a_card_leaves_tags_to_its_offer_where_it_does_not_sum_it_up(
    sealed: Sealed, cards: list[Sealed], bob: KeyPair
) -> None:
    huge, small = (Query(task="text-classification", tag=tag) for tag in ("huge", "small"))
    plain = card_of(sealed, bob, summed_up=False)
    assert huge.matches(plain.record)
    assert small.matches(plain.record)
    assert not huge.matches(cards[0].record)
    assert small.matches(cards[0].record)
    assert not huge.matches(sealed.record)


def test_an_owner_is_found_under_its_own_key_and_among_what_it_serves(
    sealed: Sealed, alice: KeyPair, now_us: int
) -> None:
    keys = Keys("public")
    query = Query(owner=alice.id)
    assert [query.key_name(index) for index in query.indexes()] == [keys.peer(alice.id), keys.owner(alice.id)]
    assert Query.asked(where=f"owner:{alice.id}").indexes() == query.indexes()
    manifest = Manifest(alice.id, "echo", "x-test/echo", 1_900_000_000)
    envelope = seal_manifest(manifest, alice)
    own = seal_offer(OfferRecord(alice.id, "public", manifest, envelope, 1, now_us, now_us + 1), alice)
    for offer in (sealed, own):
        assert query.matches(offer.record)
        assert len(offer.keys & {query.key(index) for index in query.indexes()}) == 1


def test_a_uri_asks_for_all_that_it_names(alice: KeyPair, bob: KeyPair) -> None:
    uri = ModelUri("acme/sentiment", "2", alice.id, bytes(32), bob.id)
    assert Query.of_uri(uri) == Query(
        model="acme/sentiment", version="2", owner=alice.id, digest=bytes(32), provider=bob.id
    )
    assert Query.of_uri(ModelUri("echo")) == Query(model="echo")


def test_an_offers_line_is_the_contracts(
    sealed: Sealed, offer: OfferRecord, bob: KeyPair, sealed_with: Callable[..., Sealed]
) -> None:
    found = Offer(offer, sealed.envelope, ("/ip4/127.0.0.1/tcp/1",), State.ALIVE, 0.5, 0.25)
    line = found.to_map()
    assert set(line) == {
        *("model", "uri", "task", "provider", "owner", "addrs", "digest", "framework", "seq", "expires_unix"),
        *("state", "rtt_ms", "load", "inputs", "outputs"),
        *("precision", "parameters", "context_length", "languages", "tags", "licence", "family", "gives"),
        *("tier", "price"),
    }
    assert line["model"] == "acme/sentiment@2"
    assert line["provider"] == str(bob.id)
    assert line["state"] == "alive"
    assert line["digest"] == f"sha256:{bytes(range(32)).hex()}"
    assert line["expires_unix"] == offer.expires_us // 1_000_000
    assert line["outputs"] == [
        {"name": "scores", "kind": "tensor", "dtype": "float32", "shape": [None, 2]},
        {"name": "labels", "kind": "json", "dtype": None, "shape": None},
    ]
    uri = ModelUri.parse(found.uri)
    assert Query.of_uri(uri).matches(offer)
    assert (uri.owner, uri.digest, uri.provider) == (offer.owner, offer.digest, offer.provider)
