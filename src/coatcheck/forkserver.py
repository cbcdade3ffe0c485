"""A process that prepares once and forks children: they start in milliseconds, and share what it has prepared.

A child of ours that imports torch and transformers by itself takes 5 s of a core and 300 MB; one that is forked takes
what it writes. The standard library has one in ``multiprocessing.forkserver``, but only one for a whole process, which
imports that process's main module; ours are many, in programs that are not ours.

Invariants (``tests/test_forkserver.py``):

* A child is known to have ended only once its process has: by a pidfd, whoever its parent is.
* Children die with the server, and that with the thread that started it.
* A child's standard input ends when its owner closes it, or ends.

Protocol, on a socket pair that is the server's standard input (SOCK_SEQPACKET): a message is the argument of one child,
and carries the file descriptor of its standard input; the answer carries its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from coatcheck import process

log = logging.getLogger("coatcheck")

MESSAGE = 1 << 16  # bytes of an argument, at most
KILLED_S = 5.0  # until a process that was told to end has ended; it takes milliseconds


class ForkServer:
    """Starts one, and its children. Use within one event loop. It dies with the thread that makes this."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """``command``: a program that calls :func:`serve`. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket = ours
        self._serves = False  # it has forked: before, it may be importing, and hear nothing
        self._lock = asyncio.Lock()  # an answer belongs to the request before it
        try:
            with theirs:
                environment = {**environment, process.PARENT: str(os.getpid())}
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    command, stdin=theirs.fileno(), env=environment
                )
        except BaseException:
            ours.close()
            raise
        self.pid = self._process.pid

    async def fork(self, argument: str) -> ForkedChild:
        """A new child. Waits until the server is prepared. Raises ChildProcessError once the server has ended."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                async with self._lock:
                    pid, pidfd = await self._asked(argument, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return ForkedChild(pid, pidfd, ours)

    async def _asked(self, argument: str, standard_input: int) -> tuple[int, int]:
        """Its pid and pidfd. Whoever gives up waiting must kill the server: an answer may be under way."""
        try:
            socket.send_fds(self._socket, [argument.encode()], [standard_input])
            await _readable(self._socket.fileno())
            answer, fds, _, _ = socket.recv_fds(self._socket, MESSAGE, 1)
        except (BrokenPipeError, ConnectionResetError):
            answer, fds = b"", []
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise ChildProcessError(f"the fork server cannot be asked: {error}") from error
        if not answer:
            await self._ended()
            raise ChildProcessError(f"the fork server ended with status {self._process.poll()}")
        if not fds:
            raise ChildProcessError(f"the fork server cannot fork: {answer.decode()}")
        self._serves = True
        return int(answer), fds[0]

    async def _ended(self) -> None:
        if self._process.poll() is not None:
            return
        pidfd = os.pidfd_open(self.pid)
        try:
            await _readable(pidfd)
        finally:
            os.close(pidfd)

    def status(self) -> int | None:
        """Its exit status; None as long as it runs."""
        return self._process.poll()

    async def close(self) -> None:
        """Once its children have ended: it reaps them, and ends. By force after KILLED_S. Idempotent."""
        self._socket.close()
        if self._serves:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILLED_S):
                    await self._ended()
        self.kill()

    def kill(self) -> None:
        """At once, and its children with it; waits for it, not for them. Idempotent."""
        self._socket.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_S)


class ForkedChild:
    """One process; its parent is the server."""

    def __init__(self, pid: int, pidfd: int, standard_input: socket.socket) -> None:
        self.pid = pid
        self._pidfd: int | None = pidfd
        self._input = standard_input

    async def wait(self) -> None:
        """Until it has ended; then all that is held of it is closed."""
        if self._pidfd is None:
            return
        await _readable(self._pidfd)
        self.close_input()
        os.close(self._pidfd)
        self._pidfd = None

    def close_input(self) -> None:
        """Idempotent."""
        self._input.close()

    def kill(self) -> None:
        """At once. One that has ended: nothing happens."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


async def _readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def serve(run: Callable[[str], None]) -> NoReturn:
    """In the server, once all is prepared: forks who does ``run(argument)``, until standard input ends; then it leaves.

    No other thread may run by then: a child would have its locks, and not the thread.
    """
    signal.signal(signal.SIGCHLD, _reap)
    gc.collect()
    gc.freeze()  # the collector would write to every object, and so copy the page
    with socket.socket(fileno=os.dup(0)) as channel:
        while True:
            argument, fds, _, _ = socket.recv_fds(channel, MESSAGE, 1)
            if not argument:
                _reap()
                sys.stderr.flush()
                os._exit(0)  # nothing is to be written back, and taking modules down costs time
            _fork(run, argument.decode(), fds[0], channel)


def _fork(run: Callable[[str], None], argument: str, standard_input: int, channel: socket.socket) -> None:
    # Not reaped before it has a pidfd: another process could have its number.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    parent, pid = os.getpid(), None
    try:
        pid = os.fork()
        if pid == 0:
            channel.close()
            _child(run, argument, standard_input, parent)
        pidfd = os.pidfd_open(pid)
    except OSError as error:  # no memory, process number or descriptor left
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        channel.send(str(error).encode())
        return
    finally:
        os.close(standard_input)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    try:
        socket.send_fds(channel, [str(pid).encode()], [pidfd])
    except OSError:  # whoever asked has ended, and so will we
        pass
    finally:
        os.close(pidfd)


def _child(run: Callable[[str], None], argument: str, standard_input: int, parent: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.dup2(standard_input, 0)
        os.close(standard_input)
        os.environ[process.PARENT] = str(parent)
        process.die_with_parent()
        run(argument)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # not back into the server's loop, and none of its exit handlers


def _reap(*_: object) -> None:
    """Of SIGCHLD."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if status:
                log.warning("process %d ended with status %d", pid, os.waitstatus_to_exitcode(status))
