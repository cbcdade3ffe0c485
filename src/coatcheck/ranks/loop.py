"""The step loop, the same on every rank.

Each step a rank gets one plan (the entry rank makes and broadcasts it, the others receive it) and executes it in the
order in which the plan is written: arrivals are materialized and parked, ended requests dropped, admitted ones handed
to the runner, the batch computed. Every choice on which ranks must agree is in the plan; none is made here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from coatcheck.admission import Parked
from coatcheck.engine.runner import Outcome, Runner
from coatcheck.errors import RankLost
from coatcheck.messages import Admit, Arrived, Plan, Ready, Report, Sampling
from coatcheck.strategies.base import Exchange, Materializer
from coatcheck.strategies.inputs import MultimodalInputs
from coatcheck.strategies.table import strategy_named
from coatcheck.wire import Buffer

log = logging.getLogger(__name__)


class Role(Protocol):
    """Entry rank or follower, chosen once at start."""

    def next_plan(self) -> tuple[Plan, Sequence[Buffer]]:
        """The next plan and its arrivals' frames; sleeps while there is nothing to do."""
        ...

    def report(self, report: Report) -> None:
        """Tells the entry rank; never blocks."""
        ...

    def executed(self, outcome: Outcome) -> None:
        """The plan's work is done."""
        ...


class Rank:
    """One rank's step loop."""

    def __init__(self, rank: int, role: Role, exchange: Exchange, materialize: Materializer, runner: Runner) -> None:
        self._rank = rank
        self._role = role
        self._exchange = exchange
        self._materialize = materialize
        self._runner = runner
        self._parked: Parked[tuple[MultimodalInputs, Sampling]] = Parked(rank)

    def run(self) -> None:
        """Executes plans until one says stop.

        An exception from here means that the group is broken: the process must end.
        """
        while True:
            plan, frames = self._role.next_plan()
            self._execute(plan, frames)
            if plan.stop:
                return

    def _execute(self, plan: Plan, frames: Sequence[Buffer]) -> None:
        first = 0
        for arrived in plan.arrivals:
            last = first + len(arrived.items)
            self._arrive(arrived, frames[first:last])
            first = last
        for request in plan.ended:
            self._parked.drop(request)
            self._runner.release(request)
        for admit in plan.admits:
            self._admit(admit)
        if plan.work:
            self._role.executed(self._runner.execute(plan.work))

    def _arrive(self, arrived: Arrived, frames: Sequence[Buffer]) -> None:
        """Materializes and reports. Any exception is this rank's failure on this request, and nothing else's."""
        error = None
        try:
            strategy = strategy_named(arrived.strategy)
            inputs = strategy.deliver(arrived, frames, self._exchange, self._materialize)
            self._parked.park(arrived.request, (inputs, arrived.sampling))
        except RankLost:
            raise  # no failure of this request: the group is broken
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            log.warning("rank %d: request %s cannot be materialized: %s", self._rank, arrived.request, error)
            self._parked.park(arrived.request, None)
        self._role.report(Ready(arrived.request, self._rank, error))

    def _admit(self, admit: Admit) -> None:
        inputs, sampling = self._parked.admit(admit.request)
        self._runner.admit(admit, inputs, sampling)
