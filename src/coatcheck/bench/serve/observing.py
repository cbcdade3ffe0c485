"""What others see meanwhile: text streams, text probes and GET /health, from a process of their own.

Probes and health checks are sent when their time has come, whether the one before has been answered or not: a server
that stands still for a while is seen by all that were due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp

from coatcheck.bench.serve.bodies import PROBE_TOKENS, TEXT_TOKENS, text_body
from coatcheck.bench.serve.client import Answer, ask, get, session
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.loading import AFTER_ERROR_S, asked
from coatcheck.bench.serve.records import Clock, Job, Seen

MOST_OPEN = 64  # probes under way at once, and health checks
Pairs = list[tuple[float, float]]
Once = Callable[[], Awaitable[str]]  # why it failed, or ""


class Observing:
    """See :mod:`coatcheck.bench.serve.records`."""

    def __init__(self, job: Job) -> None:
        self._load = Load.of_json(job.load)
        self._target = job.target
        self._seen = Seen()
        self._since: dict[int, float] = {}  # of each text stream: when its latest text came

    async def run(self, start: float) -> Seen:
        """``start``: the ramp's. What is open at the end is closed."""
        clock, load, seen = Clock(start + self._load.ramp_s, self._load.window_s), self._load, self._seen
        open_probes: set[float] = set()
        open_healths: set[float] = set()
        async with session() as http:

            async def probe() -> str:
                body = text_body(self._target, PROBE_TOKENS)
                return (await ask(http, self._target.root, body, load.timeout_s)).error

            async def health() -> str:
                status, _, why = await get(http, f"{self._target.root}/health", load.timeout_s)
                return why or ("" if status == 200 else str(status))

            await asyncio.sleep(max(0.0, start - time.monotonic()))
            tasks = [asyncio.create_task(self._stream(at, http, clock)) for at in range(load.text_streams)]
            if load.probe_s:
                tasks.append(self._every("probe", load.probe_s, probe, clock, seen.probes, open_probes))
            if load.health_s and self._target.health:
                tasks.append(self._every("health", load.health_s, health, clock, seen.healths, open_healths))
            try:
                await clock.wait_for_end(seen)
                end = clock.now()
                seen.open_gaps = [(end, end - since) for since in self._since.values()]
                seen.open_probes = [(sent, end - sent) for sent in open_probes]
                seen.open_healths = [(sent, end - sent) for sent in open_healths]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return seen

    async def _stream(self, at: int, http: aiohttp.ClientSession, clock: Clock) -> None:
        def heard(moment: float) -> None:
            now = clock.at(moment)
            if now >= 0:
                self._seen.texts += 1
            since = self._since.get(at)
            if since is not None and now > since:  # what came in one piece has no gap in it
                self._seen.gaps.append((now, now - since))
            self._since[at] = now

        while True:
            answer = Answer(time.monotonic())
            await ask(
                http, self._target.root, text_body(self._target, TEXT_TOKENS), self._load.timeout_s, heard, answer
            )
            self._since.pop(at, None)
            self._seen.streams.append(asked(answer, clock))
            if answer.error:
                self._seen.errors.append((clock.at(answer.ended), f"text stream: {answer.error}"))
                await asyncio.sleep(AFTER_ERROR_S)

    def _every(
        self, name: str, every_s: float, once: Once, clock: Clock, found: Pairs, under_way: set[float]
    ) -> asyncio.Task[None]:
        async def one(sent: float) -> None:
            under_way.add(sent)
            why = await once()
            under_way.discard(sent)
            if why:
                self._seen.errors.append((clock.now(), f"{name}: {why}"))
            else:
                found.append((sent, clock.now() - sent))

        async def go_on() -> None:
            async with asyncio.TaskGroup() as group:
                due = clock.now()
                while True:
                    if len(under_way) < MOST_OPEN:
                        group.create_task(one(clock.now()))
                    due += every_s
                    await asyncio.sleep(max(0.0, due - clock.now()))

        return asyncio.create_task(go_on())
