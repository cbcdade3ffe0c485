"""The step loop, the same on every rank.

Each step a rank gets one plan (the entry rank makes and broadcasts it, the others receive it) and executes it in the
order in which the plan is written: arrivals are materialized (here, or in the lane) and parked, ended requests
dropped, embeddings evicted, admitted requests handed to the runner, the batch computed. Every choice on which ranks
must agree is in the plan; none is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coatcheck.arena import ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.delivery.leases import give_back
from coatcheck.delivery.preparer import Preparer
from coatcheck.delivery.records import Ready, Returned
from coatcheck.engine.model.runner import Outcome, Runner
from coatcheck.engine.ranks.available import Available
from coatcheck.engine.ranks.lane import Job, Lane
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.records import Admit, Arrived, Plan, Report, Sampling
from coatcheck.engine.strategies.base import Exchange, Materializer, Strategy
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.engine.strategies.timing import Timing
from coatcheck.errors import MaterializeError, UnknownStrategy
from coatcheck.intake.records import tensors
from coatcheck.stopwatch import Spent, Stopwatch
from coatcheck.wire import Buffer

LANE_EXIT_S = 5.0  # for what the lane has under way when a plan says stop


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


@dataclass(frozen=True)
class RankChannel:
    """What one thread of a rank speaks with: its own process group and its own way to report."""

    exchange: Exchange
    report: Callable[[Report], None]  # to the entry rank
    give_back: Callable[[Returned], None]  # to the front end


class _Prepared(NamedTuple):
    inputs: MultimodalInputs
    sampling: Sampling
    strategy: str


class Rank:
    """One rank's step loop, and its lane."""

    def __init__(
        self,
        rank: int,
        role: Role,
        inline: RankChannel,
        background: RankChannel,
        available: Available,
        reader: ArenaReader | None,
        materialize: Materializer,
        runner: Runner,
        recorder: Recorder,
    ) -> None:
        self._rank = rank
        self._role = role
        self._inline = inline
        self._background = background
        self._materialize = materialize
        self._runner = runner
        self._recorder = recorder
        self._lane = Lane(rank)
        recorder.gauge("lane_depth", "Requests in the lane", lambda: self._lane.depth)
        self._available = available
        self._reader = reader
        self._held: dict[str, tuple[list[Handle], Timing]] = {}  # what is still to be given back, by request
        self._preparer: Preparer[_Prepared] = Preparer(rank)

    def run(self) -> bool:
        """Executes plans until one says stop. False if the lane did not end in time: then nothing can be closed.

        An exception from here means that the group is broken: the process must end.
        """
        while True:
            plan, frames = self._role.next_plan()
            watch = Stopwatch()
            self._execute(plan, frames)
            self._recorder.step(watch.stop())
            if plan.stop:
                break
        return self._lane.close(LANE_EXIT_S)

    def _execute(self, plan: Plan, frames: Sequence[Buffer]) -> None:
        first = 0
        for arrived in plan.arrivals:
            last = first + len(tensors(arrived.items))
            self._arrive(arrived, frames[first:last])
            first = last
        for request in plan.ended:
            self._preparer.drop(request)
            self._runner.release(request)
            self._drop(request)
            self._recorder.ended(request)
        self._runner.evict(plan.evicted)
        for admit in plan.admits:
            self._admit(admit)
        if plan.work:
            outcome = self._runner.execute(plan.work)
            self._role.executed(outcome)
            for request in outcome.consumed:
                handles, _ = self._held.pop(request, ([], Timing.INLINE))
                self._give_back_here(request, handles)

    def _arrive(self, arrived: Arrived, frames: Sequence[Buffer]) -> None:
        """Materializes here, or has the lane do it."""
        self._preparer.expect(arrived.request)
        handles = [item.pixels for item in arrived.items if isinstance(item.pixels, Handle)]
        if handles:
            self._held[arrived.request] = handles, Timing.INLINE
        try:
            strategy = self._available.named(arrived.strategy)
        except (UnknownStrategy, MaterializeError) as error:  # on every rank alike
            self._inline.report(Ready(arrived.request, self._rank, str(error)))
            return
        if handles:
            self._held[arrived.request] = handles, strategy.timing
        if strategy.timing is Timing.INLINE:
            self._deliver(arrived, frames, strategy, self._inline)
            return
        collective = strategy.carrier.collective(arrived)
        if collective and not self._background.exchange.makes:
            frames = ()  # never read here; a queue of them would be held for nothing
        self._lane.submit(
            Job(
                request=arrived.request,
                collective=collective,
                wanted=lambda: self._preparer.wanted(arrived.request),
                run=lambda: self._deliver(arrived, frames, strategy, self._background),
            )
        )

    def _deliver(self, arrived: Arrived, frames: Sequence[Buffer], strategy: Strategy, channel: RankChannel) -> None:
        """Materializes, parks and reports. Any exception is this rank's failure on this request, and nothing else's."""
        materializing: list[Spent] = []
        carried = channel.exchange.carried
        watch = Stopwatch()

        def materialize(arrived: Arrived, frames: Sequence[Buffer]) -> MultimodalInputs:
            own = Stopwatch()
            try:
                return self._materialize_wanted(arrived, frames)
            finally:
                materializing.append(own.stop())

        def prepared() -> _Prepared:
            inputs = strategy.carrier.deliver(arrived, frames, channel.exchange, materialize)
            return _Prepared(inputs, arrived.sampling, arrived.strategy)

        failure = self._preparer.prepare(arrived.request, prepared)
        self._recorder.delivered(
            arrived,
            strategy,
            watch.stop(),
            materializing[0] if materializing else None,
            channel.exchange.carried - carried,
        )
        channel.report(Ready(arrived.request, self._rank, None if failure is None else str(failure)))

    def _materialize_wanted(self, arrived: Arrived, frames: Sequence[Buffer]) -> MultimodalInputs:
        """A request that ended while it was queued costs a collective of a few bytes, no more."""
        if not self._preparer.wanted(arrived.request):
            raise MaterializeError("the request ended before its turn")
        return self._materialize(arrived, frames)

    def _drop(self, request: str) -> None:
        """The request has ended before its prefill did. The lane may be reading for it: then it gives back, later."""
        handles, timing = self._held.pop(request, ([], Timing.INLINE))
        if timing is Timing.INLINE:
            self._give_back_here(request, handles)
        else:  # behind the request's own job, which runs, has run or is skipped
            self._lane.submit(
                Job(request, False, lambda: True, lambda: self._give_back(request, handles, self._background))
            )

    def _give_back_here(self, request: str, handles: Sequence[Handle]) -> None:
        if handles:
            watch = Stopwatch()
            self._give_back(request, handles, self._inline)
            self._recorder.returned(request, watch.stop())

    def _give_back(self, request: str, handles: Sequence[Handle], channel: RankChannel) -> None:
        give_back(request, self._rank, handles, self._reader, channel.give_back)

    def _admit(self, admit: Admit) -> None:
        watch = Stopwatch()
        ready, waited = self._preparer.claim(admit.request)
        self._runner.admit(admit, ready.inputs, ready.sampling)
        self._recorder.admitted(admit.request, ready.strategy, waited, watch.stop())
