"""What each tool does: a question or two to a peer, by the same closed table of methods that commands use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound
from modelnet_p2p.node.cli.nearest import nearest
from modelnet_p2p.node.control.table import Emit, Request
from modelnet_p2p.node.control.wire import ITEM
from modelnet_p2p.node.mcp.answers import Answer, Pieces, answer_of, line_of, nothing, offer_of
from modelnet_p2p.node.mcp.arguments import Wanted, Wish

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array
Ask = Callable[[str, Request, Emit], Awaitable[Value]]  # `dispatch` on a peer, whichever and wherever it is
OnPiece = Callable[[int, str], Awaitable[None]]  # how many there are, and what the last one says

SEARCH_SECONDS = 30.0
MAX_PLACES = 16  # that one search may look in, see Query.indexes
# looked for where a peer has heard of nothing yet, as one has that only just came
USUAL = (
    "text-generation",
    "text2text-generation",
    "feature-extraction",
    "text-classification",
    "image-classification",
    "summarization",
    "translation",
    "question-answering",
)


async def find(ask: Ask, wanted: Wanted) -> Answer:
    """The offers that fit; none is no error, and a note says what is there instead."""
    tasks: list[str] = []
    models: list[str] = []
    tags: list[str] = []
    where = wanted.query
    if not str(wanted):
        tasks, models, _ = await _in_sight(ask)
        places = [f"task:{task}" for task in tasks] + [f"model:{model}" for model in models]
        where = " or ".join((places or [f"task:{task}" for task in USUAL])[:MAX_PLACES])
    question = {"task": wanted.task, "model": wanted.model, "tag": wanted.tag, "where": where}
    asked = {**question, "limit": wanted.limit, "timeout": SEARCH_SECONDS}
    lines = [line_of(offer) for offer in await _items(ask, "find", asked)]
    if lines:
        return {"models": lines}
    if str(wanted):
        tasks, models, tags = await _in_sight(ask)
    return {"models": [], "note": nothing(str(wanted), tasks, models, tags if wanted.tag else ())}


async def describe(ask: Ask, model: str) -> Answer:
    """All that is known of a model, of each that serves it; raises NotFound."""
    return {"offers": [offer_of(shown) for shown in await _items(ask, "show", {"model": model})]}


async def invoke(ask: Ask, wish: Wish, on_piece: OnPiece) -> Answer:
    """The answer to a call, each piece told as it comes: a slow listener slows the model."""
    pieces = Pieces()

    async def emit(kind: str, item: Value) -> None:
        if kind == ITEM:
            said = pieces.add(item)
            await on_piece(len(pieces.items), said)

    asked = {"target": wish.target, "params": wish.params, "timeout": wish.seconds}
    try:
        done = await ask("invoke", Request(asked, wish.value), emit)
    except ModelnetError as error:
        if isinstance(error, LocalError | NotFound) and error.code in (Code.NOT_FOUND, Code.UNREACHABLE):
            error.hint = await _meant(ask, wish.target) or error.hint
        raise
    return answer_of(done, pieces)


async def _items(ask: Ask, method: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """All items of an answer, each of them a map. Any: parameters and lines of the control table."""
    items: list[dict[str, Any]] = []

    async def emit(kind: str, item: Value) -> None:
        if kind == ITEM:
            items.append(item)

    await ask(method, Request(asked), emit)
    return items


async def _in_sight(ask: Ask) -> tuple[list[str], list[str], list[str]]:
    """Tasks, models and tags that the peer has heard of."""

    async def emit(kind: str, item: Value) -> None:
        pass

    words = await ask("models", Request({}), emit)
    tasks, models, tags = (list(map(str, words.get(kind) or ())) for kind in ("tasks", "models", "tags"))
    return tasks, models, tags


async def _meant(ask: Ask, target: str) -> str:
    """Which name or task was probably meant, as a hint; empty where none is near."""
    with suppress(ModelnetError):  # a second error would only hide the first
        tasks, models, _ = await _in_sight(ask)
        kind, colon, task = target.partition(":")
        if kind == "task":
            meant = nearest(task, tasks)
        else:
            meant = nearest(target.partition("@")[0], models) if not colon else None
        if meant is not None and meant not in (task, target):
            return f"did you mean {f'task:{meant}' if kind == 'task' else meant}?"
    return ""
