"""The parent side of a worker: starts the process that holds a model, calls it, and outlives it.

Whatever a stranger's model does, it does to its own process: raising becomes a fault, dying becomes a
fault and a fresh process for the next call, and a call that does not stop when it is cancelled takes
its process with it after a short grace.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.exchange import Call, Event, Exchange, Fault, Item, RemoteProtocolError, Result, Role
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES, Description, Emit, Source
from modelnet_p2p.payload import Value
from modelnet_p2p.refusals import BadRecord
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

WORKER_MODULE = "modelnet_p2p.node.serving.worker_main"
LOAD = "load"
LOAD_TIMEOUT = 600.0  # a model of tens of GB from a slow disk; longer is a hang
EXIT_SECONDS = 0.2  # from the end of a dying process's sockets to its death
DEATH_TIMEOUT = 1.0  # from the end of a stream to the exit status of the process behind it


class WorkerStream:
    """An `Exchange` with the worker on one socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._exchange = Exchange(Role.CALLER, max_body=MAX_BODY_BYTES)

    async def send(self, event: Event) -> None:
        for buffer in self._exchange.send(event):
            rest = memoryview(buffer)
            while rest:
                rest = rest[await self._sock.send(rest) :]

    async def receive(self) -> Event | None:
        """The next event; raises RemoteProtocolError, `unreachable` when the worker is gone."""
        while (event := self._exchange.next_event()) is None:
            count = await self._sock.recv_into(self._exchange.get_buffer())
            self._exchange.received(count)
            if count == 0:
                return self._exchange.next_event()
        return event

    async def leave(self) -> None:
        """Cancel the call that is on; returns when the worker has stopped it."""
        try:
            self._sock.shutdown(trio.socket.SHUT_WR)
            scratch = bytearray(1 << 16)
            while await self._sock.recv_into(scratch):
                pass
        except OSError:
            log.debug("the worker had left already")

    def close(self) -> None:
        self._sock.close()


