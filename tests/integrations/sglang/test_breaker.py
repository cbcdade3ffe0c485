"""The circuit breaker's rules, and who owes a report."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coatcheck.integrations.sglang.breaker import FAILURES, LEAST_S, MOST_S, Breaker, Silence

TIMEOUT_S = 5.0


class BreakerMachine(RuleBasedStateMachine):
    """Requests that succeed and fail while it is closed, ranks that answer or not, and a clock."""

    @initialize(ranks=st.integers(1, 4))
    def start(self, ranks: int) -> None:
        self.ranks = ranks
        self.breaker = Breaker(ranks)
        self.now = 1000.0
        self.in_a_row = 0  # failures; one is missing to FAILURES after it has been open
        self.pause = LEAST_S  # that the next opening takes
        self.until = 0.0
        self.opened = 0  # times
        self.asked: list[tuple[int, int, float]] = []  # probes: number, of which opening, when
        self.answered: set[int] = set()  # ranks, of a probe of this opening

    def _opens(self) -> None:
        self.opened += 1
        self.in_a_row = FAILURES - 1
        self.until = self.now + self.pause
        self.pause = min(2 * self.pause, MOST_S)
        self.answered = set()

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0, 100.0]))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.breaker.open)
    @rule()
    def carried(self) -> None:
        self.breaker.carried()
        self.in_a_row, self.pause = 0, LEAST_S

    @rule()
    def failed(self) -> None:
        """Also of a request that went out before it opened."""
        was_open = self.breaker.open
        opened = self.breaker.failed(self.now)
        if was_open:
            assert not opened
            return
        self.in_a_row += 1
        assert opened == (self.in_a_row >= FAILURES)
        if opened:
            self._opens()

    @rule()
    def late(self) -> None:
        was_open = self.breaker.open
        assert self.breaker.late(self.now) == (not was_open)
        if not was_open:
            self._opens()

    @rule()
    def probe(self) -> None:
        number = self.breaker.probe(self.now)
        mine = [when for _, opening, when in self.asked if opening == self.opened]
        due = self.breaker.open and len(self.answered) < self.ranks
        due = due and (not mine or self.now >= mine[-1] + LEAST_S)
        assert (number is not None) == due
        if number is not None:
            assert number not in {n for n, opening, _ in self.asked if opening != self.opened}
            self.asked.append((number, self.opened, self.now))

    @precondition(lambda self: self.asked)
    @rule(rank=st.integers(0, 3), which=st.integers(0, 30), newest=st.booleans())
    def answers(self, rank: int, which: int, newest: bool) -> None:
        """To any probe that was ever sent, a late answer too."""
        number, opening, _ = self.asked[-1 if newest else which % len(self.asked)]
        self.breaker.answered(rank % self.ranks, number)
        if opening == self.opened:
            self.answered.add(rank % self.ranks)

    @rule()
    def close(self) -> None:
        well = self.breaker.open and len(self.answered) == self.ranks and self.now >= self.until
        assert self.breaker.close_if_well(self.now) == well
        assert not (well and self.breaker.open)

    @precondition(lambda self: self.breaker.open)
    @rule()
    def recovers(self) -> None:
        """All ranks answer at once."""
        self.now = max(self.now + LEAST_S, self.until)
        self.probe()
        for rank in range(self.ranks):
            self.answers(rank, 0, newest=True)
        self.close()
        assert not self.breaker.open

    @invariant()
    def it_is_open_only_if_something_opened_it(self) -> None:
        if hasattr(self, "breaker") and self.breaker.open:
            assert self.opened

    def teardown(self) -> None:
        """Whatever was: once all ranks answer, it closes, at the latest after the longest pause."""
        if not hasattr(self, "breaker") or not self.breaker.open:
            return
        self.now += MOST_S
        number = self.breaker.probe(self.now)
        for rank in range(self.ranks):
            if number is not None:
                self.breaker.answered(rank, number)
        assert self.breaker.close_if_well(self.now)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class SilenceMachine(RuleBasedStateMachine):
    """Tickets that ranks report, in any order, or not."""

    @initialize(ranks=st.integers(1, 4))
    def start(self, ranks: int) -> None:
        self.ranks = ranks
        self.silence = Silence(ranks, TIMEOUT_S)
        self.now = 0.0
        self.count = 0
        self.owed: dict[tuple[str, int], float] = {}  # ticket and rank, and since when

    @rule(seconds=st.floats(0.1, 4))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def told(self) -> None:
        name = str(self.count)
        self.count += 1
        self.silence.told(name, self.now)
        self.owed |= {(name, rank): self.now for rank in range(self.ranks)}

    @rule(which=st.integers(0, 100), rank=st.integers(0, 3), twice=st.booleans())
    def heard(self, which: int, rank: int, twice: bool) -> None:
        """Of an unknown ticket, too."""
        name = str(which % (self.count + 1))
        for _ in range(1 + twice):
            self.silence.heard(name, rank % self.ranks)
        self.owed.pop((name, rank % self.ranks), None)

    @rule()
    def forget(self) -> None:
        self.silence.forget()
        self.owed.clear()

    @invariant()
    def who_is_overdue_owes_it(self) -> None:
        if not hasattr(self, "silence"):
            return
        found = self.silence.overdue(self.now)
        late = {rank for (_, rank), since in self.owed.items() if self.now >= since + TIMEOUT_S}
        assert bool(found) == bool(late), "somebody is overdue, and nobody is told of"
        assert found <= late


TestSilence = SilenceMachine.TestCase
TestSilence.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def opened_by_silence() -> Breaker:
    breaker = Breaker(2)
    assert breaker.late(0.0)
    return breaker


def test_an_answer_from_before_it_opened_is_no_sign_of_life() -> None:
    breaker = opened_by_silence()
    first = breaker.probe(0.0)
    assert first is not None
    for rank in (0, 1):
        breaker.answered(rank, first)
    assert breaker.close_if_well(LEAST_S)
    assert breaker.late(LEAST_S)
    for rank in (0, 1):
        breaker.answered(rank, first)
    assert not breaker.close_if_well(1000)


@pytest.mark.parametrize("carries", [True, False])
def test_the_pause_doubles_until_a_request_was_carried(carries: bool) -> None:
    breaker = Breaker(1)
    now, pauses = 0.0, []
    for _ in range(9):
        assert breaker.late(now)
        number = breaker.probe(now)
        assert number is not None
        breaker.answered(0, number)
        pauses.append(next(pause for pause in range(100) if breaker.close_if_well(now + pause)))
        now += 100
        if carries:
            breaker.carried()
    assert pauses == ([1] * 9 if carries else [1, 2, 4, 8, 16, 32, 60, 60, 60])
