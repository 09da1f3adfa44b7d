"""From a model's description to the offer that its provider signs."""

from __future__ import annotations

from collections.abc import Sequence

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import check_tag
from modelnet_p2p.node.serving.backends.contract import Description
from modelnet_p2p.records import Manifest, OfferRecord, open_manifest, seal_manifest


def draft_offer(
    description: Description, tags: Sequence[str], *, key: KeyPair, network: str, seq: int, now_unix: int
) -> OfferRecord:
    """The offer of a described model, without its times.

    A model that comes without its owner's seal is owned by its provider, who then seals the manifest.
    Raises LocalError (bad-input) for tags that are none.
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
    gives = ["items" if description.streams else "answer"]
    if description.digest is not None:  # fixed weights and nothing else: asking twice does no harm
        gives.append("idempotent")
    return OfferRecord(
        provider=key.id,
        network=network,
        manifest=open_manifest(envelope),
        manifest_envelope=envelope,
        seq=seq,
        issued_us=0,
        expires_us=0,
        framework=description.framework,
        precision=description.precision,
        inputs=description.inputs,
        outputs=description.outputs,
        parameters=description.parameters,
        tags=tuple(dict.fromkeys(check_tag(tag) for tag in tags)),
        gives=tuple(gives),
        family=description.family,
        exits=description.exits,
    )
