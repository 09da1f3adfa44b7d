"""Who tells much, or owns a network, does not hide the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from modelnet_p2p.dht.turns import MAX_ADDRS, Turns, network
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.records import Identity, Sealed

ALICE, BOB = PeerId(b"alice"), PeerId(b"bob")


@dataclass(frozen=True)
class Note:
    """What is looked at of a sealed record."""

    provider: PeerId

    @property
    def envelope(self) -> bytes:
        return b"record of " + self.provider

    @property
    def identity(self) -> Identity:
        return Identity(self.provider, self.provider, "m", "", "")


def note(name: str) -> Sealed:
    return cast("Sealed", Note(PeerId(name.encode())))


def at(sealed: Sealed, *addrs: bytes) -> Contact:
    return Contact(sealed.identity.provider, addrs)


def ip4(a: int, b: int, c: int, d: int = 1) -> bytes:
    return bytes([4, a, b, c, d, 6]) + (4001).to_bytes(2)


def test_the_first_of_every_holder_comes_before_the_second_of_any() -> None:
    turns, junk, honest = Turns(), [note(f"junk{n}") for n in range(50)], note("honest")
    turns.on_told(BOB, [one.envelope for one in junk], [])
    turns.on_told(ALICE, [honest.envelope], [])
    assert honest in turns.of([*junk, honest])[:2]


def test_a_thousand_of_ten_networks_stand_behind_the_first_of_another_whatever_the_order() -> None:
    junk, honest = [note(f"junk{n}") for n in range(1000)], note("honest")
    contacts = [at(one, ip4(45, 67, n % 10, n // 10)) for n, one in enumerate(junk)]
    turns = Turns()
    for holder in (
        b"xx",
        b"yy",
        b"zz",
    ):  # each in another order, the honest one last
        shift = 300 * holder[0]
        order = [*(junk[(n + shift) % 1000] for n in range(1000)), honest]
        turns.on_told(PeerId(holder), [one.envelope for one in order], [*contacts, at(honest, ip4(81, 2, 3))])
    assert turns.of([*junk, honest]).index(honest) == 10


def test_a_false_address_of_an_honest_provider_does_not_take_its_turn() -> None:
    junk, honest = [note(f"junk{n}") for n in range(40)], note("honest")
    turns = Turns()
    lies = [at(one, ip4(45, 67, 1, n)) for n, one in enumerate(junk)] + [at(honest, ip4(45, 67, 1, 99))]
    turns.on_told(BOB, [one.envelope for one in junk], lies)
    turns.on_told(ALICE, [*(one.envelope for one in junk), honest.envelope], [at(honest, ip4(81, 2, 3))])
    assert turns.of([*junk, honest]).index(honest) == 1


def test_neighbours_on_private_addresses_or_none_are_not_held_against_each_other() -> None:
    peers = [note(f"peer{n}") for n in range(6)]
    turns = Turns()
    contacts = [at(one, ip4(192, 168, 1, n)) for n, one in enumerate(peers[:4])]
    turns.on_told(ALICE, [one.envelope for one in peers], contacts)
    assert turns.of(reversed(peers)) == peers


def test_every_tellers_first_address_comes_before_anybodys_second() -> None:
    honest = note("honest")
    turns = Turns()
    turns.on_told(BOB, [], [at(honest, *(ip4(45, 67, 1, n) for n in range(16)))])
    turns.on_told(ALICE, [], [at(honest, ip4(81, 2, 3))])
    addrs = turns.addresses(honest.identity.provider)
    assert ip4(81, 2, 3) in addrs[:2]
    assert len(addrs) == MAX_ADDRS


def test_networks_are_those_of_public_addresses_alone() -> None:
    six = b"\x29" + bytes.fromhex("20010db8000100000000000000000001") + b"\x06\x0f\xa1"
    real = b"\x29" + bytes.fromhex("2a001450400100000000000000000001") + b"\x06\x0f\xa1"
    assert network(ip4(81, 2, 3, 7)) == bytes([81, 2, 3])
    assert network(real) == real[1:7]
    assert [network(addr) for addr in (ip4(10, 1, 1), ip4(127, 0, 0), six, b"", b"\x04\x01", b"\x36abc")] == [
        None
    ] * 6
