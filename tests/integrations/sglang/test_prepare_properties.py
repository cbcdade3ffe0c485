"""Ranks never diverge and no claim fails, whatever is delayed, lost, given up or fails, in whatever order."""

from __future__ import annotations

import random
import weakref
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Ready
from coatcheck.errors import MaterializeError, RanksDisagree
from coatcheck.integrations.sglang.prepare import Announcements, InputsRefused, Outcome, TicketPreparer
from coatcheck.integrations.sglang.records import Claim, Failed, Ticket, Withdrawn

TIMEOUT_S = 10.0
HANDLES = (Handle(4096, 1, (1,), "uint8"),)
READY = Outcome("ready")


def ticket(name: str) -> Ticket:
    return Ticket(name, b"", HANDLES)


class Inputs:
    """Of a request, on a rank."""

    def __init__(self, request: str) -> None:
        self.request = request


@dataclass
class Rank:
    """One rank: what it has been told and has not looked at, and what it did."""

    preparer: TicketPreparer[Inputs]
    told: deque[Ticket | Withdrawn] = field(default_factory=deque)
    fails: Exception | None = None
    mute: bool = False
    begun: Counter[str] = field(default_factory=Counter)
    holds: Counter[str] = field(default_factory=Counter)  # inputs that somebody refers to
    through: list[str] = field(default_factory=list)  # what its scheduler got


