"""The load: so many image requests under way at once, each client's next one when its last has ended."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from coatcheck.bench.serve.bodies import Bodies
from coatcheck.bench.serve.client import Answer, ask, session
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.records import TELL_S, Asked, Clock, Job, Line, Seen, say

AFTER_ERROR_S = 0.25  # a client's pause: a server that refuses at once is not to be flooded


class Loading:
    """See :mod:`coatcheck.bench.serve.records`."""

    def __init__(self, job: Job) -> None:
        self._load = Load.of_json(job.load)
        self._target = job.target
        self._bodies = Bodies(self._load, job.first)
        self._seen = Seen()
        self._sent: dict[int, float] = {}  # by client, while its request is under way

    async def run(self, start: float) -> Seen:
        """``start``: the ramp's. What is open at the end is closed."""
        clock = Clock(start + self._load.ramp_s, self._load.window_s)
        async with session() as http:
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            tasks = [asyncio.create_task(self._client(at, http, clock)) for at in range(self._load.clients)]
            tasks.append(asyncio.create_task(self._tell()))
            try:
                await clock.wait_for_end(self._seen)
                end = time.monotonic()
                self._seen.open_s = [end - sent for sent in self._sent.values()]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        self._seen.pictures, self._seen.repeated = self._bodies.taken, self._bodies.repeated
        return self._seen

    async def _client(self, at: int, http: aiohttp.ClientSession, clock: Clock) -> None:
        while True:
            body = self._bodies.next(self._target)
            answer = Answer(time.monotonic())
            self._sent[at] = answer.sent
            await ask(http, self._target.root, body, self._load.timeout_s, answer=answer)
            del self._sent[at]
            self._seen.asked.append(asked(answer, clock))
            if answer.error:
                await asyncio.sleep(AFTER_ERROR_S)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            say(Line(ended=len(self._seen.asked)))


def asked(answer: Answer, clock: Clock) -> Asked:
    """For the parent."""
    return Asked(
        sent=clock.at(answer.sent),
        ended=clock.at(answer.ended),
        first=None if answer.first is None else clock.at(answer.first),
        tokens=answer.tokens,
        chunks=answer.chunks,
        counted=answer.usage is not None,
        error=answer.error,
    )
