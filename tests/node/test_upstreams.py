"""Stories of peers that serve what a server near them has: it comes, goes, changes, and is called."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.node.daemon import _publish
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.restoring import Restoring
from upstream_server import Say, Server, chat_events, in_memory, model_list, say_events, say_json

URL = "http://box/v1"
CHAT = "POST /v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
KEY = "sk-known-to-nobody-else"
ENVIRON = {"OPENAI_API_KEY": "sk-other", "MODELNET_UPSTREAM_KEY": KEY, "HOME": "/root"}
# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


def models_of(status: dict[str, Any]) -> dict[str, str]:
    return {line["model"]: line["state"] for line in status["models"]}


async def until(found: Callable[[], Any], *, wanted: Any = True) -> None:
    """Wait (in virtual time) for as long as anybody would."""
    with trio.fail_after(300):
        while await found() != wanted:
            await trio.sleep(0.25)


async def names(peer: Peer, task: str = "text-generation") -> list[str]:
    return sorted(offer.model for offer in await peer.find(task=task))


async def publish(peer: Peer, source: str = URL, **fields: Any) -> dict[str, Any]:
    return await peer.publish(source, environ=fields.pop("environ", {}), **fields)


def box_with(*chats: str, vectors: str = "") -> Server:
    server = Server()
    server.serve_chat(*chats)
    if vectors:
        server.on("GET /v1/models", say_json(model_list(*chats, vectors)))
        server.on(
            "POST /v1/embeddings",
            lambda body: say_json({"data": [{"embedding": [len(text), 1]} for text in body["input"]]}),
        )
    return server


async def test_all_models_of_a_server_are_found_and_called_by_a_stranger(open_town: OpenTown) -> None:
    box = box_with("llama3.2:1b", "Qwen/Qwen3-8B", vectors="nomic-embed-text:latest")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        steps: list[str] = []
        said = await publish(alice, tags=["home"], on_event=steps.append)
        assert [(line["model"], line["upstream"], line["task"]) for line in said["models"]] == [
            ("llama3.2-1b", "llama3.2:1b", "text-generation"),
            ("qwen/qwen3-8b", "Qwen/Qwen3-8B", "text-generation"),
            ("nomic-embed-text", "nomic-embed-text:latest", "feature-extraction"),
        ]
        assert (said["source"], said["left_out"]) == (URL, [])
        assert all(line["holders"] == {"asked": 1, "stored": 1} for line in said["models"])
        assert "asking http://box/v1 for its models" in steps

        assert await names(bob) == ["llama3.2-1b", "qwen/qwen3-8b"]
        assert len(await bob.find(tag="home")) == 3
        assert await bob.invoke("llama3.2-1b", "Hi", params={"max_tokens": 5}) == ["Hel", "lo"]
        assert box.asked[-1].body["model"] == "llama3.2:1b"
        items = [item async for item in bob.stream("qwen/qwen3-8b", HI)]
        assert [choice["delta"].get("content") for item in items for choice in item["choices"]] == [
            "",
            "Hel",
            "lo",
            "",
        ]
        assert items[-1]["usage"]["total_tokens"] == 5
        assert (await bob.invoke("task:feature-extraction", ["a", "bcd"])).tolist() == [[1, 1], [3, 1]]
        lines = {line["model"]: line for line in (await alice.status())["models"]}
        assert lines["llama3.2-1b"]["upstream"] == f"{URL}#llama3.2:1b"
        record = (await bob.show("llama3.2-1b"))[0]
        assert "box" not in json.dumps(record["record"])  # where the server is, is its publisher's business


async def test_a_peer_joins_with_all_models_of_a_server(open_town: OpenTown) -> None:
    box = box_with("tiny", "other")
    box.on("GET /v1/models", say_json(model_list("tiny", "other", "whisper-1")))
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        told: list[str] = []
        asked = {
            "source": URL,
            "environ": {},
            "tags": ["home"],
            "tier": "edge",
            "price": {"usd_per_call": "0.5"},
        }
        await _publish(alice, asked, told.append)
        assert [line for line in told if line.startswith("serving ")] == ["serving tiny", "serving other"]
        assert any(line.startswith("whisper-1 is left out: ") for line in told)
        offers = await bob.find(tag="home", where="tier:edge and cost<=1")
        assert {offer.model: offer.price for offer in offers} == {
            name: {"usd_per_call": 0.5} for name in ("tiny", "other")
        }


async def test_one_model_of_a_server_under_a_name_of_its_own(open_town: OpenTown) -> None:
    box = box_with("tiny", "other")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        said = await publish(alice, f"{URL}#tiny", model="acme/mine@2", task="translation")
        assert (said["model"], said["task"], said["upstream"]) == ("acme/mine@2", "translation", "tiny")
        assert await names(bob, "translation") == ["acme/mine@2"]
        assert await names(bob) == []
        with pytest.raises(NotFound, match="no model 'none'") as caught:
            await publish(alice, f"{URL}#none")
        assert "tiny, other" in caught.value.hint
        with pytest.raises(LocalError, match="--model names one"):
            await publish(alice, URL, model="mine")
        box.serve_chat("tiny")
        assert (await publish(alice, URL, model="mine"))["model"] == "mine"


async def test_a_dry_run_tells_nobody(open_town: OpenTown) -> None:
    box = box_with("tiny", vectors="bge-small")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        said = await publish(alice, dry_run=True)
        assert [line["model"] for line in said["models"]] == ["tiny", "bge-small"]
        assert all(line["dry_run"] for line in said["models"])
        assert (await alice.status())["models"] == await bob.find(task="text-generation") == []


@pytest.mark.parametrize(
    ("away", "said", "code", "words"),
    [
        (True, None, Code.UNREACHABLE, "http://box/v1 cannot be reached: connection refused"),
        (
            False,
            say_json({"detail": "Not Found"}, 404),
            Code.NOT_FOUND,
            r"^http://box/v1 has no list of models there \(/models\)$",
        ),
        (False, say_json({"error": f"bad key {KEY}"}, 401), Code.FORBIDDEN, "asks for a key"),
        (False, say_json(model_list()), Code.NOT_FOUND, "has no models"),
        (False, say_json(model_list("broken")), Code.NOT_FOUND, "no model of http://box/v1 answers: broken"),
    ],
)
async def test_what_cannot_be_published_is_told_and_not_kept(
    away: bool, said: Say | None, code: Code, words: str, open_town: OpenTown
) -> None:
    box = box_with("tiny")
    box.away = away
    if said is not None:
        box.on("GET /v1/models", said)
    async with in_memory(box=box), open_town() as town:
        alice = await town.peer("alice")
        with pytest.raises((LocalError, NotFound), match=words) as caught:
            await publish(alice, environ=ENVIRON)
        assert caught.value.code is code
        assert KEY not in json.dumps(caught.value.to_map())
        assert (await alice.status())["models"] == []
        with pytest.raises(NotFound):
            await alice.unpublish(URL)


async def test_models_that_do_not_answer_are_left_out_and_come_when_they_do(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("good")
    box.on("GET /v1/models", say_json(model_list("good", "bad")))
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        said = await publish(alice)
        assert [line["model"] for line in said["models"]] == ["good"]
        assert [line["upstream"] for line in said["left_out"]] == ["bad"]
        assert models_of(await alice.status()) == {"good": "serving", "bad": "upstream away"}
        box.serve_chat("good", "bad")
        await until(lambda: names(bob), wanted=["bad", "good"])


async def test_a_server_that_goes_away_is_withdrawn_and_published_again_when_it_is_back(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("tiny", "other")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        heard: list[str] = []
        alice.notices.listen(heard.append)
        seq = (await publish(alice))["models"][0]["seq"]
        box.away = True
        box.hang_up()
        with pytest.raises(RemoteError) as caught:
            await bob.invoke("tiny", "Hi")
        assert (caught.value.code, caught.value.retryable) == (Code.BUSY, True)
        asked = trio.current_time()
        await until(lambda: names(bob), wanted=[])
        assert trio.current_time() - asked < 5  # the failed call was told to whoever looks
        [*_, line] = (await alice.status())["models"]
        assert (line["state"], line["seq"]) == ("upstream away", None)
        assert "connection refused" in line["why"]
        assert any("withdrawn until it answers again" in line for line in heard)
        with pytest.raises(NotFound):
            await bob.invoke("tiny", "Hi")
        await trio.sleep(600)  # it is looked at less and less often
        box.away = False
        await until(lambda: names(bob), wanted=["other", "tiny"])
        assert (await bob.find(model="tiny"))[0].record.seq > seq
        assert await bob.invoke("tiny", "Hi") == ["Hel", "lo"]
        assert any("answers" in line for line in heard)


async def test_a_failure_or_two_do_not_withdraw_it(open_town: OpenTown, autojump_clock: MockClock) -> None:
    box = box_with("tiny")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        answers = iter([say_json({}, 500), say_json({}, 503), *[say_json(model_list("tiny"))] * 9])
        box.on("GET /v1/models", lambda body: next(answers))
        looked = len(box.asked)
        with trio.fail_after(60):
            while len(box.asked) < looked + 4:
                await trio.sleep(0.5)
                assert models_of(await alice.status()) == {"tiny": "serving"}
        assert await names(bob) == ["tiny"]


async def test_a_frozen_server_is_away_too(open_town: OpenTown, autojump_clock: MockClock) -> None:
    box = box_with("tiny")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        box.frozen = True
        await until(lambda: names(bob), wanted=[])
        box.frozen = False
        await until(lambda: names(bob), wanted=["tiny"])


async def test_its_list_is_followed(open_town: OpenTown, autojump_clock: MockClock) -> None:
    box = box_with("one", "two")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        box.serve_chat("two", "three")
        await until(lambda: names(bob), wanted=["three", "two"])
        assert models_of(await alice.status()) == {"two": "serving", "three": "serving"}
        asked = [asked for asked in box.asked if asked.path == "/v1/chat/completions"]
        await trio.sleep(300)
        again = [asked for asked in box.asked if asked.path == "/v1/chat/completions"]
        assert len(again) == len(asked) == 3  # a token of each model, once: looking costs the list alone


async def test_a_model_whose_calls_fail_is_asked_for_a_token_before_it_is_withdrawn(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("tiny", "other")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        well = box.handlers[CHAT]

        def odd(body: Any) -> Say:  # it fails for what this caller sends
            return well(body) if body.get("max_tokens") == 1 else say_json({"error": "odd"}, 500)

        box.on(CHAT, odd)
        for _ in range(3):
            with pytest.raises(RemoteError, match="odd"):
                await bob.invoke("tiny", "Hi")
        tokens = len(box.asked)
        await trio.sleep(30)
        assert await names(bob) == ["other", "tiny"]
        assert len([a for a in box.asked[tokens:] if a.path == "/v1/chat/completions"]) == 1

        broken = say_json({"error": "CUDA error"}, 500)
        box.on(CHAT, lambda body: broken if body["model"] == "tiny" else well(body))
        with pytest.raises(RemoteError, match="CUDA"):
            await bob.invoke("tiny", "Hi")
        await until(lambda: names(bob), wanted=["other"])
        box.on(CHAT, well)
        await until(lambda: names(bob), wanted=["other", "tiny"])


async def test_a_call_moves_to_another_provider_when_the_server_is_gone(open_town: OpenTown) -> None:
    here, there = box_with("tiny", "one"), box_with("tiny")
    async with in_memory(box=here, shed=there), open_town() as town:
        alice, dave = await town.peer("alice"), await town.peer("dave")
        bob = await town.peer("bob")
        sealed = {"model": "tiny"}
        await publish(alice, f"{URL}#tiny", **sealed)
        await publish(dave, "http://shed/v1", **sealed)
        here.away = True
        here.hang_up()
        for _ in range(2):
            outcome = await bob.call("task:text-generation", "Hi")
            assert outcome.provider == dave.id
            assert outcome.attempts <= 2
            assert outcome.output == ["Hel", "lo"]


async def test_what_is_unpublished_stays_away(open_town: OpenTown, autojump_clock: MockClock) -> None:
    box = box_with("one", "two", "three")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        assert (await alice.unpublish("two"))["withdrawn"]
        await trio.sleep(60)
        assert await names(bob) == ["one", "three"]
        await publish(alice, f"{URL}#one", model="mine")  # a source of its own
        await trio.sleep(60)
        assert await names(bob) == ["mine", "one", "three"]
        await alice.unpublish("mine")
        await trio.sleep(60)
        assert await names(bob) == ["one", "three"]
        await publish(alice, f"{URL}#one")  # by the name that it has anyway
        await alice.unpublish("one")
        await trio.sleep(60)
        assert await names(bob) == ["three"]
        said = await alice.unpublish("http://box")
        assert (said["model"], [line["model"] for line in said["models"]]) == (URL, ["three"])
        await trio.sleep(60)
        assert await names(bob) == (await alice.status())["models"] == []
        await publish(alice)  # all of it, again
        assert await names(bob) == ["one", "three", "two"]


async def test_nobody_s_name_is_taken_away(open_town: OpenTown) -> None:
    box, shed = box_with("digits", "a:b", "a-b"), box_with("a:b")
    async with in_memory(box=box, shed=shed), open_town() as town:
        alice = await town.peer("alice")
        await alice.publish("builtin:digits", model="digits")
        got = [line["model"] for line in (await publish(alice))["models"]]
        assert got[1] == "a-b"
        assert got[0].startswith("digits-")
        assert got[2].startswith("a-b-")
        assert (await publish(alice, "http://shed/v1"))["model"].startswith("a-b-")
        with pytest.raises(LocalError) as caught:
            await publish(alice, "http://shed/v1#a:b", model="digits")
        assert caught.value.code is Code.IN_USE
        await alice.publish("builtin:echo", model="a-b")  # what the publisher says outright is done
        assert models_of(await alice.status())["a-b"] == "serving"


async def test_a_model_is_published_by_its_own_name_and_by_others_beside(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("tiny", "slow")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        for name in ("acme/up@1", "acme/too"):
            assert (await publish(alice, f"{URL}#tiny", model=name))["model"] == name
        assert await names(bob) == ["acme/too", "acme/up@1", "slow", "tiny"]

        well = box.handlers[CHAT]
        broken = say_json({"error": "out of memory"}, 500)
        box.on(CHAT, lambda body: broken if body["model"] == "slow" else well(body))
        said = await publish(alice)  # all of it once more, while one of them is not well
        assert [line["model"] for line in said["models"]] == ["tiny"]
        assert [line["upstream"] for line in said["left_out"]] == ["slow"]
        await trio.sleep(60)
        assert await names(bob) == ["acme/too", "acme/up@1", "tiny"]

        said = await alice.unpublish(f"{URL}#tiny")
        assert sorted(line["model"] for line in said["models"]) == ["acme/too", "acme/up", "tiny"]
        await trio.sleep(60)
        assert await names(bob) == []


async def test_a_source_of_its_own_by_the_same_name_is_the_server_s_again_when_all_are_published(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("tiny")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice, f"{URL}#tiny", task="translation")
        assert (await publish(alice))["model"] == "tiny"
        await trio.sleep(60)
        assert (await names(bob), await names(bob, "translation")) == (["tiny"], [])
        well = box.handlers[CHAT]
        box.on(CHAT, say_json({"error": "out of memory"}, 500))
        with pytest.raises(LocalError, match="out of memory"):  # then all is as it was
            await publish(alice, f"{URL}#tiny", task="translation")
        await trio.sleep(60)
        assert models_of(await alice.status()) == {"tiny": "serving"}
        box.on(CHAT, well)
        await publish(alice, f"{URL}#tiny", task="translation")  # and the other way round
        await trio.sleep(60)
        assert (await names(bob), await names(bob, "translation")) == ([], ["tiny"])


async def test_unpublishing_a_server_takes_all_of_its_models_whatever_they_are_called(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("Fake:1B", "other")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice, f"{URL}#Fake:1B", model="acme/llama@1")
        said = await alice.unpublish(URL)
        assert [line["model"] for line in said["models"]] == ["acme/llama"]
        await publish(alice, f"{URL}#Fake:1B", model="acme/llama@1")
        await publish(alice)
        said = await alice.unpublish(URL)
        assert sorted(line["model"] for line in said["models"]) == ["acme/llama", "fake-1b", "other"]
        await trio.sleep(60)
        assert (await alice.status())["models"] == await names(bob) == []
        with pytest.raises(NotFound, match="no models of"):
            await alice.unpublish(URL)


async def test_the_first_that_has_a_name_keeps_it_and_the_other_is_told(
    open_town: OpenTown, autojump_clock: MockClock, tmp_path: Path
) -> None:
    box, home = box_with("Fake:1B", "fake-1b"), Home(tmp_path)
    async with in_memory(box=box), open_town() as town:
        await town.peer("bob")
        async with reopened(town, "alice", home) as alice:
            first, other = (await publish(alice))["models"]
            assert (first["model"], first["upstream"], first["notes"]) == ("fake-1b", "Fake:1B", [])
            assert other["model"].startswith("fake-1b-")
            [note] = other["notes"]
            assert note.startswith(f"fake-1b is {other['model']} here, for fake-1b is Fake:1B;")
            assert note.endswith(f"publish '{URL}#fake-1b' --model NAME")

            box.serve_chat("fake-1b", "Fake:1B")  # the server's order is its own
            await publish(alice, f"{URL}#Fake:1B", model="acme/llama@1")
            again = {line["upstream"]: line["model"] for line in (await publish(alice))["models"]}
            assert again == {"Fake:1B": "fake-1b", "fake-1b": other["model"]}
        async with reopened(town, "alice", home) as alice:
            status: Any = await alice.status()
            upstreams = {line["model"]: line["upstream"] for line in status["models"]}
            assert upstreams == {
                "fake-1b": f"{URL}#Fake:1B",
                other["model"]: f"{URL}#fake-1b",
                "acme/llama@1": f"{URL}#Fake:1B",
            }


async def test_a_name_that_something_else_is_published_under_is_not_taken_back(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("one", "two")
    async with in_memory(box=box), open_town() as town:
        alice = await town.peer("alice")
        await publish(alice, f"{URL}#one", model="mine")
        said = await publish(alice, f"{URL}#two", model="mine")
        await trio.sleep(60)
        assert [line["upstream"] for line in (await alice.status())["models"]] == [f"{URL}#two"]
        assert said["replaces"] == f"{URL}#one"
        await alice.publish("builtin:echo", model="mine")
        await trio.sleep(60)
        [line] = (await alice.status())["models"]
        assert (line["model"], line.get("upstream")) == ("mine", None)
        await alice.unpublish("mine")
        await trio.sleep(60)
        assert (await alice.status())["models"] == []

        await publish(alice)
        box.away = True
        await until(lambda: _states(alice), wanted={"upstream away"})
        await alice.publish("builtin:echo", model="one")
        box.away = False
        await until(lambda: _states(alice), wanted={"serving"})
        lines = {line["model"]: line.get("upstream") for line in (await alice.status())["models"]}
        assert (lines.pop("one"), lines.pop("two"), [*lines.values()]) == (None, f"{URL}#two", [f"{URL}#one"])


async def _states(peer: Peer) -> set[str]:
    return set(models_of(await peer.status()).values())


@asynccontextmanager
async def reopened(town: Any, name: str, home: Home) -> AsyncIterator[Peer]:
    """A peer with a state on disk, restored from it."""
    key = town.key(name)
    async with (
        town.world.open(key) as transport,
        Peer.open_on(transport, key, "town", town.peers["bob"].parts.tuning, State.open(home)) as peer,
        trio.open_nursery() as nursery,
    ):
        await peer.bootstrap(town.peers["bob"].addrs)
        nursery.start_soon(peer.parts.restore)
        await peer.restored.wait()
        yield peer
        nursery.cancel_scope.cancel()


async def test_a_restart_brings_them_back_with_the_key_that_nobody_sees(
    open_town: OpenTown, autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    box, home = box_with("one", "two", "three"), Home(tmp_path)
    async with in_memory(box=box), open_town() as town:
        bob = await town.peer("bob")
        async with reopened(town, "alice", home) as alice:
            await publish(alice, environ=ENVIRON)
            await alice.unpublish("two")
            shown = json.dumps([await alice.status(), await bob.show("one")], default=str)
            assert KEY not in shown + caplog.text
            box.away = True
            await until(lambda: names(bob), wanted=[])
        files = list((tmp_path / "state" / "models").iterdir())
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
        [source] = [file.read_text() for file in files if KEY in file.read_text()]
        assert "sk-other" not in source  # of the environment the one key that is sent is kept
        assert "/root" not in source

        async with reopened(town, "alice", home) as alice:  # while the server is away
            assert models_of(await alice.status()) == {URL: "upstream away"}
            box.away = False
            await until(lambda: names(bob), wanted=["one", "three"])
            assert box.asked[-1].headers["authorization"] == f"Bearer {KEY}"
            assert await bob.invoke("one", "Hi") == ["Hel", "lo"]
        async with reopened(town, "alice", home) as alice:
            assert models_of(await alice.status()) == {"one": "serving", "three": "serving"}
            await trio.sleep(60)
            assert await names(bob) == ["one", "three"]
            await alice.unpublish(URL)
        async with reopened(town, "alice", home) as alice:
            assert (await alice.status())["models"] == await names(bob) == []


async def test_a_restart_brings_all_back_at_the_same_price(
    open_town: OpenTown, autojump_clock: MockClock, tmp_path: Path
) -> None:
    box, home = box_with("one", "two"), Home(tmp_path)
    near = "task:text-generation and tier:edge and cost>=0.002 and language:de"
    async with in_memory(box=box), open_town() as town:
        bob = await town.peer("bob")
        said: dict[str, Any] = {"price": {"usd_per_call": 0.002}, "tier": "edge", "languages": ["de"]}
        async with reopened(town, "alice", home) as alice:
            await publish(alice, **said)
            await alice.publish("builtin:echo", model="echo", task="text-generation", **said)
            assert sorted(offer.model for offer in await bob.find(where=near)) == ["echo", "one", "two"]
            seqs = [offer.seq for offer in await bob.find(where=near)]
        async with reopened(town, "alice", home):
            again = await bob.find(where=near)
            assert sorted(offer.model for offer in again) == ["echo", "one", "two"]
            assert all(offer.price == {"usd_per_call": 0.002} for offer in again)
            assert min(offer.seq for offer in again) > max(seqs)


async def test_other_models_are_withdrawn_while_a_silent_server_is_published(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("one")
    box.on(CHAT, say_events(hang=True))
    async with in_memory(box=box), open_town() as town:
        alice = await town.peer("alice")
        await alice.publish("builtin:echo", model="mine")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, alice)
            await trio.sleep(1)
            assert "POST /v1/chat/completions" in box.paths()
            with trio.fail_after(10):
                assert (await alice.unpublish("mine"))["withdrawn"]
            nursery.cancel_scope.cancel()


async def test_a_silent_server_is_left_a_second_though_a_model_is_due(
    open_town: OpenTown, autojump_clock: MockClock
) -> None:
    box = box_with("one")
    box.on("GET /v1/models", say_json(model_list("one", "broken")))
    async with in_memory(box=box), open_town() as town:
        alice = await town.peer("alice")
        await publish(alice)  # the other one answers nothing, and is tried again now and then
        looks: list[float] = []

        def silent(body: Any) -> Say:
            looks.append(trio.current_time())
            return say_json({"error": "starting"}, 503)

        box.on("GET /v1/models", silent)
        await trio.sleep(60)
        assert len(looks) > 3
        assert all(after - before > 0.9 for before, after in pairwise(looks))


@pytest.mark.parametrize("padding", [0, 290])
async def test_a_server_that_quotes_its_key_tells_it_to_nobody(
    open_town: OpenTown, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, padding: int
) -> None:
    caplog.set_level(logging.DEBUG)
    box = box_with("one")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice, environ=ENVIRON)
        quoted = say_json({"error": {"message": "x" * padding + f"no such key {KEY}"}}, 500)
        in_stream = say_events(json.dumps({"error": {"message": KEY}}).join(("data: ", "\n\n")).encode())
        for said in (quoted, in_stream):
            box.on(CHAT, said)
            with pytest.raises(RemoteError) as caught:
                await bob.invoke("one", "Hi")
            assert KEY[:6] not in str(caught.value)
            await until(lambda: names(bob), wanted=[])  # it was asked for a token, and gave none
            assert KEY[:6] not in json.dumps(await alice.status(), default=str) + caplog.text
            box.serve_chat("one")
            await until(lambda: names(bob), wanted=["one"])
        box.on("GET /v1/models", quoted)
        await until(lambda: names(bob), wanted=[])
        assert KEY[:6] not in json.dumps(await alice.status(), default=str) + caplog.text


async def test_a_silent_server_holds_up_no_other_model_at_a_restart(
    open_town: OpenTown, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, home, kept = box_with("one"), Home(tmp_path), trio.Event()
    async with in_memory(box=box), open_town() as town:
        await town.peer("bob")
        async with reopened(town, "alice", home) as alice:
            await publish(alice)

        async def keep(self: Restoring) -> None:
            kept.set()

        monkeypatch.setattr(Restoring, "keep", keep)
        box.on(CHAT, say_events(hang=True))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def reopen() -> None:
                async with reopened(town, "alice", home):
                    pass

            nursery.start_soon(reopen)
            await kept.wait()
            assert trio.current_time() - began < 60  # and not when the server was given up
            nursery.cancel_scope.cancel()


async def test_a_caller_far_away_who_leaves_stops_the_server(open_town: OpenTown) -> None:
    box = box_with("tiny")
    async with in_memory(box=box), open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await publish(alice)
        box.on(CHAT, say_events(*chat_events("a")[:2], hang=True))
        items = bob.stream("tiny", HI)
        await anext(items)
        assert box.open == 1
        box.closed = trio.Event()
        items.close()
        with trio.fail_after(20):
            await box.closed.wait()
        assert box.open == 0


async def test_peers_that_publish_each_other_s_gateways_make_no_more_and_more_models(
    open_town: OpenTown,
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        chats, tensors = ["/v1/chat/completions", "/api/v1/invoke"], ["/api/v1/invoke"]
        listed = [
            ("others", "12D3other", {"framework": "gguf", "endpoints": chats, "context_length": 99}),
            ("mine", alice.id, {"framework": "python", "endpoints": chats}),
            ("detour", "12D3other", {"framework": "modelnet-p2p", "endpoints": chats}),
            ("tensors", "12D3other", {"framework": "onnx", "endpoints": tensors}),
        ]
        box = box_with(*[name for name, _, _ in listed])
        entries = [{"id": name, "owned_by": owner, "modelnet": told} for name, owner, told in listed]
        box.on("GET /v1/models", say_json({"data": entries}))
        async with in_memory(box=box):
            said = await publish(alice)
        assert (said["model"], said["framework"], said["context_length"]) == ("others", "modelnet-p2p", 99)
