"""The lane: one ordered queue of background work on each rank, and the one thread that works it off.

Invariants (model in ``tests/engine/ranks/test_lane_model.py``):

* Jobs are queued in plan order, so every rank's lane has the same jobs in the same order, whatever their timing.
* A job that takes part in a collective is executed on every rank, also when its request has ended or its own part
  fails: skipped on one rank only, it would leave the others waiting, or hand them another request's inputs.
  Cancelling drops its result.
* A job without a collective is skipped if nobody waits for its result any more.
* One thread: two could start two collectives of one process group in different order on different ranks. (The notes'
  scheme 1 has a pool of two; ``benchmarks/micro/lane_threads.py`` shows what that does.)
* The step loop never waits for the lane. Results are kept and reported by the lane's thread.

Collectives inside jobs are bounded by the process group's timeout. What a job raises is its own to handle; an
exception that escapes means that the group is broken, and ends the process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from coatcheck.process import set_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One request's work in the lane."""

    request: str
    collective: bool  # takes part in a collective
    wanted: Callable[[], bool]  # does anybody wait for the result?
    run: Callable[[], None]


class LaneQueue:
    """The order, without the thread. Safe to use from several threads."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def put(self, job: Job) -> None:
        """Jobs leave in the order in which they are put."""
        self._jobs.append(job)

    def take(self) -> Job | None:
        """The next job that must be executed, None if there is none."""
        while self._jobs:
            job = self._jobs.popleft()
            if job.collective or job.wanted():
                return job
        return None

    def __len__(self) -> int:
        return len(self._jobs)


class Lane:
    """The thread. ``close`` ends it; a daemon, so that a rank that fails can end without it."""

    def __init__(self, rank: int) -> None:
        self._queue = LaneQueue()
        self._more = threading.Condition()
        self._closing = False
        self._busy = False
        self._thread = threading.Thread(target=self._work, name=f"coatcheck-rank{rank}-materializer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job; never blocks for longer than it takes to queue it."""
        with self._more:
            self._queue.put(job)
            self._more.notify()

    @property
    def depth(self) -> int:
        """Jobs queued and under way."""
        return len(self._queue) + self._busy

    def close(self, timeout_s: float) -> bool:
        """Executes what is queued, then ends the thread. False if it has not ended in time. Idempotent."""
        with self._more:
            self._closing = True
            self._more.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        set_name("coatcheck-lane")
        while True:
            with self._more:
                while (job := self._queue.take()) is None:
                    if self._closing:
                        return
                    self._more.wait()
                self._busy = True
            try:
                job.run()
            except BaseException:
                log.critical("the lane failed on request %s; the rank ends", job.request, exc_info=True)
                os._exit(1)  # the step loop may sleep in a broadcast that never comes
            finally:
                self._busy = False
