"""Every rank prepares a request's inputs before the request is sent: the rules, without SGLang, sockets or threads.

The tokenizer's process announces a ticket to every rank, each by a channel of its own, in which order is kept. A rank
prepares the inputs beside its scheduler's thread, and reports. Once all have reported, the request is sent as SGLang
sends it, a claim in place of its inputs; the scheduler's thread of each rank claims what lies ready there. Invariants
(property-tested in ``tests/integrations/sglang``; with real ranks in ``tests/sglang``):

* **Ranks cannot diverge.** What a scheduler does depends on SGLang's own broadcast alone. Reports, clocks and failures
  are only ever read by the tokenizer's process, and end there: in a claim, in a refusal, which rides in the broadcast
  as well, or in SGLang's own way, which is as if nothing had been announced.
* **A claim does not fail**: it is sent only after every rank has reported the inputs ready, and they lie there until
  they are claimed or withdrawn. A request whose ticket was withdrawn is never sent with a claim.
* A ticket is decided once: ready on all ranks; refused, because SGLang itself could not take the inputs on one of
  them; failed or late, which is our trouble and not the request's; or given up by who announced it. Unless it is
  ready, it is withdrawn on every rank.
* Waiting is bounded. A rank prepares one ticket after the other, beside its scheduler.
* Whatever the end, each rank makes a ticket's inputs once and lets go of them once, and so gives its blocks back once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from coatcheck.delivery.preparer import Preparer
from coatcheck.delivery.readiness import Readiness
from coatcheck.delivery.records import Ready
from coatcheck.integrations.sglang.records import Failed, Ticket, Withdrawn

I = TypeVar("I")  # noqa: E741 - a rank's inputs


class InputsRefused(Exception):
    """SGLang's own code could not take the inputs: by its own way the request would have ended its scheduler."""


@dataclass(frozen=True)
class Outcome:
    """What became of a ticket, and why."""

    end: Literal["ready", "refused", "failed", "late", "given up"]
    why: str = ""


class Announcements:
    """The tokenizer's side. Its owner calls it from one thread at a time; times are of one monotonic clock."""

    def __init__(self, ranks: int, ready_timeout_s: float, tell: Callable[[Ticket | Withdrawn], None]) -> None:
        """``tell`` reaches every rank, in order, and must not block."""
        self._readiness = Readiness(ranks, ready_timeout_s)
        self._tell = tell
        self._open: dict[str, Future[Outcome]] = {}
        self._ends: dict[str, Literal["refused", "failed", "given up"]] = {}  # of those for which that is known

    def announce(self, ticket: Ticket, now: float) -> Future[Outcome]:
        """How it ends. Unless it is ready, it is withdrawn then."""
        self._readiness.arrive(ticket.request, now)
        outcome = self._open[ticket.request] = Future[Outcome]()
        self._tell(ticket)
        return outcome

    def report(self, report: Ready | Failed, now: float) -> None:
        """A rank's, in any order, at any time."""
        error = report.why if isinstance(report, Failed) else report.error
        if error is not None and report.request in self._open:
            self._ends.setdefault(report.request, "failed" if isinstance(report, Failed) else "refused")
        self._readiness.report(report.request, report.rank, error)
        self.settle(now)

    def settle(self, now: float) -> None:
        """To be called now and then, also when nothing is reported: so what is overdue is given up."""
        for rejection in self._readiness.failures(now):
            self._tell(Withdrawn(rejection.request))
            self._decide(rejection.request, Outcome(self._ends.pop(rejection.request, "late"), rejection.reason))
        for request in list(self._readiness.ready()):
            self._readiness.forget(request)
            self._decide(request, Outcome("ready"))

    def give_up(self, why: str) -> None:
        """Of whatever is open, for a reason that is none of its own."""
        for request in list(self._open):
            self._ends[request] = "given up"
            self._readiness.fail(request, why)
        self.settle(0.0)

    def _decide(self, request: str, outcome: Outcome) -> None:
        waiting = self._open.pop(request)
        if waiting.set_running_or_notify_cancel():
            waiting.set_result(outcome)

    def withdraw(self, request: str) -> None:
        """Nobody will claim it. To be called for what is ready, too, if it is not sent; may be called twice."""
        self._readiness.forget(request)
        self._open.pop(request, None)
        self._ends.pop(request, None)
        self._tell(Withdrawn(request))


class TicketPreparer(Generic[I]):
    """A rank's side. ``take`` is called by one thread, ``claim`` by the scheduler's."""

    def __init__(self, rank: int, make: Callable[[Ticket], I], report: Callable[[Ready | Failed], None]) -> None:
        """``make`` gives the ticket's blocks back, if it fails; else its inputs do, when nothing refers to them.

        It raises InputsRefused if SGLang cannot take them.
        """
        self._rank, self._make, self._report = rank, make, report
        self._preparer = Preparer[I](rank)

    def take(self, record: Ticket | Withdrawn) -> None:
        """What the tokenizer's process tells, in its order."""
        if isinstance(record, Withdrawn):
            self._preparer.drop(record.request)
            return
        self._preparer.expect(record.request)
        failure = self._preparer.prepare(record.request, lambda: self._make(record))
        if failure is None:
            self._report(Ready(record.request, self._rank))
            return
        self._preparer.drop(record.request)
        said = failure.text or failure.kind.__name__
        why = f"Multimodal inputs could not be prepared on rank {self._rank}: {said}"
        if issubclass(failure.kind, InputsRefused):
            self._report(Ready(record.request, self._rank, why))
        else:
            self._report(Failed(record.request, self._rank, why))

    def claim(self, request: str) -> tuple[I, float]:
        """Hands the inputs over, and says for how many seconds they have lain ready.

        Raises RanksDisagree if there are none, which the rules exclude.
        """
        return self._preparer.claim(request)

    def __len__(self) -> int:
        """Inputs that nobody has claimed."""
        return len(self._preparer)
