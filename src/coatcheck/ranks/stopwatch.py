"""Wall and CPU time of one thread."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """In seconds; ``start`` is on the host's monotonic clock."""

    start: float
    wall: float
    cpu: float  # of the measuring thread

    def part(self, share: float) -> Spent:
        """This share of it; all parts of one whole start together."""
        return Spent(self.start, self.wall * share, self.cpu * share)


class Stopwatch:
    """Runs from its making. Start and stop it on the same thread."""

    __slots__ = ("_cpu", "_start")

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._cpu = time.thread_time()

    def stop(self) -> Spent:
        """Time since the start; may be asked again."""
        return Spent(self._start, time.monotonic() - self._start, time.thread_time() - self._cpu)
