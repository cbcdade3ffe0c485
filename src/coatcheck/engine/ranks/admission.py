"""The book of requests of who decides, the entry rank (inside SGLang the tokenizer's process): who has reported ready,
who is admitted, who is rejected.

Invariants (property-tested without processes in ``tests/admission``):

* Only the ledger decides, and every decision reaches all ranks through a broadcast (a plan); so all ranks see the same
  decisions in the same order, however their reports were delayed or interleaved.
* A request is admitted only after every rank reported it ready, and at most once.
* Whatever is ready on all ranks is admitted, ties in arrival order: a request that is not ready holds nobody up. A
  ready request for which there is no room does hold up those that arrived after it, so that a large one is not
  starved.
* Every request that arrived ends exactly once: rejected, aborted or finished. Reports after its end are ignored.
* Waiting is bounded: a request that some rank has not reported within ``ready_timeout_s`` of its arrival is rejected.
  That time includes waiting in the lane. A rank that hangs in the step loop itself is not this bound's matter but the
  process group's: nobody can decide while the loop stands still.

Pure logic: no clock, no socket, no thread of its own. Times are seconds on any one monotonic clock that the caller
uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto


class _State(Enum):
    WAITING = auto()  # some rank has not reported
    READY = auto()  # every rank has reported ready
    RUNNING = auto()  # admitted


@dataclass
class _Entry:
    deadline: float
    missing: set[int]
    state: _State = _State.WAITING
    failure: tuple[str, int | None] | None = None  # reason, rank


@dataclass(frozen=True)
class Rejection:
    """A request rejected on all ranks, and why; ``rank`` is where the cause lay, None if it is no single one."""

    request: str
    reason: str
    rank: int | None


@dataclass(frozen=True)
class Decision:
    """What goes into the next plan. Rejections are in no particular order, admissions in arrival order."""

    admitted: tuple[str, ...]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class LedgerStatistics:
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
class Ledger:
    """See the module's docstring. ``ranks``: size of the group; ``ready_timeout_s``: bound on waiting for reports."""

    ranks: int
    ready_timeout_s: float
    _entries: dict[str, _Entry] = field(default_factory=dict)  # in arrival order
    _counts: _Counts = field(default_factory=_Counts)

    def arrive(self, request: str, now: float) -> None:
        """The request goes out to the ranks in the plan under way."""
        if request in self._entries:
            raise ValueError(f"request {request} arrived twice")
        self._entries[request] = _Entry(now + self.ready_timeout_s, set(range(self.ranks)))

    def report(self, request: str, rank: int, error: str | None) -> None:
        """A rank's report, at any time, in any order, more than once. Of unknown or ended requests: ignored."""
        entry = self._entries.get(request)
        if entry is None:
            return
        if error is not None:
            if entry.failure is None or entry.failure[1] is None:  # a rank's own account says more than a symptom
                entry.failure = error, rank
            return
        entry.missing.discard(rank)
        if not entry.missing and entry.state is _State.WAITING:
            entry.state = _State.READY

    def fail(self, request: str, reason: str) -> None:
        """Rejects the request in the next decision for a reason of no single rank. Unknown or ended: ignored."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.failure = entry.failure or (reason, None)

    def abort(self, request: str) -> bool:
        """Ends the request now. False if it is unknown or has ended already."""
        ended = self._entries.pop(request, None) is not None
        self._counts.aborted += ended
        return ended

    def finish(self, request: str) -> bool:
        """Ends a running request now, its last token drawn. False if it is unknown or has ended already."""
        entry = self._entries.get(request)
        if entry is None:
            return False
        if entry.state is not _State.RUNNING:
            raise ValueError(f"request {request} cannot finish: it was not admitted")
        del self._entries[request]
        self._counts.finished += 1
        return True

    def decide(self, now: float, reserve: Callable[[str], bool]) -> Decision:
        """Rejects what failed or is overdue, then admits what is ready, in arrival order, while ``reserve`` says True.

        ``reserve(request)`` takes the room that the request needs, or returns False and takes nothing.
        """
        rejected = []
        for request, entry in list(self._entries.items()):
            if entry.failure is None and entry.state is _State.WAITING and now >= entry.deadline:
                late = ", ".join(map(str, sorted(entry.missing)))
                entry.failure = (f"no report from rank {late} within {self.ready_timeout_s:g} s", min(entry.missing))
            if entry.failure is not None:
                del self._entries[request]
                rejected.append(Rejection(request, *entry.failure))
        admitted = []
        for request, entry in self._entries.items():
            if entry.state is not _State.READY:
                continue
            if not reserve(request):
                break
            entry.state = _State.RUNNING
            admitted.append(request)
        self._counts.rejected += len(rejected)
        self._counts.admitted += len(admitted)
        return Decision(tuple(admitted), tuple(rejected))

    def __contains__(self, request: str) -> bool:
        """True from arrival until the end."""
        return request in self._entries

    def waits(self, request: str) -> bool:
        """True while some rank has not reported it."""
        entry = self._entries.get(request)
        return entry is not None and entry.state is _State.WAITING

    def open(self) -> tuple[str, ...]:
        """Every request that has not ended, in arrival order."""
        return tuple(self._entries)

    def next_deadline(self) -> float | None:
        """When ``decide`` must be called again though nothing happened; None if nothing waits."""
        waiting = (entry.deadline for entry in self._entries.values() if entry.state is _State.WAITING)
        return min(waiting, default=None)

    def undecided(self) -> bool:
        """True if a call of ``decide`` would reject, or would admit given room."""
        return any(e.failure is not None or e.state is _State.READY for e in self._entries.values())

    def statistics(self) -> LedgerStatistics:
        """A frozen snapshot."""
        states = [entry.state for entry in list(self._entries.values())]  # at once: may be read by another thread
        return LedgerStatistics(
            waiting=states.count(_State.WAITING),
            ready=states.count(_State.READY),
            running=states.count(_State.RUNNING),
            admitted=self._counts.admitted,
            rejected=self._counts.rejected,
            aborted=self._counts.aborted,
            finished=self._counts.finished,
        )
