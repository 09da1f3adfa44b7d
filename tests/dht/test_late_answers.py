"""A store goes on after its end, as late answers come: what one peer can make of that, and what it cannot."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import MAX_ASKED, MAX_CLOSER, MAX_KNOWN, Done
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_RECORDS_ADDED, Contact, Kind, Message
from modelnet_p2p.tuning import TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person

PEERS = [Contact(PeerId(b"peer%d" % i), (b"addr",)) for i in range(5)]


def sends(walk: Store, now: float) -> list[Send]:
    found = []
    while isinstance(step := walk.poll(now), Send):
        found.append(step)
    return found


def acknowledge(walk: Store, send: Send, now: float, closer: tuple[Contact, ...] = ()) -> None:
    walk.on_reply(send.contact.id, Message(send.message.kind, closer=closer, records=()), now)


def ended_but_for_one(walk: Store) -> tuple[Send, float]:
    """All but one of those that it asks answer; who was late when it ended, and when that was."""
    late, *prompt = sends(walk, 0.0)
    now = 0.0
    while prompt:
        for send in prompt:
            acknowledge(walk, send, now)
        prompt = sends(walk, now)
    while walk.poll(now) != Done():
        now += TEST.patience / 4
        for send in sends(walk, now):
            acknowledge(walk, send, now)
    assert walk.unfinished
    return late, now


def test_a_holder_that_acknowledges_as_a_late_one_answers_is_sent_each_message_once(
    alice: Person, task_key: bytes
) -> None:
    """Both answers are read before the walk is asked what next; there are three messages for each."""
    cards = [alice.card(f"alice/model{number}") for number in range(2 * MAX_RECORDS_ADDED + 1)]
    walk = Store(task_key, cards, alice.contact, PEERS[:4], tuning=TEST, ours=lambda _: True)
    late, *prompt = sends(walk, 0.0)
    for send in prompt:
        acknowledge(walk, send, 0.0)
    now, seconds = 0.0, list[Send]()
    while not seconds:
        now += TEST.patience / 4
        seconds = sends(walk, now)
    for send in (*seconds, late):
        acknowledge(walk, send, now)
    second, third = cards[MAX_RECORDS_ADDED : 2 * MAX_RECORDS_ADDED], cards[2 * MAX_RECORDS_ADDED :]
    thirds = sends(walk, now)
    told = {send.contact.id: send.message.records for send in thirds}
    assert len(thirds) == len(told) == 4
    assert told.pop(late.contact.id) == tuple(card.envelope for card in second)
    assert set(told.values()) == {tuple(card.envelope for card in third)}


def test_a_chain_of_late_answers_leads_a_store_on_no_longer_than_one_request_may_take(
    alice: Person, model_key: bytes
) -> None:
    """Each names one that lies nearer, and answers in the last moment; an honest site is through at once."""
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST, ours=lambda _: True)
    late, ended = ended_but_for_one(walk)
    place = position(model_key)
    gang = [Contact(PeerId(b"gang%d" % number), (b"addr",)) for number in range(MAX_ASKED + 50)]
    gang.sort(key=lambda one: position(one.id) ^ place, reverse=True)
    now, open_, told = ended, [late], list[PeerId]()
    for one in gang:
        now += 0.9 * TEST.request_timeout
        acknowledge(walk, open_.pop(), now, (one,))
        more = sends(walk, now)
        if not more:
            break
        [send] = more
        open_ = more
        told.append(send.contact.id)
    assert not walk.unfinished
    assert now - ended < 3 * TEST.request_timeout
    assert len(told) <= 2


def test_a_late_answer_full_of_strangers_costs_no_more_than_any_walk(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST, ours=lambda _: True)
    late, now = ended_but_for_one(walk)
    strangers = (Contact(PeerId(b"stranger%d" % number), (b"addr",)) for number in count())
    waiting, told = [late], Counter[PeerId]()
    while waiting:
        acknowledge(walk, waiting.pop(), now, tuple(next(strangers) for _ in range(MAX_CLOSER)))
        for send in sends(walk, now):
            waiting.append(send)
            told[send.contact.id] += 1
    assert walk.poll(now) == Done()
    assert not walk.unfinished
    assert set(told.values()) == {1}
    assert walk.lookup.asked <= MAX_ASKED
    assert len(walk.lookup._known) <= MAX_KNOWN


def test_who_answers_too_late_to_lead_anywhere_is_told_all_the_same(alice: Person, model_key: bytes) -> None:
    walk = Store(model_key, [alice.offer()], alice.contact, PEERS, tuning=TEST)
    late, ended = ended_but_for_one(walk)
    now = ended + 2 * TEST.request_timeout
    acknowledge(walk, late, now, (Contact(PeerId(b"another"), (b"addr",)),))
    [send] = sends(walk, now)
    assert (send.contact, send.message.kind) == (late.contact, Kind.ADD_PROVIDER)
    acknowledge(walk, send, now)
    assert walk.poll(now) == Done()
    assert not walk.unfinished
