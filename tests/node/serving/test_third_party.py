"""A backend that another package brings, found by its entry point in the publisher's environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source

PACKAGE = """
import asyncio, threading
from modelnet_p2p.node.serving.backends.contract import Backend, Description

class TownBackend(Backend):
    @classmethod
    def claims(cls, spec):
        return spec.startswith("town:")
    async def load(self):
        self.name = self.source.spec.removeprefix("town:").strip("/")
    def describe(self):
        if self.name == "nowhere":
            raise RuntimeError("no such town\\non the map")
        if self.name == "nothing":
            return None
        return Description(
            name=self.name,
            task="x-town/greeting",
            framework="town",
            licence="CC0-1.0",
            metrics={"warmth": 900_000},
            family="town/greeters",
            exits=(1, 2),
            manifest_envelope=b"by the mayor",
            idempotent=True,
        )
    async def invoke(self, value, params):
        return f"{self.name} greets {value}"

class Later:
    def __await__(self):
        yield "not a future"

class StreetBackend(TownBackend):
    blocks = True
    @classmethod
    def claims(cls, spec):
        return spec.startswith("street:")
    async def invoke(self, value, params):
        match value:
            case "sleep": await asyncio.sleep(0.01)
            case "later": await Later()
        return await self.offload(lambda: f"{threading.current_thread().name} greets {value}")

class Grumpy(Backend):
    @classmethod
    def claims(cls, spec):
        raise ValueError("do not ask me")

class Stranger:
    pass
"""
ENTRY_POINTS = """[modelnet.backends]
town = townpkg:TownBackend
street = townpkg:StreetBackend
absent = no_such_package:Backend
grumpy = townpkg:Grumpy
stranger = townpkg:Stranger
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of a publisher who has that package, and what is broken in it."""
    site = tmp_path / "site"
    info = site / "townpkg-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "townpkg.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: townpkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return {**os.environ, "PYTHONPATH": str(site)}


# Any, here and below: the fixture's coroutine function, see conftest.py
@pytest.mark.parametrize("spec", ["town://hall", "town:hall"])  # the latter looks like MODULE:NAME
async def test_an_installed_package_adds_a_kind_of_model(
    environ: dict[str, str],
    source: Callable[..., Source],
    models: Models,
    call: Callable[..., Any],
    spec: str,
) -> None:
    served = await models.add(source(spec, cwd="/", environ=environ))
    description = served.description
    assert (description.name, description.framework) == ("hall", "town")
    assert (description.licence, description.metrics) == ("CC0-1.0", {"warmth": 900_000})
    assert (description.family, description.exits) == ("town/greeters", (1, 2))
    assert description.manifest_envelope == b"by the mayor"
    assert description.idempotent
    assert await call(served, "alice") == ("hall greets alice", [])


async def test_a_backend_that_blocks_awaits_nothing_else(
    environ: dict[str, str], source: Callable[..., Source], models: Models, call: Callable[..., Any]
) -> None:
    """What it may not do is a fault of its own, and no hang."""
    served = await models.add(source("street:1", model="town/street", cwd="/", environ=environ))
    for value, words in (("sleep", "no running event loop"), ("later", "awaits only `offload`")):
        with pytest.raises(LocalError, match=f"the model raised RuntimeError: .*{words}"):
            await call(served, value)
        assert await call(served, "alice") == ("model greets alice", [])


async def test_an_environment_that_does_not_have_the_package(
    source: Callable[..., Source], models: Models
) -> None:
    with pytest.raises(LocalError, match="nothing here serves"):
        await models.add(source("town://hall", cwd="/"))


async def test_a_broken_backend_is_left_out_and_named(
    environ: dict[str, str], source: Callable[..., Source], models: Models, call: Callable[..., Any]
) -> None:
    served = await models.add(source("shop:upper", environ=environ))
    assert await call(served, "a") == ("A", [])
    with pytest.raises(LocalError) as caught:
        await models.add(source("city://hall", environ=environ))
    assert caught.value.code is Code.BAD_INPUT
    for words in (
        "nothing here serves 'city://hall'",
        "'absent' is left out: ModuleNotFoundError: No module named 'no_such_package'",
        "'grumpy' is left out: ValueError: do not ask me",
        "'stranger' is left out: TypeError: townpkg:Stranger is not a subclass of Backend",
    ):
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("town:nowhere", "RuntimeError: no such town on the map"),
        ("town:nothing", "AttributeError: 'NoneType'"),
    ],
)
async def test_a_backend_that_raises_is_not_taken_for_a_missing_install(
    environ: dict[str, str], source: Callable[..., Source], models: Models, spec: str, words: str
) -> None:
    with pytest.raises(LocalError) as caught:
        await models.add(source(spec, environ=environ))
    assert f"the backend of {spec} raised {words}" in caught.value.message
    assert "install" not in caught.value.message + caught.value.hint
