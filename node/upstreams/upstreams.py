"""The servers whose models this peer serves: published, remembered, brought back after a restart, taken back.

What is remembered is each source as its publisher wrote it, with its key and the names of models that were
unpublished one by one: a file in the peer's state, for its owner alone. Which models that comes to is found
out by looking.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import trio

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.hosting import Hosting
from modelnet_p2p.node.notices import Notice, Notices
from modelnet_p2p.node.reports import idle_line
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.address import Address, is_address
from modelnet_p2p.node.serving.upstream.looking import Listed, named
from modelnet_p2p.node.upstreams.keeper import AWAY, Keeper, nothing_withdrawn

log = logging.getLogger(__name__)

MAX_SOURCES = 32  # each looks every ten seconds
MAX_SHOWN = 12  # names in a hint
WITHOUT = "without"  # beside the source in its file: models that were unpublished one by one


class Upstreams:
    """By their specs."""

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
            before = self._keepers.get(keeper.address.spec)
            if before is None and len(self._keepers) >= MAX_SOURCES:
                words = f"this peer looks after {MAX_SOURCES} servers already"
                raise LocalError(Code.BUSY, words, hint="unpublish one of them", retryable=False)
            self._remember(keeper)
            if before is not None:
                before.stop()
            self._keepers[keeper.address.spec] = keeper
            await self._release(keeper)
            try:
                await keeper.look(notice)
            finally:  # also when whoever published it has left
                self._nursery.start_soon(keeper.run)
            if before is not None:
                await _leave(before, {model.name for model in keeper.models.values() if model.is_served})
            served = {up: m.answer for up, m in keeper.models.items() if m.is_served}
            left_out = {up: m.trouble for up, m in keeper.models.items() if m.trouble and not m.is_served}
            if not served and before is None:
                await self._end(keeper)
        return _shaped(keeper, served, left_out)

    async def rehearse(self, source: Source, notice: Notice) -> dict[str, object]:
        """What `publish` would say."""
        keeper = await self._meant(source)
        served: dict[str, Mapping[str, object]] = {}
        left_out: dict[str, LocalError] = {}
        for upstream in keeper.wanted(await self._listed(keeper)):
            meant = keeper.source_of(upstream, keeper.free_name(upstream))
            try:
                served[upstream] = await self._hosting.rehearse(meant, notice)
            except LocalError as error:
                left_out[upstream] = error
        return _shaped(keeper, served, left_out)

    async def withdraw(self, target: str) -> dict[str, object] | None:
        """Publish a source, or one model of one, no more; None if `target` is neither. Raises LocalError."""
        if not is_address(target) and self._found(target) is None:
            return None  # at once: a server that is being published may be silent for long
        async with self._changing:
            if is_address(target):
                keeper = self._keepers.get(Address.parse(target).spec)
                if keeper is None:
                    hint = "modelnet-peer status lists what it serves"
                    raise NotFound(f"this peer serves no models of {Address.parse(target).spec}", hint=hint)
                return await self._end(keeper)
            found = self._found(target)
            return None if found is None else await self._withdraw_one(*found)

    def _found(self, target: str) -> tuple[Keeper, str] | None:
        """Whose model `target` names, and what its server calls it."""
        name = ModelUri.parse(target).name
        for keeper in self._keepers.values():
            for upstream, model in keeper.models.items():
                if model.name == name:
                    return keeper, upstream
        return None

    async def restore(self) -> None:
        """Look after what an earlier run did; returns when each was looked at once."""
        if self._state is None:
            return
        remembered = {spec: f for spec, f in self._state.published.items() if is_address(spec)}
        for spec, fields in remembered.items():
            try:
                keeper = self._keeper(Source.from_map(fields), _names(fields.get(WITHOUT)))
            except (ValueError, LocalError) as error:
                log.error("cannot serve the models of %s again: %s (to forget it: unpublish it)", spec, error)
                continue
            self._keepers[keeper.address.spec] = keeper
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
        keeper = self._keeper(source, ())
        listed = await self._listed(keeper)
        base, wanted = keeper.address.base, keeper.address.model
        if not (source.model or wanted):
            return keeper
        if source.model:
            self._check_name(ModelUri.parse(source.model).name, base)
        found = named(listed, wanted) if wanted else listed[0] if len(listed) == 1 else None
        if found is not None:
            return self._keeper(replace(source, spec=replace(keeper.address, model=found.name).spec), ())
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

    def _keeper(self, source: Source, without: Iterable[str]) -> Keeper:
        address = Address.parse(source.spec)
        return Keeper(source, without, self._hosting, partial(self._claimed, address), self._notices.say)

    def _claimed(self, address: Address) -> set[str]:
        """Models of that server that have a source of their own."""
        mine = [k for k in self._keepers.values() if k.address.base == address.base and k.address.model]
        return {name for keeper in mine for name in (keeper.address.model, *keeper.models)}

    async def _release(self, keeper: Keeper) -> None:
        """A model that gets a source of its own leaves the source that has all of that server's."""
        group = self._keepers.get(keeper.address.base)
        if keeper.address.model and group is not None:
            await group.release(keeper.address.model, keeper.free_name(keeper.address.model))

    async def _end(self, keeper: Keeper) -> dict[str, object]:
        spec = keeper.address.spec
        answers = await keeper.end()
        if self._state is not None:
            self._state.drop(spec)
        del self._keepers[spec]
        return {**(answers[-1] if answers else nothing_withdrawn(spec)), "model": spec, "models": answers}

    async def _withdraw_one(self, keeper: Keeper, upstream: str) -> dict[str, object]:
        """It stays away, also where the rest of its server is published."""
        answer = await keeper.exclude(upstream)
        if not keeper.address.model:
            self._remember(keeper)
            return answer
        await self._end(keeper)
        group = self._keepers.get(keeper.address.base)
        if group is not None:
            group.without.add(upstream)
            self._remember(group)
        return answer

    def _remember(self, keeper: Keeper) -> None:
        if self._state is not None:
            fields = {**keeper.source.to_map(), WITHOUT: sorted(keeper.without)}
            self._state.remember(keeper.address.spec, fields, 0)

    def _on_trouble(self, spec: str, error: LocalError) -> None:
        base, _, _ = spec.partition("#")
        for keeper in self._keepers.values():
            if keeper.address.base == base:
                keeper.on_trouble(Address.parse(spec).model, error)


async def _leave(before: Keeper, kept: set[str]) -> None:
    """What an earlier publication of the same source had, and the new one has not."""
    for upstream, model in list(before.models.items()):
        await before.release(upstream, model.name if model.name in kept else "")


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
