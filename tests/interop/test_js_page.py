"""The program of docs/interop.md, as it stands there, joins, is found by task, is alive, answers calls."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.offers import State
from modelnet_p2p.tuning import TEST

pytestmark = [pytest.mark.js, pytest.mark.live, pytest.mark.slow]
HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "interop.md"
NETWORK = "js-page"
CALM = replace(TEST, dial_timeout=10.0, request_timeout=5.0, ping_timeout=2.0)
SEED = b"j" * 32
NODE_22 = """// what js-libp2p takes from it, for those who test with an older one
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((a, b) => { resolve = a; reject = b })
  return { promise, resolve, reject }
}
"""


def write_program(folder: Path) -> None:
    """The page's one program, beside the file that it says to copy, and the packages."""
    [program] = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "member.mjs").write_text(program)
    (folder / "node22.mjs").write_text(NODE_22)
    (folder / "member.key").write_bytes(SEED)  # it would make one
    shutil.copy(HERE / "modelnet.mjs", folder)
    (folder / "node_modules").symlink_to(HERE / "node_modules")


async def lines_until(process: trio.Process, last: str) -> list[str]:
    assert process.stdout is not None
    heard = b""
    with trio.fail_after(60):
        while not heard.endswith(f"{last}\n".encode()):
            data = await process.stdout.receive_some(65536)
            assert data, f"the program ended: {heard.decode()}"
            heard += data
    return heard.decode().splitlines()


async def test_whoever_follows_the_page_has_a_member_of_the_network(node: str, tmp_path: Path) -> None:
    with single_error():
        await the_story(node, tmp_path)


async def the_story(node: str, folder: Path) -> None:
    write_program(folder)
    where = ["/ip4/127.0.0.1/tcp/0"]
    alice_key, bob_key = KeyPair(b"a" * 32), KeyPair(b"b" * 32)
    async with (
        open_libp2p(alice_key, listen=where, tuning=CALM, network=NETWORK) as at_alice,
        Peer.open_on(at_alice, alice_key, NETWORK, CALM) as alice,
        open_libp2p(bob_key, listen=where, tuning=CALM, network=NETWORK) as at_bob,
        Peer.open_on(at_bob, bob_key, NETWORK, CALM) as bob,
        trio.open_nursery() as nursery,
    ):
        assert (await bob.bootstrap(alice.addrs)).reached
        await alice.publish("builtin:digits")
        command = [node, "--import", "./node22.mjs", "member.mjs", NETWORK, *alice.addrs]
        process: Any = await nursery.start(
            lambda task_status: trio.run_process(
                command, cwd=folder, stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        said = await lines_until(process, "ready")
        member = KeyPair(SEED).id.text
        for name in ("model/js/shout", f"peer/{member}", "task/x-js/shout", "tag/loud"):
            assert f"{name}: stored with 2 of 2" in said, said
        assert f"model/modelnet/digits: modelnet/digits at {alice.id}" in said, said
        assert any(line.startswith(f"{member} is at /ip4/") for line in said), said

        for task, tag, model in (("x-js/shout", None, None), (None, "loud", None), (None, None, "js/shout")):
            [offer] = await bob.find(task, model, tag)
            assert (offer.provider, offer.state, offer.load) == (member, State.ALIVE, 0.0)
        assert await bob.invoke("js/shout", "hello") == "HELLO"
        assert await bob.invoke("task:x-js/shout", 2.5) == "2.5"
        with pytest.raises(RemoteError, match="stream is not served here") as refused:
            async for _ in bob.stream("js/shout", "hello"):
                pass
        assert refused.value.code is Code.UNKNOWN_METHOD
        process.kill()
