"""What strangers' models do to their worker, and what alice's peer makes of it. Real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.models import MAX_MODELS, Models, _named, open_models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import TEST

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]
Gone = Callable[[int], Awaitable[None]]


HANG = 60  # seconds: tells a hang from a machine where others build; nothing here takes long by itself


def pid_of(served: Served) -> int:
    assert served.pid is not None
    return served.pid


async def refuses(call: Call, served: Served, value: Value, code: Code, **params: Value) -> ModelnetError:
    with pytest.raises(ModelnetError) as caught:
        await call(served, value, **params)
    assert caught.value.code is code, caught.value.message
    return caught.value


async def test_a_function_is_served_with_its_keywords(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:upper"))
    description = served.description
    assert (description.name, description.task, description.framework) == (
        "upper",
        "x-modelnet/function",
        "python",
    )
    assert [spec.kind for spec in (*description.inputs, *description.outputs)] == ["text", "text"]
    answer, items = await call(served, "hello", suffix="!")
    assert (answer, items) == ("HELLO!", [])
    answer, items = await call(served, "hello", method="stream")
    assert (answer, items) == (None, ["HELLO"])
    error = await refuses(call, served, "hello", Code.BAD_INPUT, colour="red")
    assert "colour" in error.message
    error = await refuses(call, served, "hello", Code.BAD_INPUT, text="twice")
    assert "multiple values" in error.message
    await refuses(call, served, "hello", Code.UNKNOWN_METHOD, method="__class__")
    assert served.stats() == {"in_flight": 0, "queued": 0, "calls": 5, "faults": 3}


async def test_names_tasks_and_versions_are_the_publishers(models: Models, source: MakeSource) -> None:
    served = await models.add(source("shop:upper", model="acme/loud@2", task="text-generation"))
    assert (served.description.name, served.description.version) == ("acme/loud", "2")
    assert models.get("acme/loud") is models.get("acme/loud", "2") is served
    assert models.get("acme/loud", "3") is None
    assert models.get("upper") is None
    assert await models.remove("acme/loud")
    assert not await models.remove("acme/loud")
    with pytest.raises(LocalError, match="is not a model name"):
        await models.add(source("shop:upper", model="Not A Name"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [("shop:upper", False), ("shop:repeatable", True), ("shop:Repeatable", True), ("shop:Named", False)],
)
async def test_a_model_says_that_asking_twice_does_no_harm(
    models: Models, source: MakeSource, spec: str, said: bool
) -> None:
    assert (await models.add(source(spec))).description.idempotent is said


async def test_a_class_says_its_languages_and_its_licence(models: Models, source: MakeSource) -> None:
    said = (await models.add(source("shop:Repeatable"))).description
    assert (said.languages, said.licence) == (("de", "en"), "MIT")


async def test_tensors_go_in_and_out(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:double"))
    assert served.description.inputs[0].kind == "tensor"
    for shape in ((1,), (0, 3), (700, 800)):
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        answer, _ = await call(served, array)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, array * 2)


async def test_streams_of_generators(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:words"))
    assert served.description.streams
    for method in ("invoke", "stream"):
        answer, items = await call(served, "to be or not", method=method)
        assert (answer, items) == (None, ["to", "be", "or", "not"])
    broken = await models.add(source("shop:broken_stream"))
    error = await refuses(call, broken, "x", Code.MODEL_ERROR)
    assert "ValueError: two" in error.message


async def test_classes_keep_their_instance_and_their_thread(
    patient_models: Models, source: MakeSource, call: Call, shop: Path, gone: Gone
) -> None:
    models = patient_models
    counter = await models.add(source("shop:Counter"))
    assert [(await call(counter, n))[0] for n in (1, 2, 3)] == [1, 3, 6]
    invoked = await models.add(source("shop:Invoked"))
    assert (await call(invoked, 4, by=5))[0] == 20
    pid = pid_of(counter)
    await models.remove("counter")
    await gone(pid)
    assert (shop / "closed.txt").read_text() == "6"


async def test_async_models_share_their_process(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:meet"))
    assert served.description.slots == 8
    done: list[str] = []

    async def one(text: str) -> None:
        done.append((await call(served, text))[0])

    async with trio.open_nursery() as nursery:
        for text in "abcdefgh":
            nursery.start_soon(one, text)
    assert sorted(done) == [f"{text}!" for text in "abcdefgh"]
    ticks = await models.add(source("shop:ticks"))
    assert (await call(ticks, 5))[1] == [0, 1, 2, 3, 4]


@pytest.mark.live
async def test_raising_models_give_one_line(models: Models, source: MakeSource, call: Call) -> None:
    served = await models.add(source("shop:raising"))
    pid = pid_of(served)
    error = await refuses(call, served, "x", Code.MODEL_ERROR)
    assert error.message == "the model raised KeyError: 'no such word\\nin the book'"
    assert not error.retryable
    assert served.pid == pid  # the worker lives
    for spec, text in (
        ("shop:stops", "StopIteration"),
        ("shop:leaving", "SystemExit: 3"),
        ("shop:selfcancel", "CancelledError"),
    ):
        served = await models.add(source(spec))
        error = await refuses(call, served, "x", Code.MODEL_ERROR)
        assert text in error.message
    unsendable = await models.add(source("shop:unsendable"))
    error = await refuses(call, unsendable, "x", Code.MODEL_ERROR)
    assert "set" in error.message


async def test_what_a_model_prints_is_not_the_protocol(
    models: Models, source: MakeSource, call: Call, capfd: pytest.CaptureFixture[str]
) -> None:
    served = await models.add(source("shop:printing"))
    assert (await call(served, "fine"))[0] == "fine"
    await models.remove("printing")
    out, err = capfd.readouterr()
    assert out == ""
    assert "to stdout" in err
    assert "straight to descriptor 1" in err


@pytest.mark.parametrize(
    ("spec", "value", "how"),
    [
        ("shop:dying", "7", "exit status 7"),
        ("shop:dying", "0", "exit status 0"),
        ("shop:interrupting", "", "exit status"),
        ("shop:selfkill", "", "signal 9"),
        ("shop:forked", "", "signal 9"),
        ("shop:closes_everything", "", "stopped"),
        ("shop:dies_slowly", "", "exit status 7"),
    ],
)
async def test_a_dead_worker_is_a_fault_and_a_fresh_one_serves_on(
    models: Models, source: MakeSource, call: Call, spec: str, value: Value, how: str
) -> None:
    served = await models.add(source(spec))
    before = pid_of(served)
    with trio.fail_after(HANG):
        error = await refuses(call, served, value, Code.MODEL_ERROR)
        assert how in error.message
        assert spec in error.message
        error = await refuses(call, served, value, Code.MODEL_ERROR)  # a second life, the same end
        assert how in error.message
    assert served.pid != before


async def test_killed_from_outside_between_two_calls(
    models: Models, source: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(source("shop:pid"))
    first = (await call(served, "x"))[0]
    os.kill(first, signal.SIGKILL)
    await gone(first)
    with trio.fail_after(HANG):
        while served.pid == first:
            await trio.sleep(0.01)
    assert (await call(served, "x"))[0] != first


@pytest.mark.parametrize("spec", ["shop:hanging", "shop:stubborn", "shop:blocking"])
async def test_a_hung_call_ends_at_its_deadline_and_its_worker_after_the_grace(
    models: Models, source: MakeSource, call: Call, gone: Gone, spec: str
) -> None:
    served = await models.add(source(spec))
    pid = pid_of(served)
    with trio.fail_after(HANG):
        await refuses(call, served, "hang", Code.DEADLINE, timeout=0.3)
    await gone(pid)
    assert served.stats()["in_flight"] == 0
    if spec == "shop:hanging":
        assert (await call(served, "well"))[0] == "well"


async def test_a_cancelled_generator_stops_at_its_next_item(
    patient_models: Models, source: MakeSource, tmp_path: Path
) -> None:
    served = await patient_models.add(source("shop:endless"))
    pid = pid_of(served)
    mark = tmp_path / "mark"
    with trio.CancelScope() as scope:

        async def emit(item: object) -> None:
            if item == 3:
                scope.cancel()

        await served.run("stream", str(mark), {}, emit, trio.current_time() + 20)
    assert scope.cancelled_caught
    assert mark.read_text() == "closed"  # its `finally` ran, before the slot was free
    assert served.pid == pid
    assert served.stats()["in_flight"] == 0


async def test_a_slow_reader_slows_the_model(models: Models, source: MakeSource, tmp_path: Path) -> None:
    served = await models.add(source("shop:words"))
    seen = []

    async def emit(item: object) -> None:
        seen.append(item)
        await trio.sleep(0.001)

    await served.run("stream", "word " * 200, {}, emit, trio.current_time() + 20)
    assert len(seen) == 200


async def test_an_emit_that_fails_cancels_the_call(
    patient_models: Models, source: MakeSource, tmp_path: Path
) -> None:
    served = await patient_models.add(source("shop:endless"))
    mark = tmp_path / "mark"

    async def emit(item: object) -> None:
        raise LocalError(Code.SLOW_READER, "bob does not read")

    with pytest.raises(LocalError, match="bob does not read"):
        await served.run("stream", str(mark), {}, emit, trio.current_time() + 20)
    assert mark.read_text() == "closed"


async def test_a_full_queue_says_busy_at_once(
    models: Models, source: MakeSource, call: Call, nursery: trio.Nursery
) -> None:
    served = await models.add(source("shop:hanging"))
    scopes = []

    async def hold() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await call(served, "hang")

    for _ in range(17):
        nursery.start_soon(hold)
    with trio.fail_after(HANG):
        while served.stats()["queued"] < 16:
            await trio.sleep(0)
    assert served.load == 1.0
    error = await refuses(call, served, "x", Code.BUSY)
    assert error.retryable
    for scope in scopes[1:]:  # all who wait give up; the one that runs is cut off
        scope.cancel()
    scopes[0].cancel()
    with trio.fail_after(HANG):
        while served.load:
            await trio.sleep(0.01)
    assert (await call(served, "next"))[0] == "next"


async def test_waiting_ends_at_the_deadline_too(
    models: Models, source: MakeSource, call: Call, nursery: trio.Nursery
) -> None:
    served = await models.add(source("shop:hanging"))

    nursery.start_soon(call, served, "hang")
    with trio.fail_after(HANG):
        while not served.stats()["in_flight"]:
            await trio.sleep(0)
    error = await refuses(call, served, "x", Code.DEADLINE, timeout=0.1)
    assert "waiting for its turn" in error.message
    nursery.cancel_scope.cancel()


async def test_a_call_waits_for_a_model_that_starts_again(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    """A caller whose time is over leaves the start to the next one, who must not come too early."""
    (shop / "sleeper.py").write_text(
        "import os, time\n"
        "while not os.path.exists('awake'): time.sleep(0.01)\n"
        "async def f(x): return os.getpid() if x else os.kill(os.getpid(), 9)\n"
    )
    (shop / "awake").touch()
    served = await models.add(source("sleeper:f"))
    before = pid_of(served)
    await refuses(call, served, 0, Code.MODEL_ERROR)
    (shop / "awake").unlink()
    answers: list[int] = []

    async def one() -> None:
        answers.append((await call(served, 1))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        with trio.fail_after(HANG):
            while served.pid in (None, before):
                await trio.sleep(0.01)
        nursery.start_soon(one)  # its process runs, and still loads
        await trio.testing.wait_all_tasks_blocked()
        (shop / "awake").touch()
    assert answers == [served.pid, served.pid]


async def test_a_call_that_waits_for_a_model_that_is_removed(
    models: Models, source: MakeSource, call: Call
) -> None:
    served = await models.add(source("shop:hanging"))
    codes: list[Code] = []

    async def one() -> None:
        with pytest.raises(LocalError) as caught:
            await call(served, "hang")
        codes.append(caught.value.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
        with trio.fail_after(HANG):
            while served.stats()["queued"] != 1:
                await trio.sleep(0)
        await models.remove("hanging")
    assert codes == [Code.MODEL_ERROR, Code.NOT_FOUND]
    await refuses(call, served, "later", Code.NOT_FOUND)


@pytest.mark.live
async def test_trouble_with_the_source_shows_when_it_is_added(
    models: Models, source: MakeSource, tmp_path: Path
) -> None:
    cases = {
        "nowhere:f": "No module named 'nowhere'",
        "shop:missing": "it has no 'missing'",
        "shop:Picky": "RuntimeError: no licence found",
        "shop:np": "neither callable",
        "broken:f": "SyntaxError: invalid syntax (broken.py, line 1)",
        "exits:f": "SystemExit",
    }
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("import sys; sys.exit('usage: exits FILE')\n")
    for spec, text in cases.items():
        with pytest.raises(LocalError) as caught:
            await models.add(source(spec))
        assert caught.value.code is Code.BAD_INPUT
        assert text in caught.value.message
        assert spec.partition(":")[0] in caught.value.message
    with pytest.raises(LocalError) as caught:
        await models.add(source("nowhere:f"))
    assert str(tmp_path) in caught.value.message
    for spec in ("model.pt", "model.pth", "dir/pytorch_model.bin", "x.pkl"):
        with pytest.raises(LocalError) as caught:
            await models.add(source(spec))
        assert caught.value.code is Code.UNSAFE
    for spec in ("model.weights", "shop:f g", "builtin:chess"):
        with pytest.raises(LocalError) as caught:
            await models.add(source(spec))
        assert caught.value.code is Code.BAD_INPUT
        assert caught.value.hint
    assert models.all() == {}


async def test_an_interpreter_that_cannot_be_used(models: Models, source: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot start /no/python"):
        await models.add(source("shop:upper", interpreter="/no/python"))
    with pytest.raises(LocalError, match="cannot start"):
        await models.add(source("shop:upper", cwd="/no/where"))
    with pytest.raises(LocalError, match="did not start a worker") as caught:
        await models.add(source("shop:upper", interpreter="/bin/false"))
    assert "must be installed" in caught.value.hint


async def test_a_module_that_crashes_while_it_is_imported(
    models: Models, source: MakeSource, shop: Path
) -> None:
    (shop / "crash.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    with pytest.raises(LocalError, match=r"crash:f died \(signal 11\) while it loaded it") as caught:
        await models.add(source("crash:f"))
    assert "PYTHONFAULTHANDLER=1" in caught.value.hint


async def test_a_module_is_named_for_weights_alone(models: Models, source: MakeSource, shop: Path) -> None:
    for spec in ("shop:upper", "toy.onnx", "builtin:digits", "http://127.0.0.1:9/v1#x"):
        with pytest.raises(LocalError, match=f"{spec} is no model that takes --module") as caught:
            await models.add(source(spec, module="shop:upper"))
        assert caught.value.code is Code.BAD_INPUT


def test_a_file_whose_name_no_model_may_have() -> None:
    found, file = Description("my model (1)", "x-acme/toy", "onnx"), "My Model (1).onnx"
    with pytest.raises(
        LocalError, match=r"My Model \(1\)\.onnx gives no name that a model may have"
    ) as caught:
        _named(found, Source(file))
    assert "--model NAME" in caught.value.hint
    assert _named(found, Source(file, model="mine")).name == "mine"


async def test_the_publishers_directory_and_environment(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    served = await models.add(
        source("shop:environment", environ={**os.environ, "MODEL_COLOUR": "teal"}),
    )
    assert (await call(served, "MODEL_COLOUR"))[0] == ["teal", str(shop), str(shop), True]


async def test_threads_of_its_libraries_spin_for_as_long_as_its_publisher_says(
    models: Models, source: MakeSource, call: Call
) -> None:
    said = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    served = await models.add(source("shop:environment", environ=said))
    assert (await call(served, "GOMP_SPINCOUNT"))[0][0] == "2000"
    served = await models.add(source("shop:environment", environ={**said, "GOMP_SPINCOUNT": "7"}))
    assert (await call(served, "GOMP_SPINCOUNT"))[0][0] == "7"


async def test_a_module_of_the_publisher_does_not_shadow_the_workers_own(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    for name in ("msgpack", "queue", "modelnet_p2p"):
        (shop / f"{name}.py").write_text("raise RuntimeError('shadowed')\n")
    served = await models.add(source("shop:upper"))
    assert (await call(served, "a"))[0] == "A"


async def test_a_model_that_is_published_again_is_switched_over(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    (shop / "versions.py").write_text("def f(x): return 1\n")
    first = await models.add(source("versions:f"))
    (shop / "versions.py").write_text("def f(x): return 'two'\n")
    second = await models.add(source("versions:f"))
    assert models.get("f") is second
    assert (await call(second, 0))[0] == "two"
    with trio.fail_after(HANG):
        while first.pid is not None:
            await trio.sleep(0.01)


async def test_a_full_house_still_takes_a_newer_model_of_a_name(models: Models) -> None:
    for number in range(MAX_MODELS):
        await models.add(Source("builtin:digits", model=f"house/{number}"))
    for full in (Source("builtin:digits"), Source("builtin:digits", model="house/more")):
        with pytest.raises(LocalError, match="serves 64 models already") as caught:
            await models.add(full)
        assert caught.value.code is Code.BUSY
        assert not caught.value.retryable
    newer = await models.add(Source("builtin:digits", model="house/7@2"))
    assert models.get("house/7") is newer
    assert len(models.all()) == MAX_MODELS
    await models.remove("house/7")
    await models.add(Source("builtin:digits"))


async def test_a_model_that_fails_to_start_again(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    (shop / "vanishing.py").write_text("import os\ndef f(x): os._exit(1)\n")
    served = await models.add(source("vanishing:f"))
    (shop / "vanishing.py").unlink()
    await refuses(call, served, 0, Code.MODEL_ERROR)
    error = await refuses(call, served, 0, Code.MODEL_ERROR)
    assert "did not start again" in error.message
    assert "No module named 'vanishing'" in error.message


async def test_what_a_model_starts_ends_with_it(
    models: Models, source: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(source("shop:grandchild"))
    pid, child = pid_of(served), (await call(served, "x"))[0]
    os.kill(pid, signal.SIGKILL)
    await gone(child)
    child = (await call(served, "x"))[0]
    await models.remove("grandchild")
    await gone(child)


@pytest.mark.live
async def test_publishing_can_be_given_up_while_a_model_loads(
    models: Models, source: MakeSource, shop: Path
) -> None:
    (shop / "slow.py").write_text(
        "import time, os; open('pid','w').write(str(os.getpid())); time.sleep(60)\n"
    )
    with trio.move_on_after(1) as scope:
        await models.add(source("slow:f"))
    assert scope.cancelled_caught
    assert models.all() == {}


async def test_leaving_the_scope_ends_all_workers(source: MakeSource, call: Call, gone: Gone) -> None:
    async with open_models(TEST) as models:
        served = await models.add(source("shop:hanging"))
        pid = pid_of(served)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, served, "hang")
            while not served.stats()["in_flight"]:
                await trio.sleep(0)
            nursery.cancel_scope.cancel()
        second = await models.add(source("shop:upper"))
        other = pid_of(second)
    await gone(pid)
    await gone(other)


async def test_memory_goes_to_the_model_first(models: Models, source: MakeSource) -> None:
    served = await models.add(source("shop:upper"))
    score = Path(f"/proc/{served.pid}/oom_score_adj")
    if not score.exists():
        pytest.skip("only Linux tells")
    assert int(score.read_text()) > int(Path("/proc/self/oom_score_adj").read_text())


@pytest.mark.live
async def test_a_leaking_model_is_its_own_trouble(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    """Its worker has a limit of its own here, where a machine would have its memory's end."""
    (shop / "leaky.py").write_text(
        "import resource\n"
        "kept = []\n"
        "def f(n):\n"
        "    if n:\n"
        "        pages = int(open('/proc/self/statm').read().split()[0])\n"
        "        limit = pages * resource.getpagesize() + (256 << 20)\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "        while True: kept.append(bytearray(16 << 20))\n"
        "    return len(kept)\n"
    )
    served = await models.add(source("leaky:f"))
    error = await refuses(call, served, 1, Code.MODEL_ERROR)
    assert "MemoryError" in error.message
    assert (await call(served, 0))[0] > 0


