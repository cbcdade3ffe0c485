"""A front end and its ranks in one interpreter's environment, seen from the benchmark's process.

Every wait is bounded. A team that fails once is of no use any more: its groups are broken.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.handoff.contenders import Contender
from coatcheck.errors import CoatcheckError
from coatcheck.process import PARENT

ROOT = Path(__file__).parents[2]  # of the checkout: what members import ``benchmarks`` from, wherever we were started

OPEN_S = 180.0  # a peer's imports take 20 s on two quiet cores, and all ranks do it at once
HAND_OFF_S = 90.0
END_S = 10.0
DRAIN_BYTES_S = 5e8  # slower than any socket here: what was sent has arrived after this
SETTLE_S = 0.005  # from the last rank's word that it goes to sleep until the front end begins


class TeamFailed(CoatcheckError):
    """A process of the team failed, ended or did not answer."""


class _Process:
    """One member."""

    def __init__(self, python: Path, directory: Path, ranks: int, rank: int, environment: dict[str, str]) -> None:
        self.name = "front end" if rank < 0 else f"rank {rank}"
        self._log = directory / f"{rank}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.handoff.member", str(directory), str(ranks), str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, **words: Any) -> None:
        """Sends one; ``answer`` has what comes of it."""
        try:
            self._in.write(json.dumps(words).encode() + b"\n")
            self._in.flush()
        except OSError as error:
            raise TeamFailed(f"the {self.name} has ended: {self._last_words()}") from error

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next one."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TeamFailed(f"the {self.name} did not answer within {timeout_s:g} s")
                more = os.read(self._out.fileno(), 1 << 16)
                if not more:
                    raise TeamFailed(f"the {self.name} has ended: {self._last_words()}")
                self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        words: dict[str, Any] = json.loads(line)
        if "failed" in words:
            raise TeamFailed(f"{self.name}: {words['failed']}")
        return words

    def end(self, timeout_s: float) -> None:
        """Orderly if it can, and reaped in any case, with all that it started."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        try:
            self._in.close()
            self._process.wait(timeout_s)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        self._out.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.poll()}"

    @property
    def _in(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _out(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout


class Team:
    """``close`` it: then all its processes are gone, and all its files."""

    def __init__(self, python: Path, ranks: int) -> None:
        if not python.is_file():
            raise TeamFailed(f"not installed: there is no {python.parent.parent.name} among the peers; make peers")
        self._directory = Path(tempfile.mkdtemp(prefix="coatcheck-handoff-"))
        environment = {
            **os.environ,
            PARENT: str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_WAIT_POLICY": "passive",
        }
        one_thread = {**environment, "OMP_NUM_THREADS": "1"}  # ranks; a front end has as many as it likes
        self._all = [
            _Process(python, self._directory, ranks, rank, environment if rank < 0 else one_thread)
            for rank in range(-1, ranks)
        ]
        self._front, *self._ranks = self._all
        self._ranked: set[str] = set()  # contenders
        self._shared: set[Path] = set()  # files of shared memory, ours to remove in the end

    def open(self, contender: Contender) -> None:
        """Its front end's side first, then all ranks'. Raises TeamFailed."""
        words = {"do": "open", "contender": contender.name, "module": contender.module}
        self._front.command(**words)
        if not self._front.answer(OPEN_S)["ranked"]:
            return
        self._ranked.add(contender.name)
        for rank in self._ranks:
            rank.command(**words)
        for rank in self._ranks:
            rank.answer(OPEN_S)

    def hand_off(
        self, contender: str, name: str, grid: Sequence[int], encoded: Path, beat: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One, to its end: what the front end and what the ranks measured. Raises TeamFailed."""
        ranks = self._ranks if contender in self._ranked else []
        for rank in ranks:
            rank.command(do="take", contender=contender)
        for rank in ranks:
            rank.answer(HAND_OFF_S)
        time.sleep(SETTLE_S)
        self._front.command(
            do="hand_off", contender=contender, name=name, grid=list(grid), encoded=str(encoded), beat=beat
        )
        written = self._front.answer(HAND_OFF_S)
        taken = [rank.answer(HAND_OFF_S) for rank in ranks]
        written, *taken = self._checked(contender, [written, *taken], [self._front, *ranks])
        self._settle(contender, 1)
        return written, taken

    def _checked(
        self, contender: str, answers: Sequence[dict[str, Any]], processes: Sequence[_Process]
    ) -> list[dict[str, Any]]:
        """The answers, each with what its process says when it reads the tensor; nothing is measured meanwhile."""
        for process in processes:
            process.command(do="check", contender=contender)
        return [{**answer, **process.answer(HAND_OFF_S)} for answer, process in zip(answers, processes, strict=True)]

    def burst(
        self, contender: str, names: Sequence[str], grid: Sequence[int], encoded: Path, nbytes: int
    ) -> list[list[dict[str, Any]]]:
        """All of them wait before the ranks take the first: what each rank measured of each. Raises TeamFailed.

        ``nbytes``: of one, wide.
        """
        if contender not in self._ranked:
            return []
        self._front.command(do="burst", contender=contender, names=names, grid=list(grid), encoded=str(encoded))
        self._front.answer(HAND_OFF_S)
        time.sleep(SETTLE_S + len(names) * nbytes / DRAIN_BYTES_S)
        for rank in self._ranks:
            rank.command(do="burst", contender=contender, count=len(names))
        taken = [rank.answer(HAND_OFF_S)["taken"] for rank in self._ranks]
        self._settle(contender, len(names))
        return [list(of) for of in zip(*taken, strict=True)]

    def _settle(self, contender: str, count: int) -> None:
        self._front.command(do="settle", contender=contender, count=count)
        self._front.answer(HAND_OFF_S)

    def pause(self) -> None:
        """Until ``resume`` no process of the team runs: what spins or beats when idle disturbs nobody."""
        self._note_shared_memory()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """See ``pause``."""
        self._signal(signal.SIGCONT)

    def _note_shared_memory(self) -> None:
        for process in self._all:
            self._shared |= _shared_memory(process.pid)

    def _signal(self, number: signal.Signals) -> None:
        """To all that lives of it."""
        for process in self._all:
            try:
                whole = psutil.Process(process.pid)
                children = whole.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            for one in (*children, whole):
                with suppress(psutil.NoSuchProcess):
                    if not _is_resource_tracker(one):  # it must notice our end, whatever it is
                        one.send_signal(number)

    def pids(self) -> dict[str, int]:
        """By name, children too."""
        pids = {process.name: process.pid for process in self._all}
        for process in self._all:
            with suppress(psutil.NoSuchProcess):
                pids |= {str(child.pid): child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        return pids

    def close(self, at_once: bool = False) -> None:
        """Ends and reaps all processes, orderly unless ``at_once``; removes all files."""
        self.resume()  # a stopped process cannot end orderly
        self._note_shared_memory()
        for process in self._all:
            process.end(0.0 if at_once else END_S)
        for process in self._all:  # SGLang has its creator's pid in the name
            self._shared |= set(Path("/dev/shm").glob(f"*_{process.pid}_*"))
        for path in self._shared:  # a peer that is killed leaves it
            path.unlink(missing_ok=True)
        shutil.rmtree(self._directory, ignore_errors=True)


def _is_resource_tracker(process: psutil.Process) -> bool:
    return any("resource_tracker" in part for part in process.cmdline())


def _shared_memory(pid: int) -> set[Path]:
    """Files in /dev/shm that the process maps; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    mapped = {line.split(maxsplit=5)[-1] for line in lines}
    return {Path(path) for path in mapped if path.startswith("/dev/shm/") and not path.endswith("(deleted)")}
