"""Wall and CPU time of one thread."""

from __future__ import annotations

import time
from dataclasses import dataclass

# Upper bounds of every histogram of a rank's times.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


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
