"""What the cache holds, by the names that people give it; needs no peer, so commands may ask without one."""

from __future__ import annotations

from collections.abc import Sequence

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.names import ModelUri, digest_text, is_model_name, parse_digest
from modelnet_p2p.node.manifests import full_name
from modelnet_p2p.node.weights.cache import Cache, Kept, Sealed, spec_of
from modelnet_p2p.node.weights.hashing import OnDisk

DIGEST = "sha256:"


def may_be_pulled(text: str) -> bool:
    """Whether a source may mean something in the cache, by its form alone."""
    return text.startswith((DIGEST, ModelUri.SCHEME)) or is_model_name(text.partition("@")[0])


def kept_line(kept: Kept, in_use: bool | None = None) -> dict[str, object]:
    """A line of `pull --list`; `in_use` where somebody knows."""
    return {
        "digest": digest_text(kept.root),
        "models": [full_name(seal.manifest) for seal in kept.manifests],
        "whole": kept.whole,
        "size": kept.size,
        "here": kept.here,
        "path": str(kept.path),
        "shared": in_use,
    }


def digest_asked(text: str) -> bytes | None:
    """The digest that a name of weights holds: `sha256:…`, or the digest of a URI."""
    if text.startswith(DIGEST):
        return parse_digest(text)
    return ModelUri.parse(text).digest


def named(cache: Cache, text: str) -> Kept | None:
    """What of the cache a name, URI or digest means, if it is whole; raises NotFound (ambiguous)."""
    root = digest_asked(text)
    whole = [kept for kept in cache.all() if kept.whole]
    if root is not None:
        return next((kept for kept in whole if kept.root == root), None)
    fitting = [kept for kept in whole if meant(kept.manifests, text)]
    if len(fitting) > 1:
        lines = ", ".join(
            f"{full_name(seal.manifest)} {digest_text(kept.root)}"
            for kept in fitting
            for seal in meant(kept.manifests, text)
        )
        raise NotFound(
            f"several of the weights here are called {text!r}: {lines}",
            code=Code.AMBIGUOUS,
            hint="name the digest: sha256:…",
        )
    return fitting[0] if fitting else None


def pulled_source(cache: Cache, text: str) -> tuple[str, Sealed | None] | None:
    """What to publish to serve cached weights, and their owner's seal; None for a text that means none.

    Raises NotFound for a digest that is not here, or that several owners claim.
    """
    kept = named(cache, text)
    if kept is None:
        if text.startswith((DIGEST, ModelUri.SCHEME)):
            raise NotFound(f"the weights of {text!r} are not here", hint=f"modelnet-peer pull '{text}'")
        return None
    found = cache.whole(kept.root)
    if found is None:
        raise LocalError(
            Code.BAD_STATE, f"the weights of {text!r} are damaged", hint=f"modelnet-peer pull '{text}'"
        )
    seals = meant(kept.manifests, text)
    if len(seals) > 1:
        uris = ", ".join(uri_of(seal) for seal in seals)
        raise NotFound(
            f"several owners have sealed {text!r}: {uris}", code=Code.AMBIGUOUS, hint="publish one of these"
        )
    return str(spec_of(found)), seals[0] if seals else None


def meant(seals: Sequence[Sealed], text: str) -> tuple[Sealed, ...]:
    """Those of the seals that a name or URI means; of a bare digest all."""
    if text.startswith(DIGEST):
        return tuple(seals)
    uri = ModelUri.parse(text)
    return tuple(
        seal
        for seal in seals
        if seal.manifest.name == uri.name
        and uri.version in ("", seal.manifest.version)
        and uri.owner in (None, seal.manifest.owner)
    )


def uris_of(cache: Cache, text: str) -> list[str]:
    """Of all that is here and has that name."""
    return [uri_of(seal) for kept in cache.all() if kept.whole for seal in meant(kept.manifests, text)]


def uri_of(seal: Sealed) -> str:
    m = seal.manifest
    return str(ModelUri(m.name, m.version, m.owner, m.digest))


def found_line(found: OnDisk, seals: Sequence[Sealed]) -> dict[str, object]:
    """The `pull` object of what is here, and was not fetched just now."""
    seal = seals[0] if seals else None
    return {
        "model": full_name(seal.manifest) if seal else None,
        "uri": uri_of(seal) if seal else None,
        "owner": seal.manifest.owner.text if seal else None,
        "licence": seal.manifest.licence if seal else None,
        "digest": digest_text(found.root),
        "path": str(spec_of(found)),
        "files": len(found.artifact.files),
        "size": found.size,
        "fetched": 0,
        "seconds": 0.0,
        "from": [],
        "liars": [],
    }
