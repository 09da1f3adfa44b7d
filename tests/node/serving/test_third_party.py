"""A backend that another package brings, found by its entry point in the publisher's environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import LocalError
from modelnet_p2p.node.serving.models import Models, Source

PACKAGE = """
from modelnet_p2p.node.serving.backends.contract import Backend, Description

class TownBackend(Backend):
    @classmethod
    def claims(cls, spec):
        return spec.startswith("town://")
    async def load(self):
        self.name = self.source.spec.removeprefix("town://")
    def describe(self):
        return Description(name=self.name, task="x-town/greeting", framework="town")
    async def invoke(self, value, params):
        return f"{self.name} greets {value}"
"""


# Any: the fixture's coroutine function, see conftest.py
async def test_an_installed_package_adds_a_kind_of_model(
    tmp_path: Path, source: Callable[..., Source], models: Models, call: Callable[..., Any]
) -> None:
    (tmp_path / "townpkg.py").write_text(PACKAGE)
    info = tmp_path / "townpkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: townpkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[modelnet.backends]\ntown = townpkg:TownBackend\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}

    served = await models.add(source("town://hall", cwd="/", environ=environ))
    assert served.description.framework == "town"
    assert await call(served, "alice") == ("hall greets alice", [])
    with pytest.raises(LocalError, match="nothing here serves"):
        await models.add(source("town://hall", cwd="/"))  # an environment that does not have the package
