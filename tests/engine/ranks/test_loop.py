"""When a rank gives blocks back: when its runner says so, or when the request has ended, and once."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Ready, Returned
from coatcheck.engine.model.runner import Outcome
from coatcheck.engine.ranks.available import Available
from coatcheck.engine.ranks.loop import Rank, RankChannel
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.records import Admit, Arrived, Plan, Report, Sampling, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs, MultimodalItem
from coatcheck.engine.strategies.table import STRATEGIES, strategy_named
from coatcheck.intake.records import Item
from coatcheck.tensor_view import tensor_view
from coatcheck.wire import Buffer

PREFILL = Work("a", 0, 4, (), None, True)
DECODE = Work("a", 4, 1, (), 7, True)


class Keeper:
    """A runner that needs the pixels for as long as a test says."""

    def __init__(self) -> None:
        self.kept: dict[str, MultimodalInputs] = {}
        self.outcomes: deque[Outcome] = deque()

    def admit(self, admit: Admit, inputs: MultimodalInputs, sampling: Sampling) -> None:
        self.kept[admit.request] = inputs

    def release(self, request: str) -> None:
        self.kept.pop(request, None)

    def evict(self, digests: Sequence[bytes]) -> None:
        pass

    def execute(self, work: Sequence[Work]) -> Outcome:
        outcome = self.outcomes.popleft()
        for request in outcome.consumed:
            self.kept.pop(request, None)
        return outcome


class Plans:
    """A role that has its plans beforehand. ``after`` a plan it notes what had been given back."""

    def __init__(self, returned: list[Returned], *plans: Plan) -> None:
        self.plans = deque([*plans, Plan(len(plans), stop=True)])
        self.returned = returned
        self.before: list[int] = []  # given back when each plan was asked for
        self.reports: list[Report] = []

    def next_plan(self) -> tuple[Plan, Sequence[Buffer]]:
        self.before.append(len(self.returned))
        return self.plans.popleft(), ()

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def executed(self, outcome: Outcome) -> None:
        pass


class NoExchange:
    makes = True
    carried = 0

    def share(self, request: str, make: Any) -> Any:
        raise AssertionError("no collective here")


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(4 * PAGE) as made:
        yield made


@pytest.fixture
def handle(arena: Arena) -> Handle:
    block = arena.put("a", memoryview(bytes(range(100))))
    arena.dispatch("a", [0])
    return block.handle((100,), "uint8")


def run(arena: Arena, handle: Handle, runner: Keeper, *plans: Plan) -> tuple[Plans, list[weakref.ref[torch.Tensor]]]:
    """A rank through these plans; and references to the pixels that its runner got."""
    reader = ArenaReader(arena.address)
    returned: list[Returned] = []
    pixels: list[weakref.ref[torch.Tensor]] = []

    def materialize(arrived: Arrived, frames: Sequence[Buffer]) -> MultimodalInputs:
        tensor = tensor_view(reader.view(handle), torch.uint8)
        pixels.append(weakref.ref(tensor))
        item = MultimodalItem(tensor, (1, 1, 1), 0, 1, 0, 0)
        return MultimodalInputs(torch.zeros(4, dtype=torch.int64), (item,), torch.zeros((3, 4), dtype=torch.int64), 0)

    def give_back(record: Returned) -> None:
        assert all(reference() is None for reference in pixels), "given back while the runner holds the pixels"
        returned.append(record)
        arena.returned(record.request, record.rank)

    role = Plans(returned, *plans)
    channel = RankChannel(NoExchange(), role.report, give_back)
    available = Available({name: strategy_named(name) for name in STRATEGIES}, {})
    assert Rank(0, role, channel, channel, available, reader, materialize, runner, Recorder()).run()
    assert returned == [Returned("a", 0)], "once for each request"
    assert arena.statistics().free == 4 * PAGE
    return role, pixels


def arrival(handle: Handle) -> Plan:
    arrived = Arrived("a", "handle-inline", (1, 2, 3, 4), (Item(handle, (1, 1, 1), 0, 1),), Sampling(3))
    return Plan(0, arrivals=(arrived,))


def test_a_runner_that_keeps_its_inputs_keeps_the_blocks(arena: Arena, handle: Handle) -> None:
    """It says two steps after the prefill that the pixels are consumed, as one with asynchronous copies may."""
    runner = Keeper()
    runner.outcomes.extend([Outcome(), Outcome(), Outcome(consumed=["a"]), Outcome()])
    admits = Plan(1, admits=(Admit("a", 0, 8),), work=(PREFILL,))
    decodes = [Plan(number, work=(DECODE,)) for number in (2, 3, 4)]
    role, _ = run(arena, handle, runner, arrival(handle), admits, *decodes, Plan(5, ended=("a",)))
    assert role.reports == [Ready("a", 0)]
    assert role.before == [0, 0, 0, 0, 1, 1, 1]


def test_a_request_that_ends_before_gives_them_back_behind_its_release(arena: Arena, handle: Handle) -> None:
    runner = Keeper()
    runner.outcomes.append(Outcome())
    admits = Plan(1, admits=(Admit("a", 0, 8),), work=(PREFILL,))
    role, _ = run(arena, handle, runner, arrival(handle), admits, Plan(2, ended=("a",)))
    assert role.before == [0, 0, 0, 1]


def test_one_that_was_never_admitted_too(arena: Arena, handle: Handle) -> None:
    role, pixels = run(arena, handle, Keeper(), arrival(handle), Plan(1, ended=("a",)))
    assert role.before == [0, 0, 1]
    assert pixels[0]() is None
