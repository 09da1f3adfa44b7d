"""/v1/models: what the swarm offers to those who send text, found in the DHT and told as OpenAI's list.

`?task=image-classification` lists the models of any other task. A name that several owners claim cannot
be called by it alone; such models are listed by their URIs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from modelnet_p2p.errors import NotFound
from modelnet_p2p.names import ModelUri, check_task
from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.forms import EMBEDDING_TASKS, TEXT_TASKS, endpoints_of
from modelnet_p2p.node.gateway.http import Http
from modelnet_p2p.offers import Offer

LISTED = 256  # offers that a list is made from, the best
SEARCH_SECONDS = 20.0
WHY_SECONDS = 10.0  # more, for the reason why nobody is found
TASKS = (*TEXT_TASKS, *EMBEDDING_TASKS)


async def list_models(gateway: Gateway, http: Http) -> None:
    """GET /v1/models"""
    task = http.query().get("task")
    where = " or ".join(f"task:{name}" for name in ([check_task(task)] if task else TASKS))
    offers = gateway.lists.recall(where)
    if offers is None:
        with http.while_there():
            offers = await gateway.peer.find(where=where, limit=LISTED, timeout=SEARCH_SECONDS)
        gateway.lists.keep(where, offers)
    await http.say({"object": "list", "data": entries(offers)})


async def show_model(gateway: Gateway, http: Http) -> None:
    """GET /v1/models/{id}: a name, a URI or task:TASK, which is the best one of it."""
    name = http.param("model")
    if query := http.scope["query_string"]:  # of a URI that was written into the path as it is
        name += f"?{query.decode('latin-1')}"
    task = name.removeprefix("task:") if name.startswith("task:") else None
    model = name if task is None else None
    error = None
    with http.while_there():
        found = await gateway.peer.explain(task, model, timeout=SEARCH_SECONDS)
        if not found.offers:
            error = await gateway.peer.why_none(task, model, tally=found.tally, timeout=WHY_SECONDS)
    if not found.offers:
        raise error or NotFound(f"nobody alive offers {name!r}", hint="GET /v1/models lists what there is")
    await http.say(entries(found.offers)[0])


def entries(offers: Sequence[Offer]) -> list[dict[str, object]]:
    """A model of one owner each, the best offered first."""
    by_model: dict[tuple[str, str], list[Offer]] = {}
    for offer in offers:
        by_model.setdefault((offer.model, offer.owner), []).append(offer)
    claims = Counter(model for model, _ in by_model)
    return [_entry(several, alone=claims[model] == 1) for (model, _), several in by_model.items()]


def _entry(offers: Sequence[Offer], *, alone: bool) -> dict[str, object]:
    """What OpenAI's clients know, and under `modelnet`, which they pass over, the best offer by the names of
    `find --json`: others of the same model may ask another price."""
    best = offers[0]
    record = best.record
    uri = str(ModelUri(record.name, record.version, record.owner))
    return {
        "id": best.model if alone else uri,
        "object": "model",
        "created": min(offer.record.issued_us for offer in offers) // 1_000_000,
        "owned_by": best.owner,
        "modelnet": {
            "uri": uri,
            "task": best.task,
            "endpoints": endpoints_of(best),
            "providers": len({offer.provider for offer in offers}),
            "provider": best.provider,
            "state": best.state.value,
            "digest": best.digest,
            "framework": best.framework,
            "precision": record.precision,
            "parameters": record.parameters,
            "context_length": record.context_length,
            "languages": list(record.languages),
            "licence": record.manifest.licence,
            "inputs": [spec.to_map() for spec in best.inputs],
            "outputs": [spec.to_map() for spec in best.outputs],
            **best.facts(),
        },
    }