async def test_an_answer_beyond_the_limit(models: Models, source: MakeSource, call: Call, shop: Path) -> None:
    (shop / "huge.py").write_text(
        f"import numpy as np\ndef f(x): return np.empty({MAX_BODY_BYTES} + 1, np.uint8)\n"
    )
    served = await models.add(source("huge:f"))
    await refuses(call, served, 0, Code.TOO_LARGE)


@pytest.mark.live
@pytest.mark.parametrize("state", ["idle", "hung"])
async def test_kill_9_of_the_parent_ends_the_worker(
    source: MakeSource, shop: Path, gone: Gone, state: str, tmp_path: Path
) -> None:
    parent = (
        "import sys, os, signal, trio\n"
        "from modelnet_p2p.node.serving.models import open_models\n"
        "from modelnet_p2p.node.serving.source import Source\n"
        "from modelnet_p2p.tuning import TEST\n"
        "async def main():\n"
        "    async with open_models(TEST) as models, trio.open_nursery() as nursery:\n"
        "        served = await models.add(Source('shop:hanging', cwd=sys.argv[1]))\n"
        "        if sys.argv[2] == 'hung':\n"
        "            async def emit(item): pass\n"
        "            nursery.start_soon(served.run, 'invoke', 'hang', {}, emit, trio.current_time() + 60)\n"
        "            while not served.stats()['in_flight']: await trio.sleep(0)\n"
        "            await trio.sleep(0.1)\n"
        "        print(served.pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    run = await trio.run_process(
        [sys.executable, "-c", parent, str(shop), state], capture_stdout=True, check=False
    )
    assert run.returncode == -signal.SIGKILL
    await gone(int(run.stdout))


