"""Whether requests are carried at all, after something of ours has gone wrong: a circuit breaker, without a clock.

Invariants (``tests/integrations/sglang/test_breaker.py``):

* Closed: requests are carried. Open: none is, and each takes SGLang's own way without waiting.
* It opens when a rank has been silent for too long, or when ``FAILURES`` requests in a row could not be prepared.
* It closes when every rank has answered a probe that was sent after it opened, and a pause has passed. The pause
  doubles, up to ``MOST_S``, each time that it opens again before any request was carried.
* After it has closed, one more failure opens it, until a request was carried.
"""

from __future__ import annotations

FAILURES = 3  # in a row: one may be that request's own
LEAST_S = 1.0  # about the longest that a busy rank was seen to be silent without being stuck
MOST_S = 60.0


class Breaker:
    """Times are seconds of one monotonic clock. Used by one thread at a time."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.open = False
        self._failures = 0  # in a row
        self._pause_s = LEAST_S
        self._until = 0.0
        self._probe = 0  # number of the last
        self._probed = 0.0  # when it was sent
        self._silent: set[int] = set()  # ranks that have not answered it

    def carried(self) -> None:
        """Every rank has prepared a request."""
        self._failures = 0
        self._pause_s = LEAST_S

    def failed(self, now: float) -> bool:
        """A rank could not prepare a request. True if that opened it."""
        self._failures += 1
        return self._failures >= FAILURES and self._trip(now)

    def late(self, now: float) -> bool:
        """A rank has not reported in time. True if that opened it."""
        return self._trip(now)

    def _trip(self, now: float) -> bool:
        if self.open:
            return False
        self.open = True
        self._failures = FAILURES - 1  # one more, once it has closed
        self._until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, MOST_S)
        self._probe += 1  # what was answered before is no sign of life
        self._probed = float("-inf")
        self._silent = set(range(self._ranks))
        return True

    def probe(self, now: float) -> int | None:
        """The number to ask every rank for, if it is time to."""
        if not self.open or not self._silent or now < self._probed + LEAST_S:
            return None
        self._probed = now
        return self._probe

    def answered(self, rank: int, number: int) -> None:
        """A rank has answered a probe."""
        if number == self._probe:
            self._silent.discard(rank)

    def close_if_well(self, now: float) -> bool:
        """True if it has closed now."""
        if not self.open or self._silent or now < self._until:
            return False
        self.open = False
        return True


class Silence:
    """Which ranks owe a report, since when. A ticket that was withdrawn is prepared and reported all the same."""

    def __init__(self, ranks: int, timeout_s: float) -> None:
        self._ranks, self._timeout_s = range(ranks), timeout_s
        self._owed: dict[str, tuple[float, set[int]]] = {}  # by ticket, in the order in which they were told

    def told(self, ticket: str, now: float) -> None:
        """To every rank."""
        self._owed[ticket] = now + self._timeout_s, set(self._ranks)

    def heard(self, ticket: str, rank: int) -> None:
        """Its report, whatever it says."""
        if ticket in self._owed:
            self._owed[ticket][1].discard(rank)
            if not self._owed[ticket][1]:
                del self._owed[ticket]

    def overdue(self, now: float) -> set[int]:
        """Ranks that have been silent for too long."""
        if not self._owed:
            return set()
        deadline, ranks = next(iter(self._owed.values()))
        return set(ranks) if now >= deadline else set()

    def forget(self) -> None:
        """What is owed by now is not waited for any more."""
        self._owed.clear()
