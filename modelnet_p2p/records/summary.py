"""What a card says of its offer in little room: two bytes for each word that a search may ask for.

A reader rules out by it the cards of all whom a search cannot mean, and reads the offers of the few that are
left. So it errs to one side only: a word that the offer has is always there; of 12 words (as most offers
have) one that it has not is there by chance once in 5,500 times. A Bloom filter of as many bits errs twice as
often, has one size for the offer of five words and that of fifty, and is harder to explain. The offer's own
hash is the salt: what is confused is confused in one offer, and not in all that share a common word.

Only its provider signs a card. A summary that lies hides nobody but the liar, or has its offer read in vain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from modelnet_p2p.records.fields import MARK_BYTES
from modelnet_p2p.records.kinds import Card, OfferRecord
from modelnet_p2p.records.manifest import Spec

Words = tuple[str, ...]


def _one(text: str) -> Words:
    return (text,) if text else ()


def _languages(offer: OfferRecord) -> Words:
    """`de-AT` is `de`, too."""
    shorter = (language.partition("-")[0] for language in offer.languages)
    return tuple(dict.fromkeys([*offer.languages, *shorter]))


def _specs(specs: tuple[Spec, ...]) -> Words:
    return tuple(word for spec in specs for word in (spec.kind, spec.dtype) if word)


WORDS: Mapping[str, Callable[[OfferRecord], Words]] = {
    "tag": lambda offer: offer.tags,
    "language": _languages,
    "licence": lambda offer: _one(offer.manifest.licence),
    "precision": lambda offer: _one(offer.precision),
    "tier": lambda offer: _one(offer.tier),
    "access": lambda offer: _one(offer.access),
    "family": lambda offer: _one(offer.family),
    "gives": lambda offer: offer.gives,
    "input": lambda offer: _specs(offer.inputs),
    "output": lambda offer: _specs(offer.outputs),
}
"""What a card leaves to its summary, by the name under which a search asks for it."""


def cost(offer: OfferRecord) -> tuple[int, int]:
    """The lowest and the highest price, in millionths of whatever unit; what asks no price costs nothing."""
    prices = offer.price.values() or (0,)
    return min(prices), max(prices)


def marks(offer: OfferRecord, offer_sha256: bytes) -> tuple[int, ...]:
    """The mark of each of the offer's words, ascending."""
    words = ((attribute, word) for attribute, read in WORDS.items() for word in read(offer))
    return tuple(sorted({_mark(offer_sha256, attribute, word) for attribute, word in words}))


def rules_out(card: Card, attribute: str, word: str) -> bool:
    """Whether the card's offer does not have this word (lower case, whole) there; False: it may."""
    if card.marks is None or attribute not in WORDS or not word.isascii():
        return False  # other letters have lower cases that differ from language to language
    return _mark(card.offer_sha256, attribute, word) not in card.marks


def _mark(salt: bytes, attribute: str, word: str) -> int:
    hashed = hashlib.sha256(salt + f"{attribute}:{word.lower()}".encode()).digest()
    return int.from_bytes(hashed[:MARK_BYTES])
