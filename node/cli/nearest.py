"""What was probably meant: the command or the model that a mistyped word is nearest to, and the next step.

Asked only when something failed, so it may cost a question to the running peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from shlex import join, quote
from typing import TYPE_CHECKING, Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError, RemoteError

if TYPE_CHECKING:
    from modelnet_p2p.node.cli.common import Session

LIKENESS = 0.6  # difflib's own measure of "near": one or two slips in a short word
SILENT = "--all lists those that do not answer, too"  # the hint where offers are hidden for that
# seconds that the running peer has to say what it knows, for which it may have to look in the network; the
# error is late by no more, whatever is asked for a hint
PATIENCE = 2.0
MAX_TOLD = 6  # tags in one line
# in hints of a peer that knows the cause
_SETTLED = ("modelnet-peer owner trust", "lists what is there", "date -u")
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

# what is known, the command and its arguments; a hint
_Look = Callable[["_Known", str, Mapping[str, Any]], str]

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
    # the name is right: the question is whose it is, who answers, in which version, or what time it is
    if error.hint == SILENT or any(words in error.hint for words in _SETTLED):
        return
    if error.instead and _is_peer(error.instead) and command == "invoke":
        error.hint = f"another peer serves the same: --provider {error.instead}"
    if error.code not in (Code.NOT_FOUND, Code.UNREACHABLE):
        return
    if isinstance(error, RemoteError):
        if error.peer is not None:
            target = given.get("target")
            error.hint = error.hint or (_who_else(target) if command == "invoke" and target else "")
            return
        looks: tuple[_Look, ...] = (_misnamed,)
    else:
        looks = (_mistyped, _misnamed, _mistagged)
    known = _Known(session, given)
    for look in looks:
        if hint := look(known, command, given):
            error.hint = hint
            return
    if error.code is Code.NOT_FOUND and command == "find" and given.get("tag"):
        error.hint = _tags_there(known, given) or error.hint


class _Known:
    """What the running peer knows that is like the given arguments: each thing is asked for when it is first
    needed, and once; all of them together by one deadline."""

    def __init__(self, session: Session, given: Mapping[str, Any]) -> None:
        self.settings = session.settings
        self._of = {name: given[name] for name in ("task", "model") if given.get(name)}
        self._until = time.monotonic() + PATIENCE

    @cached_property
    def in_sight(self) -> dict[str, list[str]]:
        """Tasks, models and tags."""
        return self._names({})

    @cached_property
    def tags(self) -> list[str]:
        """Of the offers of the task or model that was asked for, which takes a walk; else any in sight."""
        return (self._names(self._of) if self._of else self.in_sight)["tags"]

    @cached_property
    def served(self) -> set[str]:
        """The models that it serves itself."""
        models = self._ask("status", {}).get("models") or ()
        return {str(line.get("model")).partition("@")[0] for line in models}

    def _names(self, of: Mapping[str, str]) -> dict[str, list[str]]:
        words = self._ask("models", of)
        return {kind: list(map(str, words.get(kind) or ())) for kind in ("tasks", "models", "tags")}

    def _ask(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        from modelnet_p2p.node.control.client import ask_at_once

        network = self.settings.network if self.settings.network_asked else None
        return ask_at_once(self.settings.home, method, params, until=self._until, network=network)


def _mistyped(peer: _Known, command: str, given: Mapping[str, Any]) -> str:
    """What a search, or a call of a task, probably meant; empty if nothing is near."""
    search, task = " ".join(given.get("search") or ()), given.get("task")
    target = given.get("target")
    if command == "invoke" and isinstance(target, str) and target.startswith("task:"):
        task = target.removeprefix("task:")
    if command not in ("find", "invoke") or not (search or task):
        return ""
    from modelnet_p2p.tasks import TASKS
    from modelnet_p2p.tiers import TIERS

    sight = peer.in_sight
    known = {*TASKS, *sight["tasks"]}
    meant = _meant_search(search, {**sight, "tasks": list(known), "tiers": TIERS}) if search else None
    if meant:
        return _did_you_mean(meant, peer, given, search=(meant,))
    meant = nearest(str(task), known) if task and task not in known else None
    return _did_you_mean(meant, peer, given, task=meant) if meant else ""


def _misnamed(peer: _Known, command: str, given: Mapping[str, Any]) -> str:
    """The model that was probably meant."""
    target = given.get(_NAMES.get(command, ""))
    if not isinstance(target, str) or target.startswith(("modelnet:", "task:")):
        return ""
    name = target.partition("@")[0]
    known = [*peer.served, *([] if command == "unpublish" else peer.in_sight["models"])]
    meant = nearest(name, known) if name not in known else None
    if not meant:
        return ""
    whose = ", which this peer serves" if meant in peer.served else ""
    if command == "find":
        return _did_you_mean(meant, peer, given, whose, model=meant)
    again = f"modelnet-peer {command} {quote(meant)}{_home_flag(peer)}"
    return f"did you mean {meant}{whose}? {again}"


def _mistagged(peer: _Known, command: str, given: Mapping[str, Any]) -> str:
    """The tag that was probably meant: one that offers of the task or model have, else any in sight."""
    tag = given.get("tag")
    if command != "find" or not tag:
        return ""
    meant = nearest(tag, peer.tags) if tag not in peer.tags else None
    return _did_you_mean(meant, peer, given, tag=meant) if meant else ""


def _tags_there(peer: _Known, given: Mapping[str, Any]) -> str:
    """Which tags there are, where none of them is like the one that was asked for; empty if none is known."""
    known = peer.tags
    if not known or given["tag"] in known:
        return ""
    told = ", ".join(known[:MAX_TOLD]) + ", …" * (len(known) > MAX_TOLD)
    if given.get("task") or given.get("model"):
        again = _find_again(peer, given, tag=None)
        return f"tags there: {told}; {again} --json shows whose"
    return (
        f"this peer has heard of the tags {told}; modelnet-peer find --task TASK --json shows those of a task"
    )


def _did_you_mean(
    meant: str, peer: _Known, given: Mapping[str, Any], whose: str = "", **instead: object
) -> str:
    return f"did you mean {meant}{whose}? {_find_again(peer, given, **instead)}"


def _find_again(peer: _Known, given: Mapping[str, Any], **instead: object) -> str:
    """The search that was typed, as a line to copy, with other words in the places of some."""
    asked = {**given, **instead}
    search = " ".join(asked.get("search") or ())
    flags = [f"--{name} {quote(str(asked[name]))}" for name in ("task", "model", "tag") if asked.get(name)]
    words = [*([quote(search)] if search else []), *flags]
    return f"modelnet-peer find {' '.join(words)}{_home_flag(peer)}"


def _meant_search(search: str, sight: Mapping[str, Collection[str]]) -> str | None:
    """The search with the first name in it that nobody knows, but that is like one; None if there is none."""
    from modelnet_p2p.expression import wanted_words
    from modelnet_p2p.searching import parse_search

    choices: dict[str, list[str]] = {}  # by what they may be: a word alone may be a task, a model or a tag
    for attribute, name in wanted_words(parse_search(search)):
        choices.setdefault(name, []).extend(sight.get(f"{attribute}s", ()))
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


def _home_flag(peer: _Known) -> str:
    from modelnet_p2p.node.control.client import home_flag

    return home_flag(peer.settings.home)