def test_importing_the_worker_imports_neither_trio_nor_libp2p_nor_torch() -> None:
    code = (
        "import sys, modelnet_p2p.node.serving.child.main\n"
        "print([name for name in ('trio', 'libp2p', 'torch', 'click') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


async def test_a_worker_killed_from_outside_is_back_by_itself(
    models: Models, source: MakeSource, call: Call, gone: Gone
) -> None:
    """Whoever was waiting for it is told at once; nobody has to call for it to come back."""
    served = await models.add(source("shop:hanging"))
    first = pid_of(served)
    told: list[ModelnetError] = []

    async def waiting() -> None:
        told.append(await refuses(call, served, "hang", Code.MODEL_ERROR))

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting)
            while not served.stats()["in_flight"]:
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            os.kill(first, signal.SIGKILL)
        assert "signal 9" in told[0].message
        while served.pid in (None, first):
            await trio.sleep(0.01)
    assert served.state == "serving"
    assert (await call(served, "well"))[0] == "well"


async def test_a_model_that_dies_all_the_time_is_down(models: Models, source: MakeSource, call: Call) -> None:
    """Callers are sent elsewhere at once instead of waiting for the next start; its load says so, too."""
    served = await models.add(source("shop:dying"))
    with trio.fail_after(HANG):
        for _ in range(3):
            await refuses(call, served, "7", Code.MODEL_ERROR)
        error = await refuses(call, served, "7", Code.BUSY)
        assert error.retryable
        when = r"died 3 times in a row, and is (being started again|started again in 0\.[0-9]+ s)$"
        assert re.search(when, error.message), error.message
        assert (served.load, served.state) == (1.0, "crashing")
        while served.state == "crashing":  # for a second or so
            await trio.sleep(0.01)
        assert served.load == 0.0
        await refuses(call, served, "7", Code.MODEL_ERROR)


async def test_a_model_whose_file_is_gone_is_started_again_when_it_is_back(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    (shop / "gone.py").write_text("import os\ndef f(x): return os._exit(7) if x else 'here'\n")
    served = await models.add(source("gone:f"))
    (shop / "gone.py").rename(shop / "away.py")
    with trio.fail_after(HANG):
        await refuses(call, served, 1, Code.MODEL_ERROR)
        error = await refuses(call, served, 0, Code.MODEL_ERROR)
        assert "did not start again" in error.message
        (shop / "away.py").rename(shop / "gone.py")
        answer = None
        while answer is None:  # callers are told why, or to go elsewhere, until it is back
            with suppress(LocalError):
                answer = (await call(served, 0))[0]
            await trio.sleep(0.01)
    assert answer == "here"
