"""One model in several frameworks on several hosts: its caller notices nothing but the digest."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from safetensors.numpy import save_file

import toys
from modelnet_p2p.digest import listing_of
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.records import Manifest, seal_manifest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("ai_edge_litert")

ACME = KeyPair(b"acme".ljust(32, b"."))
TOY = Path(__file__).parent / "serving" / "toy.tflite"
NAME = "acme/toy"
HAS_TORCH = importlib.util.find_spec("torch") is not None
OpenTown = Any  # the fixture that opens a town, see conftest.py


class Shop:
    """The files of the toy, and the owner's seal of each."""

    def __init__(self, home: Path) -> None:
        self._home = home
        (home / "toy.onnx").write_bytes(toys.onnx_bytes())
        (home / "toy.tflite").write_bytes(TOY.read_bytes())
        (home / "toy_module.py").write_text(toys.MODULE)
        save_file(toys.tensors(), home / "toy.safetensors")

    def digest(self, file: str) -> bytes:
        path = self._home / file
        if path.suffix == ".safetensors":
            return listing_of(path.read_bytes()).root
        return artifact_of(path).root

    async def publish(self, peer: Peer, file: str) -> None:
        manifest = Manifest(ACME.id, NAME, "x-acme/toy", int(time.time()), digest=self.digest(file))
        await peer.publish(
            file,
            module="toy_module:Toy" if file.endswith(".safetensors") else None,
            manifest=seal_manifest(manifest, ACME),
            interpreter=sys.executable,
            cwd=str(self._home),
        )


@pytest.mark.live
async def test_framework_and_host_change_under_one_name(open_town: OpenTown, tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    seen: list[tuple[str, str | None]] = []  # provider and digest of each answer

    async def keep_calling(carol: Peer, done: trio.Event) -> None:
        while not done.is_set():
            outcome = await carol.call(NAME, toys.X)
            np.testing.assert_allclose(np.asarray(outcome.output), toys.expected(toys.X), atol=1e-5)
            seen.append((outcome.provider, outcome.digest))
            await trio.sleep(0.01)

    async def until_answered_by(provider: str, digest: bytes) -> None:
        with trio.fail_after(120):
            while not seen or seen[-1] != (provider, f"sha256:{digest.hex()}"):
                await trio.sleep(0.01)

    files = [*(["toy.safetensors"] if HAS_TORCH else []), "toy.onnx"]
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            for number, file in enumerate(files):  # on one host, from one framework to the next
                await shop.publish(alice, file)
                if not number:
                    nursery.start_soon(keep_calling, carol, done)
                await until_answered_by(alice.id, shop.digest(file))
            await shop.publish(bob, "toy.tflite")  # on another host
            await alice.unpublish(NAME)
            await until_answered_by(bob.id, shop.digest("toy.tflite"))
            done.set()
    assert {digest for _, digest in seen} == {
        f"sha256:{shop.digest(file).hex()}" for file in (*files, "toy.tflite")
    }
