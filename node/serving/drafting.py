"""From a model's description to the offer that its provider signs."""

from __future__ import annotations

from collections.abc import Sequence

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import check_tag
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.records import BadRecord, Manifest, OfferRecord, open_manifest, seal_manifest
from modelnet_p2p.records.kinds import MAX_TAGS


def draft_offer(
    description: Description,
    tags: Sequence[str],
    *,
    key: KeyPair,
    network: str,
    seq: int,
    now_unix: int,
    shares_weights: bool = False,
) -> OfferRecord:
    """The offer of a described model, without its times.

    A model that comes without its owner's seal is owned by its provider, who then seals the manifest.
    Raises LocalError (bad-input) for tags that are none, and for an owner's seal that is broken or is of
    another model.
    """
    envelope = description.manifest_envelope
    if envelope is None:
        envelope = seal_manifest(
            Manifest(
                owner=key.id,
                name=description.name,
                version=description.version,
                task=description.task,
                licence=description.licence,
                digest=description.digest,
                issued_unix=now_unix,
                metrics=description.metrics,
            ),
            key,
        )
    return OfferRecord(
        provider=key.id,
        network=network,
        manifest=_opened(envelope, description),
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
        languages=description.languages,
        tags=_tags(tags, description),
        gives=_gives(description) + (("weights",) if shares_weights else ()),
        family=description.family,
        exits=description.exits,
        limits=_limits(description),
    )


def _tags(given: Sequence[str], description: Description) -> tuple[str, ...]:
    """The publisher's, and the model's own where there is room."""
    wanted = tuple(dict.fromkeys(check_tag(tag) for tag in given))
    own = [tag for tag in dict.fromkeys(description.tags) if tag not in wanted]
    return (*wanted, *own[: max(0, MAX_TAGS - len(wanted))])


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


def _opened(envelope: bytes, description: Description) -> Manifest:
    """The manifest in that seal, which must be of the described model: it came from a stranger's code."""
    try:
        manifest = open_manifest(envelope)
    except BadRecord as error:
        words = f"the owner's seal of {description.name} is not sound: {error.message}"
        raise LocalError(Code.BAD_INPUT, words) from error
    for field in ("name", "version", "task", "digest"):
        if getattr(manifest, field) != getattr(description, field):
            words = f"the owner's seal of {description.name} is for another {field}"
            hint = "publish it under another name without that seal, to own it yourself"
            raise LocalError(Code.BAD_INPUT, words, hint=hint)
    return manifest
