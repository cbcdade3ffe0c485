"""Every rank prepares a request's inputs before the request is sent: the rules, without SGLang, sockets or threads.

The tokenizer's process announces a ticket to every rank, each by a channel of its own, in which order is kept. A rank
prepares the inputs beside its scheduler's thread, and reports. Once all have reported, the request is sent as SGLang
sends it, a claim in place of its inputs; the scheduler's thread of each rank claims what lies ready there. Invariants
(property-tested in ``tests/integrations/sglang``; with real ranks in ``tests/sglang``):

* **Ranks cannot diverge.** What a scheduler does depends on SGLang's own broadcast alone. Reports, clocks and failures
  are only ever read by the tokenizer's process, and end there: in a claim, in a refusal, which rides in the broadcast
  as well, or in nothing being sent.
* **A claim does not fail**: it is sent only after every rank has reported the inputs ready, and they lie there until
  they are claimed or withdrawn. A request whose ticket was withdrawn is never sent with a claim.
* A ticket is decided once: ready on all ranks, or refused, because one of them failed or was silent for too long, or
  given up by who announced it. Unless it is ready, it is withdrawn on every rank.
* Waiting is bounded. A rank prepares one ticket after the other, beside its scheduler.
* Whatever the end, each rank makes a ticket's inputs once and lets go of them once, and so gives its block back once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from coatcheck.admission import Ledger, Parked
from coatcheck.errors import CoatcheckError
from coatcheck.integrations.sglang.records import Ticket, Withdrawn
from coatcheck.messages import Ready

I = TypeVar("I")  # noqa: E741 - a rank's inputs

log = logging.getLogger(__name__)


class Announcements:
    """The tokenizer's side. Its owner calls it from one thread at a time; times are of one monotonic clock."""

    def __init__(self, ranks: int, ready_timeout_s: float, tell: Callable[[Ticket | Withdrawn], None]) -> None:
        """``tell`` reaches every rank, in order, and must not block."""
        self._ledger = Ledger(ranks, ready_timeout_s)
        self._tell = tell
        self._open: dict[str, Future[str | None]] = {}

    def announce(self, ticket: Ticket, now: float) -> Future[str | None]:
        """None when every rank has reported it ready; else why it is refused, and then it is withdrawn."""
        self._ledger.arrive(ticket.request, now)
        outcome = self._open[ticket.request] = Future[str | None]()
        self._tell(ticket)
        return outcome

    def report(self, ready: Ready, now: float) -> None:
        """A rank's, in any order, at any time."""
        self._ledger.report(ready.request, ready.rank, ready.error)
        self.settle(now)

    def settle(self, now: float) -> None:
        """To be called now and then, also when nothing is reported: so what is overdue is refused."""
        deadline = self._ledger.next_deadline()
        if not self._ledger.undecided() and (deadline is None or now < deadline):
            return
        decision = self._ledger.decide(now, lambda request: True)
        for request in decision.admitted:
            self._ledger.finish(request)
            self._decide(request, None)
        for rejection in decision.rejected:
            self._tell(Withdrawn(rejection.request))
            self._decide(rejection.request, rejection.reason)

    def _decide(self, request: str, refusal: str | None) -> None:
        outcome = self._open.pop(request)
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(refusal)

    def withdraw(self, request: str) -> None:
        """Nobody will claim it. To be called for what is ready, too, if it is not sent; may be called twice."""
        self._ledger.abort(request)
        self._open.pop(request, None)
        self._tell(Withdrawn(request))


class Preparer(Generic[I]):
    """A rank's side. ``take`` is called by one thread, ``claim`` by the scheduler's."""

    def __init__(self, rank: int, make: Callable[[Ticket], I], report: Callable[[Ready], None]) -> None:
        """``make`` gives the ticket's block back, if it fails; else its inputs do, when nothing refers to them."""
        self._rank, self._make, self._report = rank, make, report
        self._parked = Parked[I](rank)

    def take(self, record: Ticket | Withdrawn) -> None:
        """What the tokenizer's process tells, in its order."""
        if isinstance(record, Withdrawn):
            self._parked.drop(record.request)
            return
        reason = None
        self._parked.expect(record.request)
        try:
            self._parked.park(record.request, self._make(record))
        except Exception as error:
            self._parked.drop(record.request)
            log.exception("rank %d could not prepare the multimodal inputs of request %s", self._rank, record.request)
            why = str(error) if isinstance(error, CoatcheckError) else type(error).__name__
            reason = f"Multimodal inputs could not be prepared on rank {self._rank}: {why}"
        self._report(Ready(record.request, self._rank, reason))

    def claim(self, request: str) -> I:
        """Hands the inputs over. Raises RanksDisagree if there are none, which the rules exclude."""
        return self._parked.admit(request)

    def __len__(self) -> int:
        """Inputs that nobody has claimed."""
        return len(self._parked)
