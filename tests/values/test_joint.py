"""One signature over many records: each stands alone, and none can take another's place."""

from __future__ import annotations

import pytest

from modelnet_p2p.envelope import (
    JOINT_TYPE,
    MAX_TRIED,
    Roots,
    _parse,
    by_place,
    open_envelope,
    seal,
    seal_jointly,
)
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.joint import HASH_BYTES, MAX_LEAVES, grow, leaf_hash
from modelnet_p2p.pb.envelope_pb2 import Envelope
from modelnet_p2p.records import BadRecord, Refusal, admit, card_of, cards_of_all, seal_offer, seals
from samples import NOW_US, model_of, root_of

TYPE = b"/modelnet/test/1"


def contents(count: int) -> list[tuple[bytes, bytes]]:
    return [(TYPE, b"content %d" % number) for number in range(count)]


def refusal(data: bytes) -> Refusal:
    with pytest.raises(BadRecord) as caught:
        open_envelope(data, max_bytes=4096, roots=Roots())
    return caught.value.refusal


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[PeerId]:
    """Whose signatures were checked."""
    found: list[PeerId] = []
    verify = PeerId.verify

    def counted(self: PeerId, message: bytes, signature: bytes) -> bool:
        found.append(self)
        return verify(self, message, signature)

    monkeypatch.setattr(PeerId, "verify", counted)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 100, MAX_LEAVES])
def test_each_leaf_leads_to_the_root_by_its_own_path_alone(count: int) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    root, paths = grow(leaves)
    assert [root_of(leaf, path) for leaf, path in zip(leaves, paths, strict=True)] == [root] * count
    assert max(map(len, paths)) == HASH_BYTES * (count - 1).bit_length()
    for leaf, path in zip(leaves, paths[1:] + paths[:1], strict=True):
        assert count == 1 or root_of(leaf, path) != root
    assert root_of(leaf_hash(b"another"), paths[0]) != root


def test_a_pair_is_no_leaf() -> None:
    """Else who knows the hashes of a tree could show two of them for a record."""
    one, other = sorted((leaf_hash(b"one"), leaf_hash(b"other")))
    root, _ = grow([one, other])
    assert leaf_hash(one + other) != root


def test_a_hundred_that_were_sealed_together_cost_one_check(alice: KeyPair, checks: list[PeerId]) -> None:
    sealed, roots = seal_jointly(contents(100), alice), Roots()
    for (payload_type, payload), envelope in zip(contents(100), sealed, strict=True):
        opened = open_envelope(envelope, max_bytes=4096, roots=roots)
        assert (opened.signer, opened.payload_type, opened.payload) == (alice.id, payload_type, payload)
        assert opened.path_bytes == len(envelope) - len(seal(payload_type, payload, alice))
    assert checks == [alice.id]


def test_each_of_them_stands_alone(alice: KeyPair) -> None:
    for envelope in seal_jointly(contents(5), alice):
        assert open_envelope(envelope, max_bytes=4096, roots=Roots()).signer == alice.id


def test_a_signature_that_is_not_sound_is_not_remembered(alice: KeyPair, mallory: KeyPair) -> None:
    roots = Roots()
    forged, good = (Envelope.FromString(seal_jointly(contents(2), alice)[0]) for _ in range(2))
    forged.signature = mallory.sign(b"anything")
    for _ in range(2):
        with pytest.raises(BadRecord):
            open_envelope(forged.SerializeToString(), max_bytes=4096, roots=roots)
    open_envelope(good.SerializeToString(), max_bytes=4096, roots=roots)
    with pytest.raises(BadRecord):
        open_envelope(forged.SerializeToString(), max_bytes=4096, roots=roots)


def test_a_hundred_that_lead_elsewhere_cost_a_few_checks_and_a_sound_one_among_them_none(
    alice: KeyPair, checks: list[PeerId]
) -> None:
    """One signature over all, and each says that another root was signed: as many checks would cost 6 ms."""
    good, *others = seal_jointly(contents(100), alice)
    bad = [Envelope.FromString(other) for other in others]
    for number, envelope in enumerate(bad):
        envelope.payload = b"another content %d" % number
    sent = [envelope.SerializeToString(deterministic=True) for envelope in bad]
    roots = Roots()

    def sound(data: bytes) -> bool:
        try:
            open_envelope(data, max_bytes=4096, roots=roots)
        except BadRecord:
            return False
        return True

    assert [sound(data) for data in (*sent[:2], good, *sent[2:], others[7])] == [
        *(False, False, True),
        *[False] * 97,
        True,
    ]
    assert len(checks) == MAX_TRIED + 1


def test_who_leaves_the_path_where_others_went_on_leads_elsewhere(alice: KeyPair) -> None:
    """The rest of the path is a part of each place that is known to lead to the root."""
    sealed, roots = seal_jointly(contents(8), alice), Roots()
    for envelope in sealed[:7]:
        open_envelope(envelope, max_bytes=4096, roots=roots)
    last = Envelope.FromString(sealed[7])
    for at in range(len(last.path)):
        strayed = Envelope.FromString(sealed[7])
        strayed.path = last.path[:at] + bytes([last.path[at] ^ 1]) + last.path[at + 1 :]
        with pytest.raises(BadRecord) as caught:
            open_envelope(strayed.SerializeToString(deterministic=True), max_bytes=4096, roots=roots)
        assert caught.value.refusal is Refusal.FORGED
    for cut in (HASH_BYTES, 2 * HASH_BYTES):
        strayed.path = last.path[:-cut]
        with pytest.raises(BadRecord):
            open_envelope(strayed.SerializeToString(deterministic=True), max_bytes=4096, roots=roots)
    assert open_envelope(sealed[7], max_bytes=4096, roots=roots).signer == alice.id