class PrepareMachine(RuleBasedStateMachine):
    """A front end that announces and sends; ranks that prepare, each at its pace; an engine that broadcasts."""

    @initialize(ranks=st.integers(1, 4))
    def start(self, ranks: int) -> None:
        self.now = 0.0
        self.ranks = [Rank(self._preparer(index)) for index in range(ranks)]
        self.announcements = Announcements(ranks, TIMEOUT_S, self._tell)
        self.outcomes: dict[str, Future[Outcome]] = {}  # announced, neither sent nor given up
        self.announced: dict[str, float] = {}
        self.reports: list[Ready | Failed] = []  # on their way
        self.reported: dict[str, set[int]] = {}  # ranks whose word that it is ready has arrived
        self.errors: dict[str, set[str]] = {}  # ends that a rank has reported, of what is not ready
        self.abandoned: set[str] = set()  # open when it was given up what was open
        self.broadcast: list[Claim] = []
        self.number = 0

    def _preparer(self, index: int) -> TicketPreparer[Inputs]:
        def make(ticket: Ticket) -> Inputs:
            rank = self.ranks[index]
            rank.begun[ticket.request] += 1
            if rank.fails is not None:
                raise rank.fails
            inputs = Inputs(ticket.request)
            rank.holds[ticket.request] += 1
            weakref.finalize(inputs, rank.holds.subtract, [ticket.request])
            return inputs

        def report(said: Ready | Failed) -> None:
            if not self.ranks[index].mute:
                self.reports.append(said)

        return TicketPreparer(index, make, report)

    def _tell(self, record: Ticket | Withdrawn) -> None:
        for rank in self.ranks:
            rank.told.append(record)

    @rule()
    def announce(self) -> None:
        name = str(self.number)
        self.number += 1
        self.announced[name] = self.now
        self.outcomes[name] = self.announcements.announce(ticket(name), self.now)

    @precondition(lambda self: any(rank.told for rank in self.ranks))
    @rule(index=st.integers(0, 3), outcome=st.sampled_from(["ok", "ok", "ok", "refuses", "fails", "mute"]))
    def work(self, index: int, outcome: str) -> None:
        """A rank's thread does what it was told next; a report of one that is mute never arrives."""
        rank = self.ranks[index % len(self.ranks)]
        rank.fails = {"refuses": InputsRefused("no"), "fails": MaterializeError("broken")}.get(outcome)
        rank.mute = outcome == "mute"
        if rank.told:
            rank.preparer.take(rank.told.popleft())

    @precondition(lambda self: self.reports)
    @rule(seed=st.integers(0, 1000), twice=st.booleans())
    def deliver(self, seed: int, twice: bool) -> None:
        """A report arrives, in any order, sometimes twice."""
        report = self.reports.pop(random.Random(seed).randrange(len(self.reports)))
        if isinstance(report, Failed):
            self.errors.setdefault(report.request, set()).add("failed")
        elif report.error is not None:
            self.errors.setdefault(report.request, set()).add("refused")
        else:
            self.reported.setdefault(report.request, set()).add(report.rank)
        for _ in range(1 + twice):
            self.announcements.report(report, self.now)

    @rule(seconds=st.floats(0.1, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.announcements.settle(self.now)
        for name, outcome in self.outcomes.items():
            assert outcome.done() or self.now < self.announced[name] + TIMEOUT_S, "it waits too long"

    @rule()
    def catch_up(self) -> None:
        """Every rank does all that it was told, and every report arrives: or else few requests would get ready."""
        for rank in self.ranks:
            rank.fails, rank.mute = None, False
            while rank.told:
                rank.preparer.take(rank.told.popleft())
        while self.reports:
            self.deliver(0, False)

    @rule(how_bad=st.integers(0, 9))
    def give_all_up(self, how_bad: int) -> None:
        """A rank is known to be silent, or has ended. Seldom."""
        if how_bad < 9:
            return
        self.abandoned |= {name for name, outcome in self.outcomes.items() if not outcome.done()}
        self.announcements.give_up("the ranks have ended")
        assert all(outcome.done() for outcome in self.outcomes.values())

    @precondition(lambda self: self.outcomes)
    @rule(which=st.integers(0, 40), twice=st.booleans())
    def leave(self, which: int, twice: bool) -> None:
        """A client leaves, before or after its request is ready."""
        name = self._one(which)
        self.outcomes.pop(name).cancel()
        for _ in range(1 + twice):
            self.announcements.withdraw(name)

    @precondition(lambda self: self.outcomes)
    @rule(which=st.integers(0, 40))
    def send(self, which: int) -> None:
        """What is decided goes out."""
        self._send(self._one(which))

    def _one(self, which: int) -> str:
        return sorted(self.outcomes)[which % len(self.outcomes)]

    def _send(self, name: str) -> None:
        if not self.outcomes[name].done():
            return
        outcome = self.outcomes.pop(name).result(0)
        if outcome.end == "ready":
            assert len(self.reported[name]) == len(self.ranks), "sent before every rank was ready"
            self.broadcast.append(Claim(name))
        elif outcome.end == "refused":
            assert "refused" in self.errors[name]
            self.broadcast.append(Claim("", outcome.why))
        elif outcome.end == "failed":  # these go another way, as if nothing had been announced
            assert "failed" in self.errors[name]
        elif outcome.end == "late":
            assert self.now >= self.announced[name] + TIMEOUT_S
        else:
            assert name in self.abandoned

    @rule(index=st.integers(0, 3))
    def receive(self, index: int) -> None:
        """A rank gets what comes next in the broadcast: sooner or later than the others, never something else."""
        rank = self.ranks[index % len(self.ranks)]
        if len(rank.through) < len(self.broadcast):
            claim = self.broadcast[len(rank.through)]
            if claim.refusal is not None:
                rank.through.append(f"refused: {claim.refusal}")
            else:
                rank.through.append(f"{rank.preparer.claim(claim.request)[0].request} admitted")

    @invariant()
    def all_ranks_get_the_same(self) -> None:
        ranks: list[Rank] = getattr(self, "ranks", [])
        longest = max((rank.through for rank in ranks), key=len, default=[])
        for rank in ranks:
            assert rank.through == longest[: len(rank.through)]

    @invariant()
    def nothing_is_prepared_twice_and_what_is_held_is_parked(self) -> None:
        for rank in getattr(self, "ranks", []):
            assert max(rank.begun.values(), default=1) == 1
            assert sum(rank.holds.values()) == len(rank.preparer)

    def teardown(self) -> None:
        """Once all have had their time, nothing is left."""
        if not hasattr(self, "ranks"):
            return
        self.now += TIMEOUT_S
        self.announcements.settle(self.now)
        for name in list(self.outcomes):
            self._send(name)
        assert not self.outcomes
        for index, rank in enumerate(self.ranks):
            while rank.told:
                self.work(index, "ok")
            for _ in self.broadcast:
                self.receive(index)
            assert rank.through == self.ranks[0].through
            assert rank.begun == Counter(self.announced.keys())  # each once
            assert not +rank.holds
            assert not len(rank.preparer)


TestPrepare = PrepareMachine.TestCase
TestPrepare.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def announced(ranks: int, *names: str) -> tuple[Announcements, list[Future[Outcome]], list[Ticket | Withdrawn]]:
    told: list[Ticket | Withdrawn] = []
    announcements = Announcements(ranks, TIMEOUT_S, told.append)
    outcomes = [announcements.announce(ticket(name), 0) for name in names]
    assert told == [ticket(name) for name in names]
    told.clear()
    return announcements, outcomes, told


def test_it_is_ready_once_every_rank_has_said_so_and_waits_for_no_other() -> None:
    announcements, (first, second), told = announced(2, "a", "b")
    announcements.report(Ready("b", 0, None), 1)
    announcements.report(Ready("b", 0, None), 1)
    assert not second.done()
    announcements.report(Ready("b", 1, None), 1)
    assert second.result(0) == READY
    assert not first.done()
    assert told == []


@pytest.mark.parametrize(
    ("report", "end"), [(Ready("a", 1, "broken"), "refused"), (Failed("a", 1, "broken"), "failed")]
)
def test_an_error_on_one_rank_ends_it_with_the_rank_s_reason_and_withdraws_it_from_all(
    report: Ready | Failed, end: str
) -> None:
    announcements, (outcome,), told = announced(2, "a")
    announcements.report(report, 1)
    assert (outcome.result(0).end, outcome.result(0).why) == (end, "broken")
    assert told == [Withdrawn("a")]
    announcements.report(Ready("a", 0, None), 2)  # late: of nobody
    announcements.report(Failed("a", 0, "late"), 2)
    assert told == [Withdrawn("a")]


def test_what_a_rank_does_not_report_is_late_in_time() -> None:
    announcements, (outcome,), told = announced(2, "a")
    announcements.report(Ready("a", 0, None), 1)
    announcements.settle(TIMEOUT_S - 0.1)
    assert not outcome.done()
    announcements.settle(TIMEOUT_S)
    assert outcome.result(0) == Outcome("late", "no report from rank 1 within 10 s")
    assert told == [Withdrawn("a")]


def test_what_is_open_may_be_given_up_at_once_and_what_is_ready_stays() -> None:
    announcements, (ready, one, other), told = announced(1, "ready", "one", "other")
    announcements.report(Ready("ready", 0, None), 1)
    announcements.give_up("silence")
    announcements.give_up("again")
    assert [outcome.result(0) for outcome in (ready, one, other)] == [READY, *[Outcome("given up", "silence")] * 2]
    assert told == [Withdrawn("one"), Withdrawn("other")]
    after = announcements.announce(ticket("after"), 1)
    announcements.report(Failed("one", 0, "late"), 2)
    announcements.report(Ready("after", 0, None), 2)
    assert after.result(0) == READY


def test_who_gives_up_has_withdrawn_it_even_if_it_is_ready() -> None:
    announcements, (waiting, ready), told = announced(1, "waiting", "ready")
    announcements.report(Ready("ready", 0, None), 1)
    assert ready.done()
    waiting.cancel()
    for name in ("waiting", "ready"):
        announcements.withdraw(name)
    assert told == [Withdrawn("waiting"), Withdrawn("ready")]
    announcements.report(Ready("waiting", 0, None), 1)
    announcements.settle(2 * TIMEOUT_S)
    assert told == [Withdrawn("waiting"), Withdrawn("ready")]


def test_a_cancelled_wait_that_is_not_withdrawn_yet_harms_nobody() -> None:
    announcements, (left, stayed), _ = announced(1, "left", "stayed")
    left.cancel()
    for name in ("left", "stayed"):
        announcements.report(Ready(name, 0, None), 1)
    assert stayed.result(0) == READY


@pytest.mark.parametrize("error", [ValueError("a path, say"), MaterializeError("not ours"), MemoryError()])
def test_what_fails_on_a_rank_has_failed_and_there_is_nothing_to_claim(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reports = prepared(error)
    why = str(error) or "MemoryError"
    assert reports == [Failed("a", 3, f"Multimodal inputs could not be prepared on rank 3: {why}")]
    assert "could not prepare" in caplog.text


def test_what_sglang_cannot_take_is_refused_and_there_is_nothing_to_claim() -> None:
    reports = prepared(InputsRefused("IndexError: grid"))
    assert reports == [Ready("a", 3, "Multimodal inputs could not be prepared on rank 3: IndexError: grid")]


def prepared(error: Exception) -> list[Ready | Failed]:
    reports: list[Ready | Failed] = []

    def fail(ticket: Ticket) -> str:
        raise error

    preparer = TicketPreparer[str](3, fail, reports.append)
    preparer.take(ticket("a"))
    with pytest.raises(RanksDisagree):
        preparer.claim("a")
    assert len(preparer) == 0
    return reports
