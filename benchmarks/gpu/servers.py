"""SGLang servers that may outlive the call that started them: a state file says which run, where, and what as.

Every server is a session of its own, so that what ends the caller does not end it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

READY = "The server is fired up and ready to roll!"  # SGLang's log: the model has answered once
STOP_S, KILL_S = 12.0, 5.0
PORTS_APART = 100  # SGLang derives more from a server's port
TAIL = 60  # lines of a log that are shown
CRASHED = "Scheduler hit an exception"  # then SGLang waits a minute for dumps before it ends

_children: list[subprocess.Popen[bytes]] = []  # of this process; they may outlive it


class Server(msgspec.Struct):
    """One that was started."""

    name: str  # of its contender
    pid: int
    created: float  # of the process, so that another with its number is not taken for it
    port: int
    log: str
    command: list[str]
    environment: dict[str, str]  # what was set for it
    started: float  # time.time()
    ready_s: float | None = None
    warm: bool = False

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def process(self) -> psutil.Process | None:
        """None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if alive else None

    def family(self) -> list[psutil.Process]:
        """It and all that it started."""
        process = self.process()
        try:
            return [process, *process.children(recursive=True)] if process else []
        except psutil.Error:
            return []

    def text(self) -> str:
        """Its log."""
        return Path(self.log).read_text(errors="replace")

    def tail(self) -> str:
        """The log's end, for a message."""
        return "\n".join(self.text().splitlines()[-TAIL:])


class Fleet:
    """The servers of a state directory. Not for two callers at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "servers.json"
        self.servers: dict[str, Server] = {}
        with contextlib.suppress(FileNotFoundError):
            for server in msgspec.json.decode(self._file.read_bytes(), type=list[Server]):
                if server.process() is not None:
                    self.servers[server.name] = server

    def save(self) -> None:
        """What changed in a server."""
        written = self._file.with_suffix(".new")
        written.write_bytes(msgspec.json.encode(list(self.servers.values())))
        written.replace(self._file)

    def has(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether it runs, as this command in this environment; the port does not matter."""
        server = self.servers.get(name)
        if server is None or server.process() is None:
            return False
        return _portless(server.command) == _portless(command) and server.environment == dict(environment)

    def free_port(self, first: int) -> int:
        """One from ``first`` on that nobody listens on, far from the other servers'."""
        taken = {server.port for server in self.servers.values()}
        for port in range(first, 65000, PORTS_APART):
            if port not in taken and _free(port):
                return port
        raise RuntimeError(f"no free port from {first} on")

    def start(
        self, name: str, port: int, command: Sequence[str], whole: Mapping[str, str], environment: Mapping[str, str]
    ) -> Server:
        """Without waiting. ``whole``: its environment; ``environment``: that part of it that tells servers apart."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(whole),
                cwd=self.directory,
                start_new_session=True,
            )
        _children.append(process)
        created = psutil.Process(process.pid).create_time()
        server = Server(name, process.pid, created, port, str(log), list(command), dict(environment), time.time())
        self.servers[name] = server
        self.save()
        return server

    def look(self, server: Server) -> bool:
        """Whether it is ready. Raises RuntimeError with the log's end if it has ended, or will not start any more."""
        if server.ready_s is not None and server.process() is not None:
            return True
        text = server.text()
        if server.process() is None or CRASHED in text:
            raise RuntimeError(f"{server.name} did not start:\n{server.tail()}")
        if READY in text:
            server.ready_s = round(time.time() - server.started, 1)
            self.save()
        return server.ready_s is not None

    def stop(self, names: Iterable[str]) -> None:
        """All of them at once: SIGTERM, and after 12 s SIGKILL to what is left. Idempotent."""
        families = [(self.servers.pop(name)).family() for name in [*names] if name in self.servers]
        for family in families:
            if family:
                _signal(family[:1], signal.SIGTERM)
        every = [process for family in families for process in family]
        _, left = psutil.wait_procs(every, timeout=STOP_S)
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=KILL_S)
        _children[:] = [child for child in _children if child.poll() is None]
        self.save()


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _portless(command: Sequence[str]) -> list[str]:
    words = list(command)
    if "--port" in words:
        words[words.index("--port") + 1] = ""
    return words


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def plugin_directory(directory: Path) -> Path:
    """Where SGLang finds the oracle's entry point: a directory for PYTHONPATH, made here."""
    target = directory / "plugins"
    information = target / "coatcheck_bench_resident-0.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: coatcheck-bench-resident\nVersion: 0\n")
    (information / "entry_points.txt").write_text("[sglang.srt.plugins]\nresident = benchmarks.gpu.resident:register\n")
    return target