def test_a_sender_is_charged_for_the_checks_that_his_records_cost(bob: KeyPair) -> None:
    offers = [seal_offer(model_of(bob, number), bob) for number in range(3)]
    together = [card.envelope for [card] in cards_of_all(offers, bob)]
    alone = [card_of(offer, bob).envelope for offer in offers]
    assert seals(together) == 1
    assert seals(alone) == 3
    assert seals(offer.envelope for offer in offers) == 6
    assert seals([*together, *alone, b"nonsense"]) == 6


def test_more_than_a_tree_holds_are_in_several(alice: KeyPair, checks: list[PeerId]) -> None:
    many, roots = contents(2 * MAX_LEAVES + 1), Roots()
    sealed = seal_jointly(many, alice)
    assert [open_envelope(one, max_bytes=4096, roots=roots).payload for one in sealed] == [
        payload for _, payload in many
    ]
    assert len(checks) == 3
    assert sealed[-1] == seal(*many[-1], alice), "who is alone needs no tree"
    assert seal_jointly([], alice) == []


def test_a_path_has_one_form(alice: KeyPair) -> None:
    """What could be varied without the key would give one record many hashes."""
    data = seal_jointly(contents(3), alice)[0]
    at = data.index(b"\x82\x04")
    path = data[at + 3 :]
    assert len(path) == 2 * HASH_BYTES
    varied = {
        "a length of two bytes": data[:at] + b"\x82\x04\xa0\x00" + path,
        "the path twice": data + data[at:],
        "a field behind it": data + b"\x8a\x04\x01x",
        "the path before the signature": data[: at - 66] + data[at:] + data[at - 66 : at],
        "not whole hashes": data[:at] + b"\x82\x04\x1f" + path[:-1],
        "more levels than a tree has": data[:at] + b"\x82\x04\x80\x01" + 4 * path,
    }
    for what, envelope in varied.items():
        assert refusal(envelope) is Refusal.MALFORMED, what
    assert refusal(data[:at]) is Refusal.FORGED
    assert refusal(data[:at] + b"\x82\x04\x10" + path[:16]) is Refusal.FORGED
    alone = seal(*contents(1)[0], alice)
    assert refusal(alone + b"\x82\x04\x00") is Refusal.MALFORMED, "an empty path is none"
    assert refusal(alone + b"\x82\x04\x10" + path[:16]) is Refusal.FORGED


@pytest.mark.parametrize("size", [1, 127, 128, 4000, 16_383, 16_384])
def test_one_of_several_is_read_alikeby_place_and_by_protobuf(size: int, alice: KeyPair) -> None:
    data = seal_jointly([(TYPE, bytes(size)), *contents(99)], alice)[0]
    assert by_place(data) == (_parse(data) if size < 16_384 else None)
    assert open_envelope(data, max_bytes=len(data), roots=Roots()).path


def test_who_must_be_sealed_alone_is_refused_in_company(alice: KeyPair) -> None:
    """Beats, rosters, verdicts and manifests: their readers take no path."""
    with pytest.raises(BadRecord, match="alone"):
        open_envelope(seal_jointly(contents(2), alice)[0], max_bytes=4096)


def test_cards_of_one_key_share_a_signature(bob: KeyPair) -> None:
    """Bob publishes three models of one task, and one of another."""
    models = [model_of(bob, number) for number in range(3)]
    models.append(model_of(bob, 3, task="summarization"))
    offers = [seal_offer(model, bob) for model in models]
    cards = cards_of_all(offers, bob)
    signatures = [{Envelope.FromString(card.envelope).signature for card in row} for row in cards]
    assert signatures[0] == signatures[1] == signatures[2] != signatures[3]
    assert not Envelope.FromString(cards[3][0].envelope).path, "the only one under its key"
    for offer, [card] in zip(offers, cards, strict=True):
        assert admit(card.envelope, network="public", now_us=NOW_US, key=min(card.keys)) == card
        assert card.record.offer_sha256 == offer.sha256  # type: ignore[union-attr]


def test_only_cards_are_sealed_together(bob: KeyPair) -> None:
    offers = [model_of(bob, number).to_payload() for number in range(2)]
    for envelope in seal_jointly([(b"/modelnet/offer/1", payload) for payload in offers], bob):
        with pytest.raises(BadRecord, match="only cards"):
            admit(envelope, network="public", now_us=NOW_US)


def test_a_root_is_no_record(bob: KeyPair) -> None:
    root, _ = grow([leaf_hash(b"x"), leaf_hash(b"y")])
    with pytest.raises(BadRecord, match="no kind of record"):
        admit(seal(JOINT_TYPE, root, bob), network="public", now_us=NOW_US)
