"""Looks after one source, `http://host/v1` or `http://host/v1#model`: published is what is there.

A look lists the server's models. New ones are asked for a token and published, vanished ones withdrawn; a
server that does not answer a few times running is away, and all of its models with it, until it answers
again. A model whose calls fail is asked for a token before it is believed to be broken. The record on disk is
the source alone: after a restart the first look finds out what is true by then.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Protocol

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound, RemoteError
from modelnet_p2p.node.notices import Notice, quiet
from modelnet_p2p.node.serving.policy.attendance import Attendance, Rhythm
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import MARK_CHARS, Address, served_name, told_apart
from modelnet_p2p.node.serving.upstream.connection import Gone
from modelnet_p2p.node.serving.upstream.faults import SERVER
from modelnet_p2p.node.serving.upstream.http import KEYS, key_of, open_http
from modelnet_p2p.node.serving.upstream.looking import Listed, list_models, named

log = logging.getLogger(__name__)

SERVER_RHYTHM = Rhythm(between=10.0, again=1.0, failures=3, longest=60.0)
MODEL_RHYTHM = Rhythm(between=60.0, again=10.0, failures=1, longest=300.0)  # a token may cost its loading
MAX_OF_ONE = 48  # models of one server that are published: a peer serves 64
AWAY = "upstream away"  # a state that `status` tells


class Host(Protocol):
    """Who publishes and withdraws models: node/hosting.py."""

    @property
    def me(self) -> str: ...

    async def publish(self, source: Source, notice: Notice, *, remember: bool) -> dict[str, object]: ...

    async def rehearse(self, source: Source, notice: Notice) -> dict[str, object]: ...

    async def withdraw(self, model: str) -> dict[str, object]: ...

    def spec_of(self, name: str) -> str | None: ...


@dataclass(slots=True)
class Model:
    """One of the server's models."""

    name: str  # here, without its version
    attendance: Attendance
    why: str = ""  # it is not published
    suspected: bool = False  # a call of it failed
    answer: Mapping[str, object] = field(default_factory=dict)  # to its last publication
    trouble: LocalError | None = None  # the last one

    @property
    def is_served(self) -> bool:
        return not self.why


