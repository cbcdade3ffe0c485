"""Readiness under any order of reports, failures and ends, against a model that remembers everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coatcheck.delivery.readiness import Readiness

TIMEOUT_S = 10.0


@dataclass
class Told:
    """What has been said of a request."""

    arrived: float
    ready: set[int] = field(default_factory=set)
    failed: list[int | None] = field(default_factory=list)  # ranks, in order


class ReadinessMachine(RuleBasedStateMachine):
    """A decider that is told things."""

    @initialize(ranks=st.integers(1, 4))
    def begin(self, ranks: int) -> None:
        self.readiness = Readiness(ranks, TIMEOUT_S)
        self.ranks = ranks
        self.now = 0.0
        self.open: dict[str, Told] = {}
        self.count = 0

    @rule()
    def arrive(self) -> None:
        name = str(self.count)
        self.count += 1
        self.readiness.arrive(name, self.now)
        self.open[name] = Told(self.now)

    @rule(which=st.integers(0, 30), rank=st.integers(0, 3), fails=st.booleans())
    def report(self, which: int, rank: int, fails: bool) -> None:
        """Of any request, also one that was never there or has ended."""
        name, rank = str(which), rank % self.ranks
        self.readiness.report(name, rank, "broken" if fails else None)
        if name in self.open:
            told = self.open[name]
            told.failed.append(rank) if fails else told.ready.add(rank)

    @rule(which=st.integers(0, 30))
    def fail(self, which: int) -> None:
        self.readiness.fail(str(which), "no rank's")
        if str(which) in self.open:
            self.open[str(which)].failed.append(None)

    @rule(which=st.integers(0, 30))
    def forget(self, which: int) -> None:
        assert self.readiness.forget(str(which)) == (self.open.pop(str(which), None) is not None)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def failures(self) -> None:
        failed = {rejection.request: rejection for rejection in self.readiness.failures(self.now)}
        for name, told in list(self.open.items()):
            late = len(told.ready) < self.ranks and self.now >= told.arrived + TIMEOUT_S
            assert (name in failed) == (bool(told.failed) or late)
            if name not in failed:
                continue
            del self.open[name]
            account = next((rank for rank in told.failed if rank is not None), None)
            if told.failed:
                assert failed[name].rank == account, "a rank's own account says more than a symptom"
            else:
                assert failed[name].rank == min(set(range(self.ranks)) - told.ready)
            del failed[name]
        assert not failed, "of requests that are not open"

    @invariant()
    def ready_are_those_of_which_every_rank_said_so_in_order(self) -> None:
        if self.count:
            everywhere = [n for n, t in self.open.items() if len(t.ready) == self.ranks and not t.failed]
            assert list(self.readiness.ready()) == everywhere
            assert list(self.readiness) == list(self.open)
            waiting = [t.arrived + TIMEOUT_S for t in self.open.values() if len(t.ready) < self.ranks]
            assert self.readiness.next_deadline() == min(waiting, default=None)
            assert self.readiness.has_failures() == any(told.failed for told in self.open.values())


TestReadiness = ReadinessMachine.TestCase
TestReadiness.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
