"""What was probably meant: the command or the model that a mistyped word is nearest to, and the next step.

Asked only when something failed, so it may cost a question to the running peer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from shlex import join, quote
from typing import TYPE_CHECKING, Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound, RemoteError

if TYPE_CHECKING:
    from modelnet_p2p.node.cli.common import Session

LIKENESS = 0.6  # difflib's own measure of "near": one or two slips in a short word
SILENT = "--all lists those that do not answer, too"  # the hint where offers are hidden for that
PATIENCE = 1.0  # seconds that the running peer has to say what it serves; the error is late by no more
_OTHER_WORDS = {  # of other programs, for the command that does it here
    "call": "invoke",
    "list": "find",
    "ls": "find",
    "predict": "invoke",
    "ps": "status",
    "query": "find",
    "remove": "unpublish",
    "rm": "unpublish",
    "run": "invoke",
    "search": "find",
    "serve": "publish",
    "start": "join",
    "up": "join",
    "whoami": "id",
}

# the argument with a model's name, of the commands that look for one
_NAMES = {"invoke": "target", "find": "model", "show": "model", "unpublish": "model"}


def nearest(word: str, known: Collection[str]) -> str | None:
    """The one of `known` that `word` is nearest to, if it is near; as a whole, or the last part of a name."""
    from difflib import SequenceMatcher

    # the matcher remembers much of its second word
    whole, last = SequenceMatcher(b=word), SequenceMatcher(b=word.rpartition("/")[2])

    def likeness(name: str) -> float:
        whole.set_seq1(name)
        last.set_seq1(name.rpartition("/")[2])
        return max(whole.ratio(), last.ratio())

    near = [(likeness(name), name) for name in known]
    best = max(near, default=(0.0, ""))
    return best[1] if best[0] >= LIKENESS else None


def no_such_command(program: str, arguments: Sequence[str], commands: Collection[str]) -> LocalError:
    """For a first word that is no command; the hint is the whole line as it was probably meant."""
    word, *rest = arguments
    meant = _OTHER_WORDS.get(word) or nearest(word.lower(), commands)
    hint = f"did you mean: {join([program, meant, *rest])}" if meant else f"{program} --help lists them all"
    return LocalError(Code.BAD_INPUT, f"there is no command {word[:40]!r}", hint=hint)


def add_hint(error: ModelnetError, session: Session, command: str, given: Mapping[str, Any]) -> None:
    """Give an error about a model the next step: a name that is nearly the one given, or who else offers it.

    `given` are the command's arguments, by click's names for them.
    """
    # the name is right: whose it is, or who of them answers, is the question
    if "modelnet-peer owner trust" in error.hint or error.hint == SILENT:
        return
    if error.instead and _is_peer(error.instead) and command == "invoke":
        error.hint = f"another peer serves the same: --provider {error.instead}"
        return
    nobody = isinstance(error, LocalError | NotFound) and error.code in (Code.NOT_FOUND, Code.UNREACHABLE)
    if nobody and _mistyped(error, session, command, given):
        return
    target = given.get(_NAMES.get(command, ""))
    if not isinstance(target, str) or error.code not in (Code.NOT_FOUND, Code.UNREACHABLE):
        return
    if isinstance(error, RemoteError) and error.peer is not None:
        error.hint = error.hint or (_who_else(target) if command == "invoke" else "")
        return
    if target.startswith(("modelnet:", "task:")):
        return
    name = target.partition("@")[0]
    with suppress(ModelnetError):  # a second error would only hide the first
        status = session.ask_running("status", {}, timeout=PATIENCE)
        served = {str(line.get("model")).partition("@")[0] for line in status.get("models", [])}
        known = [*served, *([] if command == "unpublish" else _in_sight(session)[1])]
        if name not in known and (meant := nearest(name, known)):
            flag = "--model " if command == "find" else ""
            where = _home_flag(session)
            again = f"modelnet-peer {command} {flag}{quote(meant)}{where}"
            whose = ", which this peer serves" if meant in served else ""
            error.hint = f"did you mean {meant}{whose}? {again}"


def _mistyped(error: ModelnetError, session: Session, command: str, given: Mapping[str, Any]) -> bool:
    """Hint at the task or the name that was probably meant by a search, or by a call of a task."""
    search, task = " ".join(given.get("search") or ()), given.get("task")
    target = given.get("target")
    if command == "invoke" and isinstance(target, str) and target.startswith("task:"):
        task = target.removeprefix("task:")
    if command not in ("find", "invoke") or not (search or task):
        return False
    from modelnet_p2p.tasks import TASKS

    tasks, models = _in_sight(session)
    if search:
        meant = _meant_search(search, [*TASKS, *tasks], models)
        again = f"find {quote(meant)}" if meant else ""
    else:
        known = {*TASKS, *tasks}
        meant = None if task in known else nearest(str(task), known)
        again = f"find --task {quote(meant)}" if meant else ""
    if meant:
        error.hint = f"did you mean {meant}? modelnet-peer {again}{_home_flag(session)}"
    return meant is not None


def _in_sight(session: Session) -> tuple[list[str], list[str]]:
    """Tasks and models of which the running peer knows."""
    with suppress(ModelnetError):
        words = session.ask_running("models", {}, timeout=PATIENCE)
        return list(map(str, words.get("tasks") or ())), list(map(str, words.get("models") or ()))
    return [], []


def _meant_search(search: str, tasks: Collection[str], models: Collection[str]) -> str | None:
    """The search with the first name in it that nobody knows, but that is like one; None if there is none."""
    from modelnet_p2p.expression import wanted_words
    from modelnet_p2p.searching import parse_search

    choices: dict[str, list[str]] = {}  # by what they may be: a word alone may be a task or a model
    for attribute, name in wanted_words(parse_search(search)):
        known = {"task": tasks, "model": models}.get(attribute, ())
        choices.setdefault(name, []).extend(known)
    for name, known in choices.items():
        if name not in known and (meant := nearest(name, known)):
            return search.replace(name, meant, 1)
    return None


def _is_peer(text: str) -> bool:
    """Whether this stranger's word is a peer's id."""
    from modelnet_p2p.identity import PeerId

    with suppress(ModelnetError):
        return PeerId.parse(text).text == text
    return False


def _who_else(target: str) -> str:
    kind, _, rest = target.partition(":")
    asked = f"--task {quote(rest)}" if kind == "task" else f"--model {quote(target)}"
    return f"modelnet-peer find {asked} lists who offers it"


def _home_flag(session: Session) -> str:
    from modelnet_p2p.node.control.client import home_flag

    return home_flag(session.settings.home)
