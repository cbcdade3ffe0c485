"""The admission logic under any interleaving, without processes.

A model of the group: the entry rank's admission, and per rank a queue of plans on the way and prepared inputs.
Hypothesis chooses the order of arrivals, of plans executed, of inputs materialized, of reports delivered (late,
reordered, failing), of aborts and finishes.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coatcheck.delivery.preparer import Preparer
from coatcheck.delivery.readiness import Readiness
from coatcheck.engine.ranks.admission import Admission

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Step:
    """A plan, as far as admission is concerned."""

    arrivals: tuple[str, ...]
    ended: tuple[str, ...]
    admitted: tuple[str, ...]


class Group(RuleBasedStateMachine):
    """Invariants are checked after every step of the interleaving, the last word at its end."""

    @initialize(ranks=st.integers(1, 4), room=st.integers(1, 3))
    def begin(self, ranks: int, room: int) -> None:
        self.ranks = ranks
        self.room = room
        self.now = 0.0
        self.admission = Admission(Readiness(ranks, TIMEOUT_S))
        self.names = 0
        self.incoming: list[str] = []
        self.ending: list[str] = []
        self.running: list[str] = []
        self.plans: list[deque[Step]] = [deque() for _ in range(ranks)]
        self.preparers: list[Preparer[str]] = [Preparer(rank) for rank in range(ranks)]
        self.materializing: list[list[str]] = [[] for _ in range(ranks)]
        self.seen: list[list[tuple[str, str]]] = [[] for _ in range(ranks)]  # (what, request) as each rank executed it
        self.reports: list[tuple[str, int, str | None]] = []
        self.failing: set[tuple[str, int]] = set()
        self.succeeded: set[tuple[str, int]] = set()
        self.ends: Counter[str] = Counter()

    # -------------------------------------------------------------- the world

    @rule()
    def arrive(self) -> None:
        self.incoming.append(f"r{self.names}")
        self.names += 1

    @rule(data=st.data())
    def plan_a_failure(self, data: st.DataObject) -> None:
        if self.incoming:
            request = data.draw(st.sampled_from(self.incoming))
            self.failing.add((request, data.draw(st.integers(0, self.ranks - 1))))

    @rule(seconds=st.sampled_from([0.1, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if not self.names:
            return
        request = f"r{data.draw(st.integers(0, self.names - 1))}"  # any, also one that ended long ago
        if request in self.incoming:
            self.incoming.remove(request)
            self.ends[request] += 1
        elif self.admission.abort(request):
            self._end(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        assert self.admission.finish(request)
        self._end(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail_while_running(self, data: st.DataObject) -> None:
        rank = data.draw(st.integers(0, self.ranks - 1))
        self.reports.append((data.draw(st.sampled_from(self.running)), rank, "failed later"))

    # -------------------------------------------------------------- the entry rank

    def _end(self, request: str) -> None:
        self.ends[request] += 1
        self.ending.append(request)
        if request in self.running:
            self.running.remove(request)

    def _reserve(self, request: str) -> bool:
        if len(self.running) >= self.room:
            return False
        assert request not in self.running
        self.running.append(request)
        return True

    @rule()
    def entry_step(self) -> None:
        decision = self.admission.decide(self.now, self._reserve)
        for rejection in decision.rejected:
            self._end(rejection.request)
        for request in decision.admitted:
            for rank in range(self.ranks):
                assert (request, rank) in self.succeeded, "admitted before every rank was ready"
        for request in self.incoming:
            self.admission.arrive(request, self.now)
        step = Step(tuple(self.incoming), tuple(self.ending), decision.admitted)
        self.incoming, self.ending = [], []
        for queue in self.plans:
            queue.append(step)

    # -------------------------------------------------------------- the ranks and the side channel

    @rule(data=st.data())
    def rank_executes(self, data: st.DataObject) -> None:
        rank = data.draw(st.integers(0, self.ranks - 1))
        if self.plans[rank]:
            self._execute(rank, self.plans[rank].popleft())

    def _execute(self, rank: int, step: Step) -> None:
        for request in step.arrivals:
            self.preparers[rank].expect(request)
            self.materializing[rank].append(request)
        for request in step.ended:
            self.preparers[rank].drop(request)
            self.seen[rank].append(("ended", request))
        for request in step.admitted:
            assert self.preparers[rank].claim(request)[0] == request  # raises if this rank has no inputs
            self.seen[rank].append(("admitted", request))

    @rule(data=st.data())
    def rank_has_materialized(self, data: st.DataObject) -> None:
        """At once (inline) or plans later (background), perhaps after the request has ended."""
        rank = data.draw(st.integers(0, self.ranks - 1))
        if self.materializing[rank]:
            index = data.draw(st.integers(0, len(self.materializing[rank]) - 1))
            self._materialize(rank, self.materializing[rank].pop(index))

    def _materialize(self, rank: int, request: str) -> None:
        if (request, rank) in self.failing:
            self.reports.append((request, rank, "broken"))
            return
        ended = ("ended", request) in self.seen[rank]
        assert self.preparers[rank].prepare(request, lambda: request) is None
        assert self.preparers[rank].wanted(request) != ended
        self.reports.append((request, rank, None))
        self.succeeded.add((request, rank))

    @rule(data=st.data())
    def report_comes_in(self, data: st.DataObject) -> None:
        if self.reports:
            index = data.draw(st.integers(0, len(self.reports) - 1))
            self.admission.report(*self.reports.pop(index))

    # -------------------------------------------------------------- invariants

    @invariant()
    def ranks_never_diverge(self) -> None:
        if self.names:
            longest = max(self.seen, key=len)
            for seen in self.seen:
                assert seen == longest[: len(seen)]

    @invariant()
    def nothing_ends_twice(self) -> None:
        if self.names:
            assert all(count == 1 for count in self.ends.values())

    def teardown(self) -> None:
        """Whatever happened, everything ends: reports that never come are waited for a bounded time only."""
        for _ in range(self.names + 3):
            self.now += TIMEOUT_S
            self.entry_step()
            for request in list(self.running):
                assert self.admission.finish(request)
                self._end(request)
        self.entry_step()
        for rank, queue in enumerate(self.plans):
            while queue:
                self._execute(rank, queue.popleft())
            for request in self.materializing[rank]:
                self._materialize(rank, request)
        self.ranks_never_diverge()
        assert self.ends == Counter({f"r{index}": 1 for index in range(self.names)})
        assert self.admission.open() == ()
        for preparer in self.preparers:
            assert len(preparer) == 0
        for seen in self.seen:
            assert max(Counter(seen).values(), default=1) == 1, "admitted or ended twice"


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
