"""Child processes of ours: started and waited for on any event loop; they take a name, and die with their parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NAME = 15

PARENT = "COATCHECK_PARENT"  # environment: pid of the process of ours that started this one

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"  # environment: torch's directory for compiled code


def set_name(name: str) -> None:
    """Names this process as ``ps`` and ``top`` show it; the kernel keeps 15 characters."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends. No effect if no process of ours did."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before the call above
        os._exit(1)


def leave_signals_to_parent() -> None:
    """Ignores SIGINT and SIGTERM, which reach a whole terminal or service group at once.

    The parent drains, then stops us.
    """
    if PARENT in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def quiet_libraries() -> None:
    """Children inherit it: transformers' hints and progress bars would come once per rank and worker.

    And torch._inductor, which transformers imports, makes a directory for compiled code on import and leaves it there
    for good. Nothing is compiled here: it is told a directory that exists.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault(INDUCTOR, tempfile.gettempdir())


class Child:
    """A process with a pipe to its standard input, which ends when we close it, or end.

    asyncio's own subprocesses need a child watcher, which uvloop's policy has not, and SGLang uses that.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Raises OSError. It dies with the thread that calls this, if it does as ``die_with_parent`` says."""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        self.pid = self._process.pid

    async def wait(self) -> int:
        """Its exit status, once it has ended; it is reaped then."""
        status = self._process.poll()
        if status is not None:
            return status
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        fd = os.pidfd_open(self.pid)
        try:
            loop.add_reader(fd, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self._process.wait()

    def close_input(self) -> None:
        """Idempotent."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        """At once. One that has ended: nothing happens."""
        self._process.kill()
