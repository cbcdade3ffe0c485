"""Who has reported a request ready: the decider's side of the delivery.

Invariants (property-tested without processes in ``tests/delivery``):

* A request is ready once every rank has reported it so, and never before, in whatever order reports come.
* A request that some rank has failed on, or that was failed for a reason of no single rank, is among the failures once.
* Waiting is bounded: one that some rank has not reported within ``ready_timeout_s`` of its arrival is among the
  failures. One that is ready does not expire.
* What was forgotten, or given out as a failure, is gone: later reports of it are ignored.

Pure logic: no clock, no socket, no thread of its own. Times are seconds on any one monotonic clock that the caller
uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rejection:
    """A request that cannot go on, and why; ``rank`` is where the cause lay, None if it is no single one."""

    request: str
    reason: str
    rank: int | None


@dataclass
class _Entry:
    deadline: float
    missing: set[int]
    failure: tuple[str, int | None] | None = None  # reason, rank


@dataclass
class Readiness:
    """``ranks``: size of the group; ``ready_timeout_s``: bound on waiting for reports. In arrival order."""

    ranks: int
    ready_timeout_s: float
    _entries: dict[str, _Entry] = field(default_factory=dict)

    def arrive(self, request: str, now: float) -> None:
        """The ranks are told of the request now."""
        if request in self._entries:
            raise ValueError(f"request {request} arrived twice")
        self._entries[request] = _Entry(now + self.ready_timeout_s, set(range(self.ranks)))

    def report(self, request: str, rank: int, error: str | None) -> None:
        """A rank's report, at any time, in any order, more than once. Of unknown requests: ignored."""
        entry = self._entries.get(request)
        if entry is None:
            return
        if error is None:
            entry.missing.discard(rank)
        elif entry.failure is None or entry.failure[1] is None:  # a rank's own account says more than a symptom
            entry.failure = error, rank

    def fail(self, request: str, reason: str) -> None:
        """For a reason of no single rank. Unknown: ignored."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.failure = entry.failure or (reason, None)

    def forget(self, request: str) -> bool:
        """Nothing of it is waited for any more. False if it is unknown."""
        return self._entries.pop(request, None) is not None

    def failures(self, now: float) -> list[Rejection]:
        """Those that failed or are overdue; they are forgotten."""
        failed = []
        for request, entry in list(self._entries.items()):
            if entry.failure is None and entry.missing and now >= entry.deadline:
                late = ", ".join(map(str, sorted(entry.missing)))
                entry.failure = f"no report from rank {late} within {self.ready_timeout_s:g} s", min(entry.missing)
            if entry.failure is not None:
                del self._entries[request]
                failed.append(Rejection(request, *entry.failure))
        return failed

    def ready(self) -> Iterator[str]:
        """Those that every rank has reported ready. Nothing may be forgotten while this is iterated over."""
        return (request for request, entry in self._entries.items() if not entry.missing and entry.failure is None)

    def has_failures(self) -> bool:
        """True if one has failed, without looking at the time."""
        return any(entry.failure is not None for entry in self._entries.values())

    def waits(self, request: str) -> bool:
        """True while some rank has not reported it."""
        entry = self._entries.get(request)
        return entry is not None and bool(entry.missing)

    def next_deadline(self) -> float | None:
        """When ``failures`` may have one though nothing happened; None if nothing waits."""
        return min((entry.deadline for entry in self._entries.values() if entry.missing), default=None)

    def __contains__(self, request: str) -> bool:
        return request in self._entries

    def __iter__(self) -> Iterator[str]:
        """Every request, in arrival order."""
        return iter(self._entries)
