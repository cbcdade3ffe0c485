"""Parking and admitting on the ranks of an engine that broadcasts its requests: the rules, without SGLang.

Every rank hands the gate the very list that the engine's broadcast gave it, and hands the engine what the gate lets
through. Invariants (property-tested in ``tests/integrations/sglang``; with real ranks in ``tests/sglang``):

* **Ranks cannot diverge.** What leaves the gate, and in which order, depends on the broadcast lists alone: a request
  with a ticket leaves where a list settles or aborts it, and everything else at once. Reports, clocks and failures are
  only ever read by the entry rank's book, and reach the gates, its own too, as a Settled in a list.
* A request leaves once: admitted, with inputs, only after every rank has reported them ready; or rejected, with a
  reason, on every rank. What is admitted by one Settled leaves in order of arrival; what has no ticket never waits.
* An abort ends the parked requests that it names there and then, in front of itself. What the book had settled
  meanwhile, or reports later, is of nobody.
* A decision is made once and is carried by every list from then on until one has carried it: the engine may skip a
  broadcast.
* Waiting is bounded: what some rank has not reported in time is rejected on all, by the book.
* Whatever the end, each rank begins each ticket exactly once, and so gives its block back exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from coatcheck.admission import Ledger, Parked
from coatcheck.integrations.sglang.records import Settled, Ticket

R = TypeVar("R")  # the engine's requests
I = TypeVar("I")  # noqa: E741 - a rank's inputs

ABORTED = "The request was aborted while its multimodal inputs were prepared."


@dataclass(frozen=True)
class Pass(Generic[R]):
    """Nothing of ours."""

    request: R


@dataclass(frozen=True)
class Park(Generic[R]):
    """A request with a ticket."""

    request: R
    rid: str  # the engine's name, which aborts go by
    ticket: Ticket


@dataclass(frozen=True)
class Abort(Generic[R]):
    """The engine's abort: of all requests whose name begins so, as in SGLang, or of all."""

    request: R
    rid: str
    everything: bool


Event = Pass[R] | Park[R] | Abort[R] | Settled


class Book:
    """The entry rank's: a ledger, and what it has settled but no list has carried."""

    def __init__(self, ranks: int, ready_timeout_s: float) -> None:
        self._ledger = Ledger(ranks, ready_timeout_s)
        self._open = Settled()
        self._deadline: float | None = None  # of the one that waits longest; may be past its end

    def arrive(self, request: str, now: float) -> None:
        """The request has been parked on all ranks."""
        self._ledger.arrive(request, now)
        self._deadline = self._ledger.next_deadline() if self._deadline is None else self._deadline

    def report(self, request: str, rank: int, error: str | None) -> None:
        """A rank's, in any order, at any time."""
        self._ledger.report(request, rank, error)

    def abort(self, request: str) -> None:
        """It has left all gates."""
        self._ledger.abort(request)

    def settle(self, now: float) -> Settled | None:
        """What the next list must carry, the same and more until ``carried``; None if there is nothing."""
        if self._ledger.undecided() or (self._deadline is not None and now >= self._deadline):
            decision = self._ledger.decide(now, lambda request: True)
            for request in decision.admitted:
                self._ledger.finish(request)
            rejected = tuple((rejection.request, rejection.reason) for rejection in decision.rejected)
            self._open = Settled(self._open.admitted + decision.admitted, self._open.rejected + rejected)
            self._deadline = self._ledger.next_deadline()
        return self._open if self._open != Settled() else None

    def carried(self) -> None:
        """A list has carried what ``settle`` gave."""
        self._open = Settled()


class Gate(Generic[R, I]):
    """One rank's. ``take`` is called by the scheduler's thread alone; ``wanted`` and ``park`` by its lane."""

    def __init__(
        self,
        rank: int,
        begin: Callable[[Ticket], None],
        admit: Callable[[R, I], R],
        reject: Callable[[R, str], R],
        book: Book | None = None,
    ) -> None:
        """``begin`` starts a ticket's work, and must not block; ``admit`` and ``reject`` make a request for the engine.

        ``book``: on the entry rank only.
        """
        self._begin, self._admit, self._reject = begin, admit, reject
        self._book = book
        self._inputs = Parked[I](rank)
        self._parked: dict[str, Park[R]] = {}  # in order of arrival

    def take(self, events: Iterable[Event[R]], now: float) -> list[R]:
        """One list of the broadcast -> what the engine gets of it, in order. Times are the book's."""
        through: list[R] = []
        for event in events:
            if isinstance(event, Pass):
                through.append(event.request)
            elif isinstance(event, Park):
                self._take_ticket(event, now)
            elif isinstance(event, Abort):
                through += self._aborted(event)
                through.append(event.request)
            else:
                through += self._settled(event)
        return through

    def _take_ticket(self, event: Park[R], now: float) -> None:
        request = event.ticket.request
        self._parked[request] = event
        self._inputs.expect(request)
        if self._book is not None:
            self._book.arrive(request, now)
        self._begin(event.ticket)

    def _aborted(self, abort: Abort[R]) -> Iterable[R]:
        for request, parked in list(self._parked.items()):
            if abort.everything or parked.rid.startswith(abort.rid):
                if self._book is not None:
                    self._book.abort(request)
                yield self._end(request, ABORTED)

    def _settled(self, settled: Settled) -> Iterable[R]:
        for request, reason in settled.rejected:
            if request in self._parked:
                yield self._end(request, reason)
        for request in [request for request in self._parked if request in settled.admitted]:
            yield self._admit(self._parked.pop(request).request, self._inputs.admit(request))
        if self._book is not None:
            self._book.carried()

    def _end(self, request: str, reason: str) -> R:
        self._inputs.drop(request)
        return self._reject(self._parked.pop(request).request, reason)

    def wanted(self, request: str) -> bool:
        """False once the request has left: nobody waits for its inputs."""
        return self._inputs.expected(request)

    def park(self, request: str, inputs: I) -> bool:
        """The inputs are ready on this rank; False, and nothing kept, if the request has left meanwhile."""
        return self._inputs.park(request, inputs)

    def __len__(self) -> int:
        """Requests parked."""
        return len(self._parked)
