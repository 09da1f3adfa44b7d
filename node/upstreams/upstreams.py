"""The servers whose models this peer serves: published, remembered, brought back after a restart, taken back.

What is remembered is each source as its publisher wrote it, with its key, the names of models that were
unpublished one by one, and what the others are called here: a file in the peer's state, for its owner alone.
Which models that comes to is found out by looking.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.names import ModelUri, is_model_name
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.hosting import Hosting
from modelnet_p2p.node.notices import Notice, Notices
from modelnet_p2p.node.reports import idle_line
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import Address, is_address
from modelnet_p2p.node.serving.upstream.looking import Listed, is_named, named
from modelnet_p2p.node.upstreams.keeper import AWAY, Keeper, Model, nothing_withdrawn

log = logging.getLogger(__name__)

MAX_SOURCES = 32  # each looks every ten seconds
MAX_SHOWN = 12  # names in a hint
WITHOUT = "without"  # beside the source in its file: models that were unpublished one by one
NAMES = "names"  # ... and what models are called here, by their names over there


class Upstreams:
    """By their keys, the oldest publication first.

    All models of a server are one source. One of them may be a source of its own beside that, under another
    name; under the same name it is the newer source's.
    """

    def __init__(
        self, hosting: Hosting, models: Models, state: State | None, notices: Notices, nursery: trio.Nursery
    ) -> None:
        self._hosting = hosting
        self._state = state
        self._notices = notices
        self._nursery = nursery
        self._keepers: dict[str, Keeper] = {}
        self._changing = trio.Lock()
        models.on_trouble = self._on_trouble

    async def publish(self, source: Source, notice: Notice) -> dict[str, object]:
        """Serve what this server has, and follow it; the contract's `publish` object where that is one model.

        Of several: `{"source", "models": [object, …], "left_out": [{"upstream", "why"}, …]}`. Raises
        LocalError: unreachable, forbidden, not-found, in-use, and why no model of it could be served.
        """
        async with self._changing:
            notice(f"asking {source.spec.partition('#')[0]} for its models")
            keeper = await self._meant(source)
            before = self._keepers.pop(keeper.key, None)
            if before is None and len(self._keepers) >= MAX_SOURCES:
                words = f"this peer looks after {MAX_SOURCES} servers already"
                raise LocalError(Code.BUSY, words, hint="unpublish one of them", retryable=False)
            replaced = [other for other in self._keepers.values() if keeper.replaces(other)]
            self._remember(keeper)
            self._keepers[keeper.key] = keeper
            if before is not None:
                before.stop()
            released = await self._release(keeper)
            try:
                await keeper.look(notice)
            finally:  # also when whoever published it has left
                self._nursery.start_soon(keeper.run)
            served = {up: _noted(keeper, up, model) for up, model in keeper.models.items() if model.is_served}
            left_out = {up: m.trouble for up, m in keeper.models.items() if m.trouble and not m.is_served}
            kept = {model.name for model in keeper.models.values() if model.is_served}
            if before is not None:
                await _leave(before, kept)
            if served:
                for other in replaced:
                    await _leave(other, kept)
                    await self._end(other)
            elif before is None:
                await self._end(keeper)
                if released is not None:  # it stays what it was
                    self._keepers[keeper.address.base].models[keeper.address.model] = released
        return _shaped(keeper, served, left_out)

    async def rehearse(self, source: Source, notice: Notice) -> dict[str, object]:
        """What `publish` would say."""
        keeper = await self._meant(source)
        served: dict[str, Mapping[str, object]] = {}
        left_out: dict[str, LocalError] = {}
        for upstream in keeper.wanted(await self._listed(keeper)):
            name = keeper.free_name(upstream)
            keeper.names[upstream] = name
            try:
                line = await self._hosting.rehearse(keeper.source_of(upstream, name), notice)
                served[upstream] = _with_notes(line, keeper.notes(upstream, name))
            except LocalError as error:
                left_out[upstream] = error
        return _shaped(keeper, served, left_out)

    async def withdraw(self, target: str) -> dict[str, object] | None:
        """Publish a source, or one model of one, no more; None if `target` is neither. Raises LocalError."""
        if not is_address(target) and self._found(target) is None:
            return None  # at once: a server that is being published may be silent for long
        async with self._changing:
            if is_address(target):
                return await self._withdraw_all(Address.parse(target))
            found = self._found(target)
            return None if found is None else await self._withdraw_one(*found)

    async def _withdraw_all(self, address: Address) -> dict[str, object]:
        """All models of a server, or one of them by all of its names."""
        mine = [keeper for keeper in self._keepers.values() if keeper.address.base == address.base]
        answers: list[dict[str, object]] = []
        found = False
        for keeper in mine:
            if not address.model:
                found, answers = True, answers + await self._end(keeper)
                continue
            here = [keeper.address.model] if keeper.address.model else list(keeper.models)
            for upstream in [name for name in here if is_named(name, address.model)]:
                found, answers = True, [*answers, await self._withdraw_one(keeper, upstream)]
        if not found:
            hint = "modelnet-peer status lists what it serves"
            raise NotFound(f"this peer serves no models of {address.spec}", hint=hint)
        last = answers[-1] if answers else nothing_withdrawn(address.spec)
        return {**last, "model": address.spec, "models": answers}

    async def yield_name(self, name: str) -> None:
        """Something else is published under `name` now: a source that must have it is over."""
        if not any(keeper.chosen == name for keeper in self._keepers.values()):
            return  # at once: a server that is being published may be silent for long
        async with self._changing:
            for keeper in [keeper for keeper in self._keepers.values() if keeper.chosen == name]:
                await _leave(keeper, {name})
                await self._end(keeper)

    def _found(self, target: str) -> tuple[Keeper, str] | None:
        """Whose model `target` names, and what its server calls it."""
        name = ModelUri.parse(target).name
        spec = self._hosting.spec_of(name)
        for keeper in self._keepers.values():
            for upstream, model in keeper.models.items():
                if model.name == name and spec in (None, keeper.source_of(upstream, name).spec):
                    return keeper, upstream
        return None

    async def restore(self) -> None:
        """Look after what an earlier run did; returns when each was looked at once."""
        if self._state is None:
            return
        remembered = {spec: f for spec, f in self._state.published.items() if is_address(spec)}
        for key, fields in sorted(remembered.items()):  # a server before its models: these are newer
            try:
                source = Source.from_map(fields)
                keeper = self._keeper(source, _names(fields.get(WITHOUT)), _map(fields.get(NAMES)))
            except (ValueError, LocalError) as error:
                log.error("cannot serve the models of %s again: %s (to forget it: unpublish it)", key, error)
                continue
            self._keepers[keeper.key] = keeper
            self._nursery.start_soon(keeper.run)
        for keeper in list(self._keepers.values()):
            await keeper.looked.wait()

    def lines(self) -> list[dict[str, object]]:
        """For `status`: what is not published now, and why not."""
        return [
            {**idle_line(name, AWAY), "upstream": spec, "why": why}
            for keeper in self._keepers.values()
            for name, (spec, why) in keeper.away().items()
        ]

    # --- the steps of it ---

    async def _meant(self, source: Source) -> Keeper:
        """Raises LocalError if that server is away, or has no such model.

        With a name of its own a source is one model: the one that it names, or the only one there is.
        """
        keeper = self._keeper(source)
        listed = await self._listed(keeper)
        base, wanted = keeper.address.base, keeper.address.model
        if not (source.model or wanted):
            return keeper
        if source.model:
            self._check_name(ModelUri.parse(source.model).name, base)
        found = named(listed, wanted) if wanted else listed[0] if len(listed) == 1 else None
        if found is not None:
            return self._keeper(replace(source, spec=replace(keeper.address, model=found.name).spec))
        hint = f"it has {', '.join(model.name for model in listed[:MAX_SHOWN]) or 'none'}"
        if wanted:
            raise NotFound(f"{base} has no model {wanted!r}", hint=hint)
        words = f"{base} has {len(listed)} models, and --model names one"
        raise LocalError(Code.BAD_INPUT, words, hint=f"say which by {base}#MODEL: {hint}")

    def _check_name(self, name: str, base: str) -> None:
        """Raises LocalError (in-use) if the name that a publisher wants is that of another model."""
        spec = self._hosting.spec_of(name)
        if spec is not None and spec.partition("#")[0] != base:
            hint = f"choose another name, or first: modelnet-peer unpublish {name}"
            raise LocalError(Code.IN_USE, f"this peer serves {spec[:80]} as {name} already", hint=hint)

    async def _listed(self, keeper: Keeper) -> list[Listed]:
        try:
            return await keeper.listed()
        except LocalError as error:
            raise keeper.for_publisher(error) from error

    def _keeper(
        self, source: Source, without: Iterable[str] = (), names: Mapping[str, str] | None = None
    ) -> Keeper:
        """Its models are called as they were, by it or by the source that has all of that server's."""
        if names is None:
            address = Address.parse(source.spec)
            before = self._keepers.get(address.spec) or self._keepers.get(address.base)
            names = before.names if before is not None else {}
        return Keeper(
            source, without, names, self._hosting, self._claimed, self._remember_names, self._notices.say
        )

    def _claimed(self, keeper: Keeper) -> set[str]:
        """Models of that server that newer sources have, under the names that they had in this one."""
        order = list(self._keepers.values())
        newer = order[order.index(keeper) + 1 :] if keeper in order else []
        return {other.address.model for other in newer if keeper.replaces(other)}

    async def _release(self, keeper: Keeper) -> Model | None:
        """A model that gets a source of its own by the same name leaves the one that has all of them."""
        group, upstream = self._keepers.get(keeper.address.base), keeper.address.model
        if not upstream or group is None or not group.replaces(keeper):
            return None
        return await group.release(upstream, keeper.free_name(upstream))

    async def _end(self, keeper: Keeper) -> list[dict[str, object]]:
        """Look after it no more; the answers of its models' withdrawals."""
        answers = await keeper.end()
        if self._state is not None:
            self._state.drop(keeper.key)
        del self._keepers[keeper.key]
        return answers

    async def _withdraw_one(self, keeper: Keeper, upstream: str) -> dict[str, object]:
        """It stays away, also where the rest of its server is published."""
        answer = await keeper.exclude(upstream)
        group = self._keepers.get(keeper.address.base)
        if keeper is not group:
            await self._end(keeper)
        if group is not None and group.replaces(keeper):
            group.without.add(upstream)
            self._remember(group)
        return answer

    def _remember_names(self, keeper: Keeper) -> None:
        if self._keepers.get(keeper.key) is not keeper:
            return  # it is not published yet, or no more
        try:
            self._remember(keeper)
        except LocalError as error:
            log.error("the names of %s may be others after a restart: %s", keeper.address.base, error.message)

    def _remember(self, keeper: Keeper) -> None:
        if self._state is not None:
            fields = {**keeper.source.to_map(), WITHOUT: sorted(keeper.without), NAMES: keeper.names}
            self._state.remember(keeper.key, fields, 0)

    def _on_trouble(self, spec: str, error: LocalError) -> None:
        base, _, _ = spec.partition("#")
        for keeper in self._keepers.values():
            if keeper.address.base == base:
                keeper.on_trouble(Address.parse(spec).model, error)


