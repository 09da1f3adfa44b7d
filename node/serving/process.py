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
from array import array

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.exchange import Call, Event, Exchange, Fault, Item, RemoteProtocolError, Result, Role
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES, Emit, Source
from modelnet_p2p.node.serving.policy.scarcity import is_scarce, no_more
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)

WORKER_MODULE = "modelnet_p2p.node.serving.worker_main"
EXIT_SECONDS = 1.0  # from the end of a dying process's sockets to its death: at once, but where many run
DEATH_TIMEOUT = 2.0  # from the end of a stream to the exit status of the process behind it


def socket_pair(spec: str) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Raises LocalError (busy) when this machine has no descriptors left."""
    try:
        return trio.socket.socketpair()
    except OSError as error:
        raise no_more(f"cannot connect to a worker of {spec}", error) from error


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
                stdout=2,  # the peer's stderr
                cwd=source.cwd or None,
                env=dict(source.environ) or None,
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
        until = trio.current_time() + EXIT_SECONDS
        # WNOWAIT: it stays a zombie, and its number its own
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if trio.current_time() > until:  # after a look: this process may have waited for its turn, too
                return False
            await trio.sleep(0.002)
        return True

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
        """An idle stream, or a new one; raises LocalError: model-error when the worker is dead, busy when
        this machine has no descriptor left."""
        if self._idle:
            return self._idle.pop()
        ours, theirs = socket_pair(self._spec)
        sent = 0
        try:
            handle = array("i", [theirs.fileno()]).tobytes()
            rights = (trio.socket.SOL_SOCKET, trio.socket.SCM_RIGHTS, handle)
            sent = await self._control.sendmsg([b"s"], [rights])
        except (OSError, trio.ClosedResourceError) as error:
            if is_scarce(error):
                raise no_more(f"cannot call the worker of {self._spec}", error) from error
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
        status = self._process.returncode if self._ended.is_set() else None
        if self._killed_for and status in (None, -signal.SIGKILL):  # else it was dying already
            message = f"the worker of {self._spec} was stopped: {self._killed_for}"
            return LocalError(Code.MODEL_ERROR, message, retryable=True)
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
