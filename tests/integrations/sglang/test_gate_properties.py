"""Ranks never diverge, whatever is delayed, lost, skipped, aborted or fails, in whatever order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coatcheck.integrations.sglang.gate import Abort, Book, Event, Gate, Park, Pass
from coatcheck.integrations.sglang.records import Settled, Ticket
from coatcheck.messages import Handle

TIMEOUT_S = 10.0
HANDLE = Handle(4096, 1, (1,), "uint8")


@dataclass
class Rank:
    """One rank's gate, and what its lane still has to do."""

    gate: Gate[str, str]
    begun: list[str] = field(default_factory=list)  # tickets, in the order of the lane
    todo: list[str] = field(default_factory=list)
    through: list[str] = field(default_factory=list)


class GateMachine(RuleBasedStateMachine):
    """An engine that broadcasts lists; one book, some gates."""

    @initialize(ranks=st.integers(1, 4))
    def start(self, ranks: int) -> None:
        self.now = 0.0
        self.book = Book(ranks, TIMEOUT_S)
        self.ranks = [Rank(self._gate(index)) for index in range(ranks)]
        self.queued: list[Event[str]] = []  # sent by the front end, not received by the entry rank
        self.reports: list[tuple[str, int, str | None]] = []  # on their way
        self.failed: set[str] = set()  # on some rank, reported or not
        self.ready: dict[str, set[int]] = {}  # ranks whose report has arrived
        self.aborted: set[str] = set()
        self.sent: dict[str, float | None] = {}  # tickets: when they were received
        self.number = 0

    def _gate(self, index: int) -> Gate[str, str]:
        def begin(ticket: Ticket) -> None:
            self.ranks[index].begun.append(ticket.request)
            self.ranks[index].todo.append(ticket.request)

        def admit(request: str, inputs: str) -> str:
            assert inputs == f"inputs of {request}"
            return f"{request} admitted"

        return Gate(index, begin, admit, _reject, self.book if index == 0 else None)

    @rule(ticket=st.booleans(), prefix=st.sampled_from("ab"))
    def send(self, ticket: bool, prefix: str) -> None:
        name = f"{prefix}{self.number}"
        self.number += 1
        if ticket:
            self.sent[name] = None
            self.queued.append(Park(name, name, Ticket(name, HANDLE)))
        else:
            self.queued.append(Pass(name))

    @rule(which=st.integers(0, 40), everything=st.booleans(), prefix=st.booleans())
    def abort(self, which: int, everything: bool, prefix: bool) -> None:
        names = sorted(self.sent) or ["a0"]
        name = names[which % len(names)]
        rid = name[0] if prefix else name
        self.queued.append(Abort(f"abort {rid} {everything}", rid, everything))

    @rule(count=st.integers(0, 6), skipped=st.booleans(), late=st.booleans())
    def receive(self, count: int, skipped: bool, late: bool) -> None:
        """One call of the engine's receive on every rank; a skipped one broadcasts nothing and takes nothing."""
        settled = self.book.settle(self.now)
        if skipped:
            return
        events, self.queued = self.queued[:count], self.queued[count:]
        self._note(events, settled)
        if settled is not None:
            events = [*events, settled]
        for rank in self.ranks[::-1] if late else self.ranks:
            rank.through += rank.gate.take(events, self.now)

    def _note(self, events: list[Event[str]], settled: Settled | None) -> None:
        for event in events:
            if isinstance(event, Park):
                self.sent[event.rid] = self.now
            elif isinstance(event, Abort):
                self.aborted |= {name for name in self._parked() if event.everything or name.startswith(event.rid)}
        for name in settled.admitted if settled else ():
            assert len(self.ready[name]) == len(self.ranks), "admitted before every rank was ready"

    def _parked(self) -> list[str]:
        return [name for name, when in self.sent.items() if when is not None and not self._left(name)]

    def _left(self, name: str) -> bool:
        return any(one.split()[0] == name for one in self.ranks[0].through)

    @precondition(lambda self: any(rank.todo for rank in self.ranks))
    @rule(index=st.integers(0, 3), outcome=st.sampled_from(["ok", "ok", "ok", "error", "lost"]))
    def work(self, index: int, outcome: str) -> None:
        """A rank's lane does its next job; a lost report never arrives."""
        at = index % len(self.ranks)
        rank = self.ranks[at]
        if not rank.todo:
            return
        name = rank.todo.pop(0)
        if outcome == "error":
            self.failed.add(name)
            self.reports.append((name, at, f"rank {at} failed"))
            return
        assert rank.gate.park(name, f"inputs of {name}") == (not self._left(name))
        if outcome == "ok":
            self.reports.append((name, at, None))

    @precondition(lambda self: self.reports)
    @rule(seed=st.integers(0, 1000), twice=st.booleans())
    def deliver(self, seed: int, twice: bool) -> None:
        """A report arrives, in any order, sometimes twice."""
        report = self.reports.pop(random.Random(seed).randrange(len(self.reports)))
        for _ in range(1 + twice):
            self.book.report(*report)
        if report[2] is None:
            self.ready.setdefault(report[0], set()).add(report[1])

    @rule(seconds=st.floats(0.1, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def all_ranks_let_the_same_through(self) -> None:
        for rank in getattr(self, "ranks", []):
            assert rank.through == self.ranks[0].through
            assert rank.begun == self.ranks[0].begun
            assert len(rank.gate) == len(self._parked())

    @invariant()
    def each_leaves_once_and_as_it_should(self) -> None:
        if not hasattr(self, "ranks"):
            return
        through = self.ranks[0].through
        requests = [one.split()[0] for one in through if not one.startswith("abort ")]
        assert len(requests) == len(set(requests))
        for one in through:
            name, _, outcome = one.partition(" ")
            if outcome == "admitted":
                assert name not in self.failed
            elif outcome.startswith("rejected"):
                assert name in self.aborted or name in self.failed or "no report" in outcome

    def teardown(self) -> None:
        """Once reports have had their time, nothing is left."""
        if not hasattr(self, "ranks"):
            return
        self.receive(len(self.queued), False, False)
        self.now += TIMEOUT_S
        for _ in range(2):
            self.receive(0, False, False)
        assert not self._parked()
        assert all(self._left(name) for name in self.sent)
        self.all_ranks_let_the_same_through()
        for rank in self.ranks:
            for name in rank.todo:
                assert not rank.gate.wanted(name)


def _reject(request: str, reason: str) -> str:
    return f"{request} rejected: {reason}"


TestGate = GateMachine.TestCase
TestGate.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def gates(ranks: int) -> tuple[Book, list[Gate[str, str]]]:
    book = Book(ranks, TIMEOUT_S)
    admit: Callable[[str, str], str] = lambda request, inputs: f"{request} with {inputs}"  # noqa: E731
    return book, [Gate(i, lambda ticket: None, admit, _reject, None if i else book) for i in range(ranks)]


def park(*names: str) -> list[Event[str]]:
    return [Park(name, name, Ticket(name, HANDLE)) for name in names]


def test_what_is_admitted_leaves_in_order_of_arrival_and_holds_nobody_up() -> None:
    book, (gate,) = gates(1)
    assert gate.take([*park("a", "b", "c"), Pass("text")], 0) == ["text"]
    for name in "cb":
        gate.park(name, name.upper())
        book.report(name, 0, None)
    settled = book.settle(1)
    assert settled is not None
    assert gate.take([settled], 1) == ["b with B", "c with C"]
    assert book.settle(1) is None
    assert len(gate) == 1


def test_a_decision_waits_for_a_list_that_carries_it_and_grows_meanwhile() -> None:
    book, (gate,) = gates(1)
    gate.take(park("a", "b"), 0)
    for name in "ba":
        gate.park(name, name)
        book.report(name, 0, None)
        settled = book.settle(1)
    assert settled == Settled(("b", "a"))
    assert gate.take([settled], 1) == ["a with a", "b with b"]


def test_an_abort_leaves_behind_what_it_aborts_on_every_rank() -> None:
    book, both = gates(2)
    for gate in both:
        gate.take(park("a1", "a2", "b"), 0)
    both[0].park("a1", "inputs")
    book.report("a1", 0, None)
    book.report("b", 1, "broken")
    settled = book.settle(1)
    assert settled is not None
    for gate in both:
        a1, a2, abort, b = gate.take([Abort("abort", "a", False), settled], 1)
        assert (a1[:11], a2[:11], abort, b) == ("a1 rejected", "a2 rejected", "abort", "b rejected: broken")
        assert not gate.wanted("a1")
        assert not gate.park("a1", "late")
    book.report("a1", 1, None)  # late
    assert book.settle(2 * TIMEOUT_S) is None


def test_what_some_rank_does_not_report_is_rejected_in_time() -> None:
    book, both = gates(2)
    for gate in both:
        gate.take(park("a"), 5)
        gate.park("a", "inputs")
    book.report("a", 0, None)
    assert book.settle(5 + TIMEOUT_S - 0.1) is None
    settled = book.settle(5 + TIMEOUT_S)
    assert settled is not None
    for gate in both:
        (rejected,) = gate.take([settled], 20)
        assert "no report from rank 1" in rejected
