"""Admission: which request runs when. Used by the entry rank alone.

Invariants (property-tested without processes in ``tests/engine/ranks``), beside those of
:mod:`coatcheck.delivery.readiness`:

* Only this decides, and every decision reaches all ranks through a broadcast (a plan); so all ranks see the same
  decisions in the same order, however their reports were delayed or interleaved.
* A request is admitted only after every rank reported it ready, and at most once.
* Whatever is ready on all ranks is admitted, ties in arrival order: a request that is not ready holds nobody up. A
  ready request for which there is no room does hold up those that arrived after it, so that a large one is not
  starved.
* Every request that arrived ends exactly once: rejected, aborted or finished. Reports after its end are ignored.
* Waiting for reports is bounded, time in a rank's background thread included. A rank that hangs in the step loop itself
  is not this bound's matter but the process group's: nobody can decide while the loop stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from coatcheck.delivery.readiness import Readiness, Rejection


@dataclass(frozen=True)
class Decision:
    """What goes into the next plan. Rejections are in no particular order, admissions in arrival order."""

    admitted: tuple[str, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class AdmissionStatistics:
    """A snapshot: requests by state now, and by outcome since the start."""

    waiting: int
    ready: int
    running: int
    admitted: int
    rejected: int
    aborted: int
    finished: int


@dataclass
class _Counts:
    admitted: int = 0
    rejected: int = 0
    aborted: int = 0
    finished: int = 0


@dataclass
class Admission:
    """See the module's docstring. ``readiness``: of the same group; nobody else changes it."""

    readiness: Readiness
    _running: set[str] = field(default_factory=set)  # a part of the readiness's requests
    _counts: _Counts = field(default_factory=_Counts)

    @property
    def ranks(self) -> int:
        """Size of the group."""
        return self.readiness.ranks

    def arrive(self, request: str, now: float) -> None:
        """The request goes out to the ranks in the plan under way."""
        self.readiness.arrive(request, now)

    def report(self, request: str, rank: int, error: str | None) -> None:
        """See :class:`coatcheck.delivery.readiness.Readiness`. An error of one that runs rejects it, too."""
        self.readiness.report(request, rank, error)

    def fail(self, request: str, reason: str) -> None:
        """Rejects the request in the next decision for a reason of no single rank. Unknown or ended: ignored."""
        self.readiness.fail(request, reason)

    def abort(self, request: str) -> bool:
        """Ends the request now. False if it is unknown or has ended already."""
        ended = self.readiness.forget(request)
        self._running.discard(request)
        self._counts.aborted += ended
        return ended

    def finish(self, request: str) -> bool:
        """Ends a running request now, its last token drawn. False if it is unknown or has ended already."""
        if request not in self.readiness:
            return False
        if request not in self._running:
            raise ValueError(f"request {request} cannot finish: it was not admitted")
        self.readiness.forget(request)
        self._running.discard(request)
        self._counts.finished += 1
        return True

    def decide(self, now: float, reserve: Callable[[str], bool]) -> Decision:
        """Rejects what failed or is overdue, then admits what is ready, in arrival order, while ``reserve`` says True.

        ``reserve(request)`` takes the room that the request needs, or returns False and takes nothing.
        """
        rejected = self.readiness.failures(now)
        self._running.difference_update(rejection.request for rejection in rejected)
        admitted = []
        for request in self._admissible():
            if not reserve(request):
                break
            admitted.append(request)
        self._running.update(admitted)
        self._counts.rejected += len(rejected)
        self._counts.admitted += len(admitted)
        return Decision(tuple(admitted), tuple(rejected))

    def _admissible(self) -> list[str]:
        return [request for request in self.readiness.ready() if request not in self._running]

    def __contains__(self, request: str) -> bool:
        """True from arrival until the end."""
        return request in self.readiness

    def waits(self, request: str) -> bool:
        """True while some rank has not reported it."""
        return self.readiness.waits(request)

    def open(self) -> tuple[str, ...]:
        """Every request that has not ended, in arrival order."""
        return tuple(self.readiness)

    def next_deadline(self) -> float | None:
        """When ``decide`` must be called again though nothing happened; None if nothing waits."""
        return self.readiness.next_deadline()

    def undecided(self) -> bool:
        """True if a call of ``decide`` would reject, or would admit given room."""
        return self.readiness.has_failures() or bool(self._admissible())

    def statistics(self) -> AdmissionStatistics:
        """A frozen snapshot. May be read by another thread."""
        requests, running = list(self.readiness), len(self._running)
        waiting = sum(map(self.readiness.waits, requests))
        return AdmissionStatistics(
            waiting=waiting,
            ready=max(0, len(requests) - waiting - running),
            running=running,
            admitted=self._counts.admitted,
            rejected=self._counts.rejected,
            aborted=self._counts.aborted,
            finished=self._counts.finished,
        )
