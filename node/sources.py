"""What somebody wants to publish, as the source that is served: from a program, or from what was pulled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from modelnet_p2p.node.manifests import full_name, sealed_manifest
from modelnet_p2p.node.revoking import Revoking
from modelnet_p2p.node.serving.own_script import importable
from modelnet_p2p.node.serving.source import Source, checked_options
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.node.weights.sharing import Pulls
from modelnet_p2p.tasks import check_known


async def source_of(
    source: str | Callable[..., object],
    pulls: Pulls,
    revoking: Revoking,
    *,
    model: str | None,
    task: str | None,
    tags: Sequence[str],
    module: str | None,
    interpreter: str | None,
    cwd: str | None,
    environ: Mapping[str, str] | None,
    options: Mapping[str, str] | None,
    manifest: bytes | None,
    share_weights: bool | None,
    terms: Terms,
) -> Source:
    """The source that `Peer.publish` means; raises LocalError (bad-input, forbidden)."""
    if task is not None:
        check_known(task)
    pulled = await pulls.source(source, cwd) if isinstance(source, str) else None
    note = await pulls.hidden(source, cwd) if isinstance(source, str) else ""
    if pulled is not None:
        source, sealed = pulled
        manifest = manifest or sealed
        share_weights = True if share_weights is None else share_weights
    spec, environ = (
        (source, dict(os.environ if environ is None else environ))
        if isinstance(source, str)
        else importable(source, os.environ if environ is None else environ)
    )
    if manifest is not None:
        named = sealed_manifest(manifest)
        revoking.check(named.owner, "the key of its owner")
        model, task = model or full_name(named), task or named.task
    return Source(
        spec=spec,
        module=module,
        model=model,
        task=task,
        tags=tuple(tags),
        interpreter=interpreter or sys.executable,
        cwd=cwd or os.getcwd(),
        environ=environ,
        manifest=manifest,
        options=checked_options(options or {}),
        share_weights=bool(share_weights),
        terms=terms,
        notes=(note,) if note else (),
    )