class Keeper:
    """One source.

    `names` are those that models of its server have had here, `claimed` tells which of them another source
    has, `keep` is called when a name was given.
    """

    def __init__(
        self,
        source: Source,
        without: Iterable[str],
        names: Mapping[str, str],
        host: Host,
        claimed: Callable[[Keeper], set[str]],
        keep: Callable[[Keeper], None],
        say: Notice,
    ) -> None:
        self.address = Address.parse(source.spec)
        self.chosen = source.model.partition("@")[0] if source.model else ""  # its publisher's name for it
        self._key, name = key_of(self.address, source.environ)
        self.source = replace(source, spec=self.address.spec, environ={name: self._key} if name else {})
        self.without = set(without)  # names over there of models that were unpublished one by one
        self.names = dict(names)  # by the names over there
        self.models: dict[str, Model] = {}  # by the name over there
        self.looked = trio.Event()  # set once the first look is over
        self._host = host
        self._claimed = claimed
        self._keep = keep
        self._say = say
        self._attendance = Attendance(SERVER_RHYTHM, trio.current_time())
        self._is_silent = False  # as far as the last look tells
        self._why_away = "not looked at yet"
        self._doubted = trio.Event()
        self._looking = trio.Lock()
        self._scope = trio.CancelScope()

    @property
    def key(self) -> str:
        """What it is remembered by: a model may be published under several names."""
        if not self.chosen:
            return self.address.spec
        return f"{self.address.spec} {hashlib.sha256(self.chosen.encode()).hexdigest()[:MARK_CHARS]}"

    def replaces(self, other: Keeper) -> bool:
        """Whether what `other` serves is this one's from now on, for it has the same name."""
        if other.address.base != self.address.base or not other.address.model:
            return other.key == self.key
        if not self.address.model:
            return not other.chosen or other.chosen == self.name_of(other.address.model)
        same = self.chosen or other.address.model == self.address.model
        return bool(same) and self._own_name == other._own_name

    @property
    def _own_name(self) -> str:
        return self.chosen or self.name_of(self.address.model)

    # --- for as long as the source is published ---

    async def run(self) -> None:
        """Look again and again, until `stop`."""
        with self._scope:
            while True:
                with trio.CancelScope(deadline=self._next_at()):
                    await self._doubted.wait()
                self._doubted = trio.Event()
                if trio.current_time() >= self._next_at():
                    await self.look(quiet)

    def stop(self) -> None:
        self._scope.cancel()

    async def end(self) -> list[dict[str, object]]:
        """Withdraw all of it; the answers. Raises LocalError when that cannot be kept on disk."""
        self.stop()
        async with self._looking:
            served = [model for model in self.models.values() if model.is_served]
            return [await withdrawn(self._host, model.name) for model in served]

    async def release(self, upstream: str, name: str) -> Model | None:
        """Another source has this model from now on, and calls it `name`."""
        async with self._looking:
            model = self.models.pop(upstream, None)
            if model is not None and model.is_served and model.name != name:
                await self._withdraw(model, "another source has it")
            return model

    async def exclude(self, upstream: str) -> dict[str, object]:
        """Publish this model no more; the answer of its withdrawal. Raises LocalError as `end` does."""
        async with self._looking:
            model = self.models.get(upstream)
            if model is not None and model.is_served:
                answer = await withdrawn(self._host, model.name)
            else:
                answer = nothing_withdrawn(self.chosen or self.name_of(upstream))
            self.models.pop(upstream, None)
            self.without.add(upstream)
            return answer

    async def listed(self) -> list[Listed]:
        """What the server has; raises LocalError."""
        async with open_http(self.address, self._key) as http:
            return await list_models(http)

    async def look(self, notice: Notice) -> None:
        """Publish and withdraw what has changed."""
        async with self._looking:
            try:
                listed = await self.listed()
            except LocalError as error:
                await self._on_silence(error)
            else:
                await self._on_list(listed, notice)
            self.looked.set()

    def on_trouble(self, upstream: str, error: LocalError) -> None:
        """A call of the model that the server calls so failed, and not by its caller's fault."""
        model = self.models.get(upstream)
        if isinstance(error, Gone):
            self._attendance.on_doubt()
        elif model is not None and error.code is not Code.BUSY:
            model.suspected = True
            model.attendance.on_doubt()
        self._doubted.set()

    def _next_at(self) -> float:
        soonest = self._attendance.next_at
        if self._is_silent or not self._attendance.is_here:
            return soonest  # no model can be asked for anything before
        due = [m.attendance.next_at for m in self.models.values() if m.suspected or not m.is_served]
        return min([soonest, *due])

    # --- what a look found ---

    async def _on_silence(self, error: LocalError) -> None:
        was_here, self._is_silent = self._attendance.is_here, True
        self._attendance.on_silence(trio.current_time())
        self._why_away = self.words_of(error)
        if self._attendance.is_here:
            return
        served = [model for model in self.models.values() if model.is_served]
        if was_here or served:
            count = f"its {len(served)} models are" if len(served) != 1 else "its model is"
            self._say(f"{self._why_away}: {count} withdrawn until it answers again")
        for model in served:
            await self._withdraw(model, self._why_away)
            model.attendance = _attendance()  # it is tried as soon as its server is back

    async def _on_list(self, listed: list[Listed], notice: Notice) -> None:
        if not self._attendance.is_here and self.looked.is_set():
            self._say(f"{self.address.base} answers")
        self._attendance.on_answer(trio.current_time())
        self._is_silent = False
        wanted = self.wanted(listed)
        for upstream in [name for name in self.models if name not in wanted]:
            model = self.models.pop(upstream)
            if model.is_served:
                self._say(f"{self.address.base} has no model {upstream!r} any more: it is withdrawn")
                await self._withdraw(model, "gone")
        here = {model.name for model in listed}
        self.names = {upstream: name for upstream, name in self.names.items() if upstream in here}
        if self.address.model and not wanted:
            self._why_away = f"{self.address.base} has no model {self.address.model!r}"
        for upstream in wanted:
            model = self.models.get(upstream) or self._new(upstream)
            if self._has_lost_its_name(upstream, model):
                continue
            if (model.suspected or not model.is_served) and trio.current_time() >= model.attendance.next_at:
                await self._try(upstream, model, notice)

    def _has_lost_its_name(self, upstream: str, model: Model) -> bool:
        """Whether something else is published under the name that it must have; otherwise it gets another."""
        taker = self._host.spec_of(model.name)
        if taker == self._spec(upstream):
            return False
        if model.is_served:
            model.why = "its name was taken"
        if taker is None:
            return False
        if self.chosen:
            model.why = f"{model.name} is {taker} now"
            return self.looked.is_set()  # the first look is its publisher's wish
        before, model.name = model.name, self._given_name(upstream)
        self._say(f"{before} is {taker} now: {upstream!r} of {self.address.base} is {model.name}")
        return False

    def wanted(self, listed: list[Listed]) -> list[str]:
        """Those that should be published, as they are called over there."""
        if self.address.model:
            found = named(listed, self.address.model)
            return [found.name] if found else []
        others = self._claimed(self) | self.without
        fitting = [model.name for model in listed if model.may_be_served(self._host.me)]
        return [name for name in fitting if name not in others][:MAX_OF_ONE]

    def _new(self, upstream: str) -> Model:
        model = self.models[upstream] = Model(self._given_name(upstream), _attendance(), "not published yet")
        return model

    def _given_name(self, upstream: str) -> str:
        """Its name from now on, also after a restart."""
        name = self.free_name(upstream)
        if not self.chosen and self.names.get(upstream) != name:
            self.names[upstream] = name
            self._keep(self)
        return name

    def name_of(self, upstream: str) -> str:
        """What it is called here if nobody says otherwise: as before, or after its name over there."""
        return self.names.get(upstream) or served_name(upstream)

    def free_name(self, upstream: str) -> str:
        """What it is to be called: nobody's name is taken away."""
        if self.chosen:
            return self.chosen
        name, mine = self.name_of(upstream), self._spec(upstream)
        used = {other_name for other, other_name in self.names.items() if other != upstream}
        if name in used or self._host.spec_of(name) not in (None, mine):
            return told_apart(served_name(upstream), mine)
        return name

    def notes(self, upstream: str, name: str) -> list[str]:
        """What its publisher should know of the name that it has got."""
        own = served_name(upstream)
        if self.chosen or name == own:
            return []
        holder = next((other for other, used in self.names.items() if used == own), self._host.spec_of(own))
        if holder is None:
            return []
        command = f"modelnet-peer publish {quote(self._spec(upstream))} --model NAME"
        return [f"{upstream} is {name} here, for {own} is {holder}; to name it yourself: {command}"]

    def source_of(self, upstream: str, name: str) -> Source:
        """The one model as something to publish."""
        return replace(self.source, spec=self._spec(upstream), model=self.source.model or name)

    def _spec(self, upstream: str) -> str:
        return replace(self.address, model=upstream).spec

    async def _try(self, upstream: str, model: Model, notice: Notice) -> None:
        """Have it answer; publish it if it does, and withdraw it if it does not."""
        source, model.suspected = self.source_of(upstream, model.name), False
        try:
            if model.is_served:
                await self._host.rehearse(source, quiet)
            else:
                model.answer = await self._host.publish(source, notice, remember=False)
        except LocalError as error:
            model.attendance.on_silence(trio.current_time())
            model.trouble, why = error, self.words_of(error)
            if model.is_served:
                self._say(f"{model.name} is withdrawn until it works again: {why}")
                await self._withdraw(model, why)
            model.why = why
            return
        except ModelnetError as error:  # no majority yet: it is served, and told again in the background
            log.warning("%s is served, but the network is not told yet: %s", model.name, error.message)
            model.answer = {"model": model.name, "holders": {"asked": 0, "stored": 0}}
        model.attendance.on_answer(trio.current_time())
        model.why = ""

    async def _withdraw(self, model: Model, why: str) -> None:
        model.why = why
        try:
            await withdrawn(self._host, model.name)
        except LocalError as error:
            log.error("%s cannot be withdrawn: %s", model.name, error.message)

    # --- for people ---

    def words_of(self, error: LocalError) -> str:
        """An error for callers as one for the publisher, who may know where the server is."""
        return error.message.replace(SERVER, self.address.base)

    def for_publisher(self, error: LocalError) -> LocalError:
        if error.code is Code.FORBIDDEN:
            hint = f"set {KEYS[0]} in this shell, and publish it again"
            return LocalError(
                error.code, f"{self.address.base} asks for a key, or for another one", hint=hint
            )
        if error.code is Code.BUSY:
            hint = f"is it running? curl {self.address.base}/models"
            return LocalError(Code.UNREACHABLE, self.words_of(error), hint=hint)
        return LocalError(error.code, self.words_of(error), hint=error.hint)

    def away(self) -> dict[str, tuple[str, str]]:
        """By name here: what of it is not published now, its spec, and why not."""
        if not self.models and (self.address.model or not self._attendance.is_here):
            return {self.address.spec: (self.address.spec, self._why_away)}
        return {
            model.name: (self._spec(upstream), model.why)
            for upstream, model in self.models.items()
            if not model.is_served
        }


def _attendance() -> Attendance:
    return Attendance(MODEL_RHYTHM, trio.current_time())


async def withdrawn(host: Host, name: str) -> dict[str, object]:
    """Withdraw it here; holders that could not be told are told again. Raises LocalError."""
    try:
        return await host.withdraw(name)
    except (RemoteError, NotFound) as error:
        log.warning("the withdrawal of %s is not told yet: %s", name, error.message)
        return nothing_withdrawn(name)


def nothing_withdrawn(name: str) -> dict[str, object]:
    """The contract's answer where no record was out."""
    return {"model": name, "withdrawn": True, "seq": 0, "holders": {"asked": 0, "stored": 0}}
