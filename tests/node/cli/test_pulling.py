"""`pull`, as a shell sees it: what it prints of a download, and what it knows without any peer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from modelnet_p2p.names import digest_text
from modelnet_p2p.node.cli.pulling import amount
from modelnet_p2p.node.weights.cache import Cache
from modelnet_p2p.node.weights.hashing import OnDisk, artifact_of

Cli = Callable[..., Any]


@pytest.fixture
def kept(home: Any, tmp_path: Any) -> OnDisk:
    """Weights that an earlier pull has brought."""
    (tmp_path / "a.safetensors").write_bytes(save({"w": np.zeros(1000, np.float32)}))
    found = artifact_of(tmp_path / "a.safetensors")
    cache = Cache(home.cache_path)
    with cache.part(found.artifact) as part:
        part.look()
        part.put(0, memoryview((tmp_path / "a.safetensors").read_bytes()))
        part.finish()
    whole = cache.whole(found.root)
    assert whole is not None
    return whole


def test_what_is_here_needs_no_peer(cli: Cli, kept: OnDisk) -> None:
    digest = digest_text(kept.root)
    ran = cli("pull", digest)
    assert ran.status == 0
    assert "nothing: all of it was here" in ran.out
    assert str(kept.places["model.safetensors"]) in ran.out
    ran = cli("pull", digest, "--json")
    line = json.loads(ran.out)
    assert (line["done"], line["fetched"], line["size"], line["digest"]) == (True, 0, kept.size, digest)
    ran = cli("pull", "--list", "--json")
    line = json.loads(ran.out)
    assert (line["digest"], line["whole"], line["shared"], line["models"]) == (digest, True, None, [])
    ran = cli("pull", "--remove", digest)
    assert ran.status == 0
    assert "freed" in ran.out
    ran = cli("pull", "--list")
    assert (ran.status, ran.out) == (0, "")
    assert cli("pull", "--remove", digest).status == 3


def test_a_wrong_line(cli: Cli) -> None:
    assert cli("pull").status == 2
    assert cli("pull", "sha256:12").status == 2
    assert cli("pull", "No Name").status == 2


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (236_280, "236.3 kB"), (64_000_148, "64.0 MB"), (7e9, "7.0 GB")],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text
