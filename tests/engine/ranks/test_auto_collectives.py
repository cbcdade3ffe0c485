"""Under ``auto`` a step has at most two collectives, none of them per request, and plans name what ranks can obey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import zmq

from coatcheck.arena.handle import Handle
from coatcheck.delivery.readiness import Readiness
from coatcheck.delivery.records import Ready
from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.model.kv_regions import Regions
from coatcheck.engine.model.schedule import Schedule
from coatcheck.engine.ranks.admission import Admission
from coatcheck.engine.ranks.auto import Auto, Line
from coatcheck.engine.ranks.entry import EntryRole, EntrySockets
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.records import Arrived, AutoRule, Plan, Sampling
from coatcheck.engine.strategies.table import is_background, strategy_named
from coatcheck.intake.records import Item, Tensor
from coatcheck.wire import send

RANKS = 2
REQUESTS = 40
COSTS = {"dict": Line(1e-3, 1e-9), "handle": Line(5e-4, 0.0)}


class Counting:
    """A group whose broadcasts go nowhere."""

    def __init__(self) -> None:
        self.collectives = 0

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.collectives += 1


@pytest.fixture
def front_end() -> Iterator[tuple[zmq.Socket[bytes], EntrySockets]]:
    """The front end's PUSH socket, and the entry rank's sockets."""
    with zmq.Context() as context:
        kinds = {"requests": (zmq.PUSH, zmq.PULL), "events": (zmq.PULL, zmq.PUSH), "reports": (zmq.PUSH, zmq.PULL)}
        far, near = {}, {}
        for name, (there, here) in kinds.items():
            far[name], near[name] = context.socket(there), context.socket(here)
            far[name].bind(f"inproc://{name}")
            near[name].connect(f"inproc://{name}")
        near["gone"] = near["requests"].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        yield far["requests"], EntrySockets(**near)
        near["requests"].disable_monitor()
        for socket in (*far.values(), *near.values()):
            socket.close(linger=0)


def request(number: int) -> tuple[Arrived, list[bytes]]:
    """In turn: text, a payload beside the request, one by handle, one of each kind of two images."""
    kind = number % 4
    small, large = Tensor(0, (1000,), "uint8"), Handle(4096, 1, (100_000,), "uint8")
    kinds: list[list[Tensor | Handle]] = [[], [small], [large], [large, large]]
    items = tuple(Item(one, (1, 1, 1), 0, 1) for one in kinds[kind])
    return Arrived(f"r{number}", "auto", (1, 2), items, Sampling(2)), [bytes(1000)] * (kind == 1)


def test_at_most_two_collectives_a_step(front_end: tuple[zmq.Socket[bytes], EntrySockets]) -> None:
    socket, sockets = front_end
    group, recorder, admission = Counting(), Recorder(), Admission(Readiness(RANKS, 30))
    channel = PlanChannel(group, recorder.broadcast)
    auto = Auto(AutoRule(4096, "measured", 2e-5), COSTS)
    schedule = Schedule(64, 64, EmbeddingBook(0, 1))
    role = EntryRole(channel, sockets, admission, schedule, Regions(4096), 16, 10, 1 << 20, auto, recorder)
    for number in range(REQUESTS):
        send(socket, *request(number))
    arrivals: list[Arrived] = []
    steps: list[Plan] = []
    while len(arrivals) < REQUESTS:
        before = group.collectives
        plan, _ = role.next_plan()
        assert group.collectives - before <= 2, f"{len(plan.arrivals)} arrivals took more"
        steps.append(plan)
        arrivals += plan.arrivals
        for arrived in plan.arrivals:
            for rank in range(RANKS):
                role.report(Ready(arrived.request, rank))
    assert max(len(plan.arrivals) for plan in steps) > 1, "no step had several"
    for number, arrived in enumerate(arrivals):
        kind = number % 4
        strategy = strategy_named(arrived.strategy)
        assert not strategy.carrier.collective(arrived), "a collective of its own"
        assert arrived.strategy.partition("-")[0] == ("dict" if kind < 2 else "handle")
        if kind == 0:
            assert not is_background(arrived.strategy)
    assert {is_background(arrived.strategy) for arrived in arrivals} == {True, False}
    counted = {name: recorder.registry.get_sample_value("coatcheck_auto_total", {"strategy": name}) or 0 for name in
               ("dict-inline", "dict-background", "handle-inline", "handle-background")}  # fmt: skip
    assert counted == {name: sum(a.strategy == name for a in arrivals) for name in counted}