async def _leave(before: Keeper, kept: set[str]) -> None:
    """Withdraw what an earlier source had, and the new one has not."""
    before.stop()
    for upstream, model in list(before.models.items()):
        await before.release(upstream, model.name if model.name in kept else "")


def _noted(keeper: Keeper, upstream: str, model: Model) -> Mapping[str, object]:
    return _with_notes(model.answer, keeper.notes(upstream, model.name))


def _with_notes(line: Mapping[str, object], notes: list[str]) -> Mapping[str, object]:
    """The answer for one model, with what its publisher should know beside."""
    told = line.get("notes")
    return {**line, "notes": [*(told if isinstance(told, list) else ()), *notes]}


def _shaped(
    keeper: Keeper, served: Mapping[str, Mapping[str, object]], left_out: Mapping[str, LocalError]
) -> dict[str, object]:
    """One model's line, or those of several; raises LocalError if there are none."""
    if not served:
        base = keeper.address.base
        trouble = next(iter(left_out.values()), None)
        if trouble is None:
            raise NotFound(f"{base} has no models to publish", hint="give it one, and publish it again")
        some = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        error = keeper.for_publisher(trouble)
        words = f"no model of {base} answers: {next(iter(left_out))}{some}: {error.message}"
        raise LocalError(error.code, words, hint=error.hint)
    lines = [{**line, "upstream": upstream} for upstream, line in served.items()]
    whys = [{"upstream": up, "why": keeper.words_of(error)} for up, error in left_out.items()]
    if len(lines) == 1 and not whys:
        return lines[0]
    return {"source": keeper.address.spec, "models": lines, "left_out": whys}


def _names(wire: object) -> list[str]:
    """The names in a state file, those that are some."""
    return [name for name in wire if isinstance(name, str)] if isinstance(wire, list) else []


def _map(wire: object) -> dict[str, str]:
    """A map of names in a state file, as far as it is one."""
    pairs = wire.items() if isinstance(wire, dict) else ()
    return {upstream: name for upstream, name in pairs if isinstance(name, str) and is_model_name(name)}
