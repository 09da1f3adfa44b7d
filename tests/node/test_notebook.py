"""What a notebook and a prompt show of offers, whose text is a stranger's."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.swarm.notebook import MAX_ROWS, Offers
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Manifest, OfferRecord, seal_manifest

ALICE = KeyPair(b"alice".ljust(32, b"."))
EVIL = '<img src=x onerror="alert(1)">&\x1b[2J\n\u202egpj'


def offer(name: str = "acme/sentiment", task: str = "text-classification") -> Offer:
    manifest = Manifest(owner=ALICE.id, name="acme/sentiment", task="text-classification", issued_unix=1)
    record = OfferRecord(
        provider=ALICE.id,
        network="public",
        manifest=replace(manifest, name=name, task=task),  # as if some check had let it through
        manifest_envelope=seal_manifest(manifest, ALICE),
        seq=1,
        issued_us=1,
        expires_us=2,
    )
    return Offer(record, b"envelope", ("/ip4/127.0.0.1/tcp/1",), State.ALIVE, rtt_ms=1.25, load=0.5)


class Reader(HTMLParser):
    """What a browser would see: the tags, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def test_a_notebook_shows_a_table_of_what_matters() -> None:
    page = read(Offers([offer()])._repr_html_())
    assert page.cells[:6] == ["model", "task", "provider", "state", "rtt ms", "load"]
    assert page.cells[6:] == ["acme/sentiment", "text-classification", ALICE.id.short, "alive", "1.2", "50%"]
    assert page.tags.count("tr") == 2


def test_a_strangers_text_stays_text() -> None:
    page = read(Offers([offer(EVIL, EVIL)])._repr_html_())
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.cells[6] == '<img src=x onerror="alert(1)">&�[2J��gpj'


def test_a_prompt_shows_lines_and_no_escape_sequences() -> None:
    shown = repr(Offers([offer(EVIL), offer()]))
    assert shown.splitlines()[0] == "2 offers"
    assert len(shown.splitlines()) == 3
    assert shown.replace("\n", "").isprintable()
    assert "envelope" not in shown


@pytest.mark.parametrize("show", [repr, Offers._repr_html_])
def test_a_long_list_and_a_long_name_are_cut(show: object) -> None:
    assert callable(show)
    many = Offers([offer("n" * 100_000)] * (MAX_ROWS + 7))
    shown = show(many)
    assert "and 7 more" in shown
    assert len(shown) < 50_000


def test_nothing_found_says_so() -> None:
    assert repr(Offers()) == "no offers"
    assert "no offers" in Offers()._repr_html_()


def test_it_is_a_list() -> None:
    offers = Offers([offer(), offer()])
    assert offers == [offer(), offer()]
    assert offers[0].model == "acme/sentiment"
