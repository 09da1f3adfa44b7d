"""From a model's description to the offer that its provider signs."""

from __future__ import annotations

from collections.abc import Sequence

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import check_tag, digest_text
from modelnet_p2p.node.manifests import full_name
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.records import BadRecord, Manifest, OfferRecord, open_manifest, seal_manifest
from modelnet_p2p.records.kinds import MAX_LANGUAGES, MAX_TAGS


def draft_offer(
    description: Description,
    tags: Sequence[str],
    terms: Terms,
    *,
    key: KeyPair,
    network: str,
    seq: int,
    now_unix: int,
    shares_weights: bool = False,
) -> OfferRecord:
    """The offer of a described model, without its times.

    A model that comes without its owner's seal is owned by its provider, who then seals the manifest. What
    the publisher says (`tags`, `terms`) comes before what the model says of itself. Raises LocalError
    (bad-input) for tags that are none or too many, and for an owner's seal that is broken, or is of another
    model or licence.
    """
    envelope = description.manifest_envelope
    if envelope is None:
        envelope = seal_manifest(
            Manifest(
                owner=key.id,
                name=description.name,
                version=description.version,
                task=description.task,
                licence=terms.licence or description.licence,
                digest=description.digest,
                issued_unix=now_unix,
                metrics=description.metrics,
            ),
            key,
        )
    return OfferRecord(
        provider=key.id,
        network=network,
        manifest=_opened(envelope, description, terms),
        manifest_envelope=envelope,
        seq=seq,
        issued_us=0,
        expires_us=0,
        framework=description.framework,
        precision=description.precision,
        inputs=description.inputs,
        outputs=description.outputs,
        parameters=description.parameters,
        context_length=description.context_length,
        languages=_merged(terms.languages, description.languages, MAX_LANGUAGES),
        tags=_tags(tags, description),
        gives=_gives(description) + (("weights",) if shares_weights else ()),
        family=description.family,
        exits=description.exits,
        tier=terms.tier,
        limits=_limits(description),
        price=terms.price,
    )


def _tags(given: Sequence[str], description: Description) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(check_tag(tag) for tag in given))
    if len(wanted) > MAX_TAGS:
        words = f"{len(wanted)} tags: an offer has room for {MAX_TAGS} --tag"
        raise LocalError(Code.BAD_INPUT, words)
    return _merged(wanted, description.tags, MAX_TAGS)


def _merged(wanted: tuple[str, ...], own: Sequence[str], most: int) -> tuple[str, ...]:
    """What the publisher says, and what the model says of itself where there is room."""
    return tuple(dict.fromkeys((*wanted, *own)))[:most]


def _gives(description: Description) -> tuple[str, ...]:
    gives = ["items" if description.streams else "answer"]
    if description.idempotent:
        gives.append("idempotent")
    if description.deterministic:
        gives.append("deterministic")
    return tuple(gives)


def _limits(description: Description) -> dict[str, int]:
    """What is known of it in figures, each by its name with its unit."""
    limits: dict[str, int] = {}
    if description.size_bytes is not None:
        limits["size_bytes"] = description.size_bytes
    if description.latency_us is not None:
        limits["latency_us"] = description.latency_us
    if description.batches > 1:
        limits["batch_rows"] = description.batches
    return limits


def _opened(envelope: bytes, description: Description, terms: Terms) -> Manifest:
    """The manifest in that seal, which must be of the described model and of the licence that its publisher
    says, if any: it came from a stranger's code."""
    try:
        manifest = open_manifest(envelope)
    except BadRecord as error:
        words = f"the owner's seal of {description.name} is not sound: {error.message}"
        raise LocalError(Code.BAD_INPUT, words) from error
    wanted = {name: getattr(description, name) for name in ("name", "version", "task", "digest")}
    wanted |= {"licence": terms.licence} if terms.licence else {}
    for field, value in wanted.items():
        if getattr(manifest, field) != value:
            raise _another(manifest, field, value)
    return manifest


def _another(manifest: Manifest, field: str, value: object) -> LocalError:
    """For a seal that says something else than the model, or its publisher."""
    sealed = _said(getattr(manifest, field))
    if field in ("name", "version"):
        words = f"the owner's seal is for another {field}: for {full_name(manifest)}, not {_said(value)}"
        hint = "leave --model away: the seal names it; or publish it without the seal, to own it yourself"
    else:
        words = f"the owner's seal of {manifest.name} is for another {field}: {sealed}, not {_said(value)}"
        hint = "publish it under another name without that seal, to own it yourself"
    return LocalError(Code.BAD_INPUT, words, hint=hint)


def _said(value: object) -> str:
    return digest_text(value) if isinstance(value, bytes) else str(value or "none")
