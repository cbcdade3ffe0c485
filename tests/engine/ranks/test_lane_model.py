"""The lanes of a group under any interleaving, without threads or processes.

Each rank has a LaneQueue; plans put the same jobs into all of them, each rank when it gets there. A collective job
waits until every rank's lane has come to the same one. Hypothesis chooses arrivals, aborts, how far each rank has got
with its plans, and whose lane moves.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coatcheck.engine.ranks.lane import Job, LaneQueue


class Lanes(RuleBasedStateMachine):
    """No deadlock, no mix-up, no collective left out."""

    @initialize(ranks=st.integers(1, 4))
    def begin(self, ranks: int) -> None:
        self.ranks = ranks
        self.requests = 0
        self.collective: dict[str, bool] = {}
        self.plans: list[deque[tuple[str, str]]] = [deque() for _ in range(ranks)]  # (what, request)
        self.lanes = [LaneQueue() for _ in range(ranks)]
        self.ended: list[set[str]] = [set() for _ in range(ranks)]  # as each rank knows
        self.current: list[Job | None] = [None] * ranks
        self.executed: list[list[str]] = [[] for _ in range(ranks)]

    @rule(collective=st.booleans())
    def arrive(self, collective: bool) -> None:
        request = f"r{self.requests}"
        self.requests += 1
        self.collective[request] = collective
        for plan in self.plans:
            plan.append(("arrive", request))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.requests:
            request = f"r{data.draw(st.integers(0, self.requests - 1))}"
            for plan in self.plans:
                plan.append(("end", request))

    @rule(data=st.data())
    def rank_executes_a_plan(self, data: st.DataObject) -> None:
        self._plan(data.draw(st.integers(0, self.ranks - 1)))

    def _plan(self, rank: int) -> None:
        if not self.plans[rank]:
            return
        what, request = self.plans[rank].popleft()
        if what == "end":
            self.ended[rank].add(request)
        else:
            self.lanes[rank].put(
                Job(
                    request,
                    self.collective[request],
                    wanted=lambda: request not in self.ended[rank],
                    run=lambda: self.executed[rank].append(request),
                )
            )

    @rule(data=st.data())
    def lane_moves(self, data: st.DataObject) -> None:
        self._move(data.draw(st.integers(0, self.ranks - 1)))

    def _move(self, rank: int) -> bool:
        if self.current[rank] is None:
            self.current[rank] = self.lanes[rank].take()
        job = self.current[rank]
        if job is None:
            return False
        if not job.collective:
            job.run()
            self.current[rank] = None
            return True
        if not all(other is not None and other.collective for other in self.current):
            return False  # waits inside the collective
        assert {other.request for other in self.current if other} == {job.request}, "two requests in one collective"
        for other in self.current:
            assert other is not None
            other.run()
        self.current = [None] * self.ranks
        return True

    def _collectives(self, rank: int) -> list[str]:
        return [request for request in self.executed[rank] if self.collective[request]]

    @invariant()
    def collectives_are_the_same_everywhere(self) -> None:
        if self.requests:
            assert all(self._collectives(rank) == self._collectives(0) for rank in range(self.ranks))

    def teardown(self) -> None:
        if not self.requests:
            return
        for rank in range(self.ranks):
            while self.plans[rank]:
                self._plan(rank)
        while sum(self._move(rank) for rank in range(self.ranks)):
            pass
        assert self.current == [None] * self.ranks, "a deadlock: a lane waits in a collective that never comes"
        assert all(len(lane) == 0 for lane in self.lanes)
        expected = [request for request, collective in self.collective.items() if collective]
        for rank in range(self.ranks):
            assert self._collectives(rank) == expected, "a collective was left out"


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