class Process:
    """One life of a worker: the process, its control socket and its idle streams."""

    def __init__(self, process: trio.Process, control: trio.socket.SocketType, spec: str) -> None:
        self._process = process
        self._control = control
        self._spec = spec
        self._idle: list[WorkerStream] = []
        self._ended = trio.Event()
        self._killed_for = ""
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, source: Source) -> Process:
        """Raises LocalError (bad-input) when the interpreter or the directory cannot be used."""
        ours, theirs = trio.socket.socketpair()
        handle = theirs.fileno()
        interpreter = source.interpreter or sys.executable
        process = None
        try:
            process = await trio.lowlevel.open_process(
                # -P: the publisher's files must not shadow modules that the worker itself needs
                [interpreter, "-P", "-m", WORKER_MODULE, str(handle)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # the peer's stderr
                cwd=source.cwd or None,
                env=dict(source.environ) or None,
                pass_fds=(handle,),
                start_new_session=True,  # a Ctrl-C at the peer's terminal is not for the model
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise LocalError(
                Code.BAD_INPUT,
                f"cannot start {interpreter} in {source.cwd or '.'}: {error}",
            ) from error
        finally:
            theirs.close()
            if process is None:
                ours.close()
        return cls(process, ours, source.spec)

    async def watch(self) -> None:
        """Returns when the process has ended; ends whatever else of its group is left, too."""
        try:
            await self._end_of_control()
            self.alive = False  # the next call starts another process
            if not await self._exited():
                self.kill("it closed its control socket")
        finally:
            self._kill_group()  # before the process is reaped: until then its number is nobody else's
            with trio.CancelScope(shield=True):  # SIGKILL was sent; only the kernel is waited for
                await self._process.wait()
            self._control.close()
            for stream in self._idle:
                stream.close()
            self._ended.set()

    async def _end_of_control(self) -> None:
        try:
            while await self._control.recv(64):
                pass
        except OSError:
            log.debug("the control socket of %s broke", self._spec)

    async def _exited(self) -> bool:
        """Whether the process is dead, or is within EXIT_SECONDS: its sockets go a little before it."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return True
        with trio.move_on_after(EXIT_SECONDS):
            # WNOWAIT: it stays a zombie, and its number its own
            while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                await trio.sleep(0.002)
            return True
        return False

    def kill(self, reason: str) -> None:
        if not self._ended.is_set() and not self._killed_for:
            log.warning("worker %d of %s is killed: %s", self.pid, self._spec, reason)
            self._killed_for = reason
            self._kill_group()

    def _kill_group(self) -> None:
        self.alive = False
        if not self._ended.is_set():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
                log.debug("worker %d had ended already", self.pid)

    async def close(self, grace: float) -> None:
        """Ask the process to end, which closes the model; `watch` ends it the hard way after that."""
        self.alive = False
        with trio.move_on_after(grace):
            try:
                self._control.shutdown(trio.socket.SHUT_WR)
            except OSError:
                return
            await self._ended.wait()

    async def open(self) -> WorkerStream:
        """An idle stream, or a new one; raises LocalError (model-error) when the worker is dead."""
        if self._idle:
            return self._idle.pop()
        ours, theirs = trio.socket.socketpair()
        sent = 0
        try:
            handle = array("i", [theirs.fileno()]).tobytes()
            rights = (trio.socket.SOL_SOCKET, trio.socket.SCM_RIGHTS, handle)
            sent = await self._control.sendmsg([b"s"], [rights])
        except (OSError, trio.ClosedResourceError):
            raise await self.death() from None
        finally:
            theirs.close()
            if not sent:
                ours.close()
        return WorkerStream(ours)

    def keep(self, stream: WorkerStream) -> None:
        if self.alive:
            self._idle.append(stream)
        else:
            stream.close()

    async def death(self) -> LocalError:
        """What to tell a caller whose call the process took with it."""
        with trio.move_on_after(DEATH_TIMEOUT):
            await self._ended.wait()
        self.kill("it closed its end of a call")
        if self._killed_for:
            message = f"the worker of {self._spec} was stopped: {self._killed_for}"
            return LocalError(Code.MODEL_ERROR, message, retryable=True)
        status = self._process.returncode
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return LocalError(Code.MODEL_ERROR, f"the worker of {self._spec} died ({how})")

    async def call(self, call: Call, emit: Emit, grace: float) -> Value:
        """One call; leaving it early cancels it in the worker, which is killed if it does not obey."""
        stream = await self.open()
        clean = False
        try:
            await stream.send(call)
            while True:
                match await stream.receive():
                    case Item(value):
                        await emit(value)
                    case Result(value):
                        clean = True
                        return value
                    case Fault() as fault:
                        clean = True
                        raise LocalError(
                            fault.code, fault.message, hint=fault.hint, retryable=fault.retryable
                        )
                    case _:
                        raise await self.death()
        except RemoteProtocolError as error:
            if error.code is not Code.UNREACHABLE:
                self.kill(f"it broke the protocol: {error.message}")
            raise await self.death() from error
        except OSError as error:
            raise await self.death() from error
        finally:
            if clean:
                self.keep(stream)
            else:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + grace) as scope:
                    await stream.leave()
                if scope.cancelled_caught:
                    self.kill("a cancelled call did not stop")
                stream.close()


class Worker:
    """A model in a process of its own, started again for the next call whenever it is gone."""

    def __init__(self, source: Source, tuning: Tuning, nursery: trio.Nursery) -> None:
        self._source = source
        self._grace = tuning.cancel_grace
        self._nursery = nursery
        self._process: Process | None = None
        self._starting: trio.Event | None = None
        self._trouble: ModelnetError | None = None
        self._description: Description | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process, None between two of them."""
        return self._process.pid if self._process and self._process.alive else None

    async def describe(self) -> Description:
        """Of the model, started if need be; raises LocalError that says why it cannot be."""
        await self._ready()
        assert self._description is not None
        return self._description

    async def call(self, method: str, value: Value, params: Mapping[str, Value], emit: Emit) -> Value:
        """One call; raises LocalError, `model-error` for whatever the model does."""
        try:
            process = await self._ready()
        except ModelnetError as error:
            raise LocalError(
                Code.MODEL_ERROR, f"{self._source.spec} did not start again: {error.message}", hint=error.hint
            ) from error
        return await process.call(Call(self._source.spec[:512], value, method, params), emit, self._grace)

    async def _ready(self) -> Process:
        """The running process; callers that come during a start wait for that one."""
        if self._process is None or not self._process.alive:
            if self._starting is None:
                self._starting = trio.Event()
                # not in the caller's scope: a model may take longer to load than a call may last
                self._nursery.start_soon(self._start, self._starting)
            await self._starting.wait()
            if self._trouble is not None:
                raise self._trouble
        assert self._process is not None
        return self._process

    async def _start(self, started: trio.Event) -> None:
        try:
            self._trouble = None
            self._process = process = await Process.start(self._source)
            self._nursery.start_soon(process.watch)
            self._description = await self._load(process)
        except ModelnetError as error:
            self._trouble = error
        finally:
            self._starting = None
            started.set()

    async def _load(self, process: Process) -> Description:
        source = replace(self._source, environ={})  # it has its environment
        with trio.move_on_after(LOAD_TIMEOUT):
            try:
                fields = await process.call(Call(LOAD, source.to_map(), LOAD), self._no_items, self._grace)
                return Description.from_map(fields)
            except LocalError as error:
                started = process.alive
                process.kill("its model could not be loaded")
                if started or error.code is not Code.MODEL_ERROR:
                    raise
                raise LocalError(
                    Code.BAD_INPUT,
                    f"{self._source.interpreter} did not start a worker: {error.message}",
                    hint="its last lines on stderr say why; modelnet-p2p must be installed for that Python",
                ) from error
            except (BadRecord, ValueError) as error:
                process.kill(f"its description makes no sense: {error}")
                raise LocalError(Code.BAD_INPUT, f"{self._source.spec}: {error}") from error
        process.kill("its model did not load in time")
        raise LocalError(Code.DEADLINE, f"{self._source.spec} did not load within {LOAD_TIMEOUT:g} s")

    async def _no_items(self, value: Value) -> None:
        raise LocalError(Code.MODEL_ERROR, f"{self._source.spec} streams while it is loaded")

    async def close(self) -> None:
        if self._process is not None and self._process.alive:
            await self._process.close(self._grace)


@asynccontextmanager
async def open_worker(source: Source, tuning: Tuning) -> AsyncIterator[Worker]:
    """A worker for `source`; its process starts with the first question and ends with this scope."""
    async with trio.open_nursery() as nursery:
        worker = Worker(source, tuning, nursery)
        yield worker
        await worker.close()
        nursery.cancel_scope.cancel()
