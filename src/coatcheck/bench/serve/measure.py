"""One window on one server: the load from one process, the observers from another, so that neither delays the other."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import aiohttp
import msgspec

from coatcheck.bench.serve.bodies import PROBE_TOKENS, Bodies, Target, text_body
from coatcheck.bench.serve.client import Answer, ask, session
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.figures import run_of
from coatcheck.bench.serve.pictures import Pictures
from coatcheck.bench.serve.records import Job, Line, Seen
from coatcheck.bench.serve.result import Run
from coatcheck.bench.serve.target import find
from coatcheck.errors import CoatcheckError
from coatcheck.process import PARENT

__all__ = ["Pictures", "Progress", "check", "measure"]

READY_S = 120.0  # for a process's start, with its pictures drawn or its clips encoded
GRACE_S = 15.0  # after the window: to close connections and to tell
LEAD_S = 0.05  # from the word to start until the ramp's start
SETTLE_S = 10.0  # at most, after the window, until a text probe is as fast again as before
SETTLED = (2.0, 0.05)  # as fast: at most so many times, or so many seconds more
LINE_BYTES = 2**30

_first: Counter[Path | None] = Counter()  # of one's own pictures, how many this session has used, by directory


class Progress(Protocol):
    """Hears what is going on."""

    def phase(self, text: str, seconds: float) -> None:
        """This begins, and takes about so long."""
        ...

    def passed(self, seconds: float, ended: int) -> None:
        """So long since its begin, with so many image requests ended."""
        ...


class WorkerFailed(CoatcheckError):
    """A process of the measurement failed."""


async def measure(
    url: str,
    load: Load,
    *,
    contender: str,
    round: int,
    tp: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """One window. Raises ConfigError where the server cannot be reached, lacks the model or refuses the load.

    Afterwards no request of ours is left under way: what is open when the window ends is closed, and then a text probe
    is repeated until it is as fast as before the load, for ten seconds at most.
    """
    said = progress or _Silent()
    said.phase(f"{contender}: asking what it serves", 0.0)
    async with session() as http:
        target, answer = await _find(http, url, load)
        notes = []
        if answer.tokens < load.output_tokens:
            notes.append(f"an answer of {answer.tokens} tokens where {load.output_tokens} were asked for")
        if "ignore_eos" not in target.fields:
            notes.append("the server refuses ignore_eos")
        if not target.health and load.health_s:
            notes.append("the server has no GET /health")
        loaded, observed = await _window(target, load, contender, said)
        _first[load.directory] += loaded.pictures
        if loaded.repeated:
            notes.append(f"{loaded.repeated} of {loaded.pictures} pictures or videos had been sent before")
        said.phase(f"{contender}: waiting until it is quiet", SETTLE_S)
        settled_s = await _settle(http, target)
    extra: dict[str, Any] = {
        "notes": notes,
        "model": target.model,
        "fields": sorted(target.fields),
        "idle_probe_ms": target.idle_s * 1e3,
        "settled_s": settled_s,
    }
    return run_of(load, loaded, observed, contender=contender, round=round, tp=tp, extra=extra)


async def check(url: str, load: Load) -> None:
    """Raises ConfigError where the server cannot be reached, lacks the model or refuses the load: by one request."""
    async with session() as http:
        await _find(http, url, load)


async def _find(http: aiohttp.ClientSession, url: str, load: Load) -> tuple[Target, Answer]:
    bodies = await asyncio.to_thread(Bodies, load, _first[load.directory])
    try:
        return await find(http, url, load, bodies)
    finally:
        _first[load.directory] += bodies.taken


async def _window(target: Target, load: Load, contender: str, said: Progress) -> tuple[Seen, Seen]:
    said.phase(f"{contender}: making pictures", 0.0)
    jobs = [Job(role, target, load.as_json(), _first[load.directory]) for role in ("load", "observe")]
    async with _Worker(jobs[0]) as loader, _Worker(jobs[1]) as observer:
        await asyncio.gather(loader.ready(), observer.ready())
        start = time.monotonic() + LEAD_S
        seconds = load.ramp_s + load.window_s
        said.phase(contender, seconds)
        for worker in (loader, observer):
            worker.begin(start)
        try:
            async with asyncio.TaskGroup() as group:
                seen = [group.create_task(worker.seen(seconds + GRACE_S, said, start)) for worker in (loader, observer)]
        except* WorkerFailed as failed:
            first_failure = failed.exceptions[0]
        else:
            return seen[0].result(), seen[1].result()
        raise first_failure


async def _settle(http: aiohttp.ClientSession, target: Target) -> float | None:
    """Seconds until two probes in turn were as fast as before the load; None: not within SETTLE_S."""
    limit = max(target.idle_s * SETTLED[0], target.idle_s + SETTLED[1])
    began, quick = time.monotonic(), 0
    while (left := began + SETTLE_S - time.monotonic()) > 0:
        answer = await ask(http, target.root, text_body(target, PROBE_TOKENS), left)
        quick = quick + 1 if not answer.error and answer.ended - answer.sent <= limit else 0
        if quick == 2:
            return answer.ended - began
        if answer.error:
            await asyncio.sleep(0.1)
    return None


class _Silent:
    def phase(self, text: str, seconds: float) -> None:
        """Nobody listens."""

    def passed(self, seconds: float, ended: int) -> None:
        """Nobody listens."""


class _Worker:
    """Context manager: a child process, gone on exit."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coatcheck.bench.serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, PARENT: str(os.getpid())},
            limit=LINE_BYTES,
        )
        self._write(msgspec.json.encode(self._job))
        return self

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data + b"\n")

    async def ready(self) -> None:
        """Bounded; raises WorkerFailed."""
        if not (await self._line(READY_S)).ready:
            raise self._failed("said something else than that it is ready")

    def begin(self, start: float) -> None:
        """The ramp, at that monotonic time."""
        self._write(repr(start).encode())

    async def seen(self, within_s: float, said: Progress, start: float) -> Seen:
        """What it saw; bounded, raises WorkerFailed."""
        deadline = time.monotonic() + within_s
        while True:
            line = await self._line(deadline - time.monotonic())
            if line.seen is not None:
                return line.seen
            said.passed(time.monotonic() - start, line.ended)

    async def _line(self, within_s: float) -> Line:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                data = await self._process.stdout.readline()
        except TimeoutError:
            raise self._failed(f"did not answer within {within_s:.0f} s") from None
        if not data:
            raise self._failed("ended")
        return msgspec.json.decode(data, type=Line)

    def _failed(self, how: str) -> WorkerFailed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return WorkerFailed(f"the process for '{self._job.role}' {how}: {said[-1] if said else 'it said nothing'}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if kind is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        try:
            async with asyncio.timeout(GRACE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._errors.close()
