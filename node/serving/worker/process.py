"""One worker process as its peer sees it: started, called, watched, and ended with all that it started.

Whatever a stranger's model does, it does to its own process: raising becomes a fault, dying becomes a
fault, and a call that does not stop when it is cancelled takes its process with it after a short grace.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.exchange import Call, Fault, Item, RemoteProtocolError, Result
from modelnet_p2p.node.logs.level import worker_output
from modelnet_p2p.node.serving.backends.contract import Emit
from modelnet_p2p.node.serving.policy.notes import BadNote, Note, NoteKind
from modelnet_p2p.node.serving.policy.scarcity import is_scarce, no_more
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.worker.link import Control, WorkerStream, socket_pair
from modelnet_p2p.node.serving.worker.regions import Quota
from modelnet_p2p.node.serving.worker.sharing import Shares, Sharing
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import BadPayload

log = logging.getLogger(__name__)

WORKER_MODULE = "modelnet_p2p.node.serving.child.main"
EXIT_SECONDS = 1.0  # from the end of a dying process's sockets to its death: at once, but where many run
DEATH_TIMEOUT = 2.0  # from the end of a stream to the exit status of the process behind it
# Threads of a model's libraries (OpenMP's, of GCC) spin for about as long as it takes to wake one, 50 us, and
# not for milliseconds: on cores that others want, too, those who spin keep out whom they wait for. On a busy
# machine a lone call of a torch model took 8 ms in place of 17 then, and one of sixteen a quarter of the CPU.
# The publisher's environment goes before this.
MANNERS = {"GOMP_SPINCOUNT": "2000"}


class Process:
    """One life of a worker: the process, its control socket and its idle streams."""

    def __init__(self, process: trio.Process, control: Control, model: str, quota: Quota) -> None:
        self._process = process
        self._control = control
        self._model = model
        self._sharing = Sharing(control, quota)
        self._idle: list[WorkerStream] = []
        self._ended = trio.Event()
        self._killed_for = ""
        self._calls = 0  # that are on
        self._took_along = 0  # calls that were on when it ended
        self.is_crash = True  # its end, if it has ended: not for a call that did not stop
        self.alive = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def crash(self) -> str:
        """The signal that it died of, if it has died of one: no Python ends so by itself."""
        status = self._process.returncode if self._ended.is_set() else None
        return f"signal {-status}" if status is not None and status < 0 else ""

    @classmethod
    async def start(cls, source: Source, quota: Quota) -> Process:
        """Raises LocalError: bad-input when the interpreter or the directory cannot be used, busy when
        this machine has no descriptor or process left."""
        ours, theirs = socket_pair(source.spec)
        handle = theirs.fileno()
        interpreter = source.interpreter or sys.executable
        process = None
        try:
            process = await trio.lowlevel.open_process(
                # -P: the publisher's files must not shadow modules that the worker itself needs
                [interpreter, "-P", "-m", WORKER_MODULE, str(handle)],
                stdin=subprocess.DEVNULL,
                stdout=worker_output(),
                stderr=worker_output(),
                cwd=source.cwd or None,
                env={**MANNERS, **(source.environ or os.environ)},
                pass_fds=(handle,),
                start_new_session=True,  # a Ctrl-C at the peer's terminal is not for the model
            )
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            if is_scarce(error):
                raise no_more(f"cannot start a worker for {source.spec}", error) from error
            raise LocalError(
                Code.BAD_INPUT,
                f"cannot start {interpreter} in {source.cwd or '.'}: {error}",
            ) from error
        finally:
            theirs.close()
            if process is None:
                ours.close()
        return cls(process, Control(ours), source.shown, quota)

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
            self._sharing.close()
            for stream in self._idle:
                stream.close()
            self._took_along = self._calls
            self._ended.set()

    async def _end_of_control(self) -> None:
        """Listens to the worker's notes until it closes its end, or breaks the rules."""
        try:
            await self._sharing.listen()
        except BadNote as error:
            self.kill(f"it broke the protocol: {error}")
        except OSError:
            log.debug("the control socket of %s broke", self._model)

    async def _exited(self) -> bool:
        """Whether the process is dead, or is within EXIT_SECONDS: its sockets go a little before it."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return True
        until = trio.current_time() + EXIT_SECONDS
        # WNOWAIT: it stays a zombie, and its number its own
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if trio.current_time() > until:  # after a look: this process may have waited for its turn, too
                return False
            await trio.sleep(0.002)
        return True

    def kill(self, reason: str) -> None:
        if not self._ended.is_set() and not self._killed_for:
            log.warning("worker %d of %s is killed: %s", self.pid, self._model, reason)
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
                self._control.finish()
            except OSError:
                return
            await self._ended.wait()

    async def open(self) -> WorkerStream:
        """An idle stream, or a new one; raises LocalError: model-error when the worker is dead, busy when
        this machine has no descriptor left."""
        if self._idle:
            return self._idle.pop()
        ours, theirs = socket_pair(self._model)
        given = False
        try:
            await self._control.send(Note(NoteKind.STREAM), theirs.fileno())
            given = True
        except (OSError, trio.ClosedResourceError) as error:
            if is_scarce(error):
                raise no_more(f"cannot call the worker of {self._model}", error) from error
            raise await self.death() from None
        finally:
            theirs.close()
            if not given:
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
        status = self._process.returncode if self._ended.is_set() else None
        if self._killed_for and status in (None, -signal.SIGKILL):  # else it was dying already
            message = f"the worker of {self._model} was stopped: {self._killed_for}"
            return LocalError(Code.MODEL_ERROR, message, retryable=True)
        how = self.crash or f"exit status {status}"
        # of several calls nobody knows which one it died of; alone, it would again
        return LocalError(
            Code.MODEL_ERROR,
            f"the worker of {self._model} died ({how})",
            retryable=(self._took_along if self._ended.is_set() else self._calls) > 1,
        )

    def allocate(self, size: int) -> memoryview | None:
        """Memory that the worker reads, too, for the input of a call; None where there is none to be had."""
        return self._sharing.allocate(size)

    async def call(self, call: Call, emit: Emit, grace: float) -> Value:
        """One call; leaving it early cancels it in the worker, which is killed if it does not obey."""
        self._calls += 1
        try:
            return await self._call(call, emit, grace)
        finally:
            self._calls -= 1

    async def _call(self, call: Call, emit: Emit, grace: float) -> Value:
        stream = await self.open()
        shares = Shares()  # held until the worker has stopped: it may write to them for so long
        clean = False
        try:
            call = await self._sharing.lend(call, shares)
            await stream.send(call)
            shares.sent()
            del call
            end = await self._answer(stream, emit, shares)
            clean = True
            if isinstance(end, Fault):
                raise LocalError(end.code, end.message, hint=end.hint, retryable=end.retryable)
            return end.value
        except (BadPayload, BadNote) as error:
            self.kill(f"it broke the protocol: {error}")
            raise await self.death() from error
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
                    self.is_crash = not self.alive
                    self.kill("a cancelled call did not stop")
                stream.close()
                if self.alive:
                    self._sharing.take_back(shares)

    async def _answer(self, stream: WorkerStream, emit: Emit, shares: Shares) -> Result | Fault:
        """How the call that was sent ends; raises BadPayload, BadNote where the worker breaks the rules."""
        while True:
            event = await stream.receive()
            match event:
                case Item(extra={"room": asked}):
                    await self._sharing.grant(asked, shares)
                case Item():
                    value = shares.found(event)
                    await emit(value)
                    del value
                case Result():
                    self._sharing.catch_up(shares)
                    return replace(event, value=shares.found(event)) if event.extra else event
                case Fault():
                    self._sharing.catch_up(shares)
                    return event
                case _:
                    raise await self.death()
