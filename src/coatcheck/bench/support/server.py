"""Server processes on free ports of this host, for measurements and tests: any, and ``coatcheck serve``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from coatcheck.process import INDUCTOR

START_S = 180.0  # four ranks on two cores take 20 s; a busy machine several times that
STOP_S = 40.0  # drain, the ranks' leave, the workers'

SHARED_MEMORY = Path("/dev/shm")

_READY = re.compile(r"ready: (http://\S+)")


class LoggedProcess:
    """Context manager: starts a server on entry, which is ready then, stops it by SIGTERM on exit.

    ``log`` has the lines printed, ``start_s`` the seconds that starting took. ``environment`` is added to this
    process's own. The server has a directory of its own for temporary files, so that ``left_behind`` speaks of nobody
    else's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = environment or {}
        self.log: list[str] = []
        self.start_s = 0.0
        self._ready = threading.Event()
        self._temporary = tempfile.TemporaryDirectory(prefix="coatcheck-server-")
        self._shared_memory = _names(SHARED_MEMORY)

    def is_ready(self, line: str) -> bool:
        """Whether the server is ready once it has printed this line."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        # torch sets it on import, in this process: the server is to find what a shell has.
        inherited = {name: value for name, value in os.environ.items() if name != INDUCTOR}
        start = time.monotonic()
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**inherited, **self._environment, "TMPDIR": self._temporary.name},
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()
        deadline = start + START_S
        while not self._ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start: {self.text}")
        self.start_s = time.monotonic() - start
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip())
            if self.is_ready(line):
                self._ready.set()

    @property
    def text(self) -> str:
        """All that was printed so far."""
        return "\n".join(self.log)

    def family(self) -> list[psutil.Process]:
        """The server's process and all that it started."""
        return family(self.process.pid)

    @property
    def temporary(self) -> Path:
        """The server's directory for temporary files: in the environment of every process of this server."""
        return Path(self._temporary.name)

    def left_behind(self) -> set[str]:
        """Temporary files of the server, and what is in shared memory that was not there before it."""
        return _names(self.temporary) | (_names(SHARED_MEMORY) - self._shared_memory)

    def stop(self) -> int:
        """SIGTERM, then the exit status. Raises subprocess.TimeoutExpired (after a kill) if it does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """At once. Idempotent."""
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            status = self.stop()
            if kind is None and status:
                raise RuntimeError(f"the server ended with status {status}: {self.text}")
        else:
            self.kill()
        self._temporary.cleanup()


class ServerProcess(LoggedProcess):
    """A ``coatcheck serve`` process.

    ``module`` stands in for coatcheck where a test plants a fault; ``within`` is a command that becomes the one that
    follows it, such as ``unshare``.
    """

    def __init__(
        self,
        *options: str,
        environment: Mapping[str, str] | None = None,
        module: str = "coatcheck",
        within: Sequence[str] = (),
    ) -> None:
        super().__init__([*within, sys.executable, "-m", module, "serve", "--port", "0", *options], environment)
        self.url = ""  # with /v1

    def is_ready(self, line: str) -> bool:
        """See :class:`LoggedProcess`: at the last line of the announcement."""
        if found := _READY.search(line):
            self.url = found[1]
        return bool(self.url) and line.startswith("curl")


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _names(directory: Path) -> set[str]:
    return {str(path) for path in directory.iterdir()} if directory.is_dir() else set()
