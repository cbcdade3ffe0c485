"""Plans and payloads through two fixed collectives, whatever their size."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest
import torch

from coatcheck.engine.ranks.plan_broadcast import HEAD, PlanChannel
from coatcheck.engine.records import Admit, Arrived, Plan, Sampling, Work
from coatcheck.intake.records import Item, Tensor
from coatcheck.stopwatch import Spent


class Wire:
    """One side of a group whose broadcasts go through a queue."""

    def __init__(self, queue: deque[torch.Tensor], sends: bool) -> None:
        self.queue = queue
        self.sends = sends
        self.collectives = 0

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.collectives += 1
        if self.sends:
            self.queue.append(tensor.clone())
        else:
            sent = self.queue.popleft()
            assert sent.shape == tensor.shape, "the ranks take part in different collectives"
            tensor.copy_(sent)


def nobody(arrivals: Sequence[Arrived], spent: Spent) -> None:
    """Listens to no times."""


def channels() -> tuple[Wire, Wire, PlanChannel, PlanChannel]:
    queue: deque[torch.Tensor] = deque()
    entry, follower = Wire(queue, True), Wire(queue, False)
    return entry, follower, PlanChannel(entry, nobody), PlanChannel(follower, nobody)


def arrived(name: str, sizes: list[int], ids: int = 10) -> Arrived:
    items = tuple(Item(Tensor(i, (size,), "uint8"), (1, 1, 1), 0, 1) for i, size in enumerate(sizes))
    return Arrived(name, "dict-inline", tuple(range(ids)), items, Sampling(3))


LONG = tuple(Work(f"request-{i}", i, 1, (), i, True) for i in range(1000))


@pytest.mark.parametrize(
    ("plan", "collectives"),
    [
        (Plan(1), 1),
        (Plan(2, admits=(Admit("a", 0, 8),), ended=("b", "c"), stop=True), 1),
        (Plan(3, work=LONG), 2),
        (Plan(4, arrivals=(arrived("a", [7]),)), 2),
        (Plan(5, arrivals=(arrived("a", []), arrived("b", [1, 64, 65]), arrived("c", [0, 100_000])), work=LONG), 2),
    ],
)
def test_a_plan_and_its_frames_arrive_as_sent(plan: Plan, collectives: int) -> None:
    entry, follower, sender, receiver = channels()
    frames = [
        bytes((i * 7 + j) % 256 for j in range(item.pixels.shape[0]))
        for a in plan.arrivals
        for i, item in enumerate(a.items)
    ]
    for _ in range(2):  # state left by one plan does not leak into the next
        sender.send(plan, frames)
        received, got = receiver.receive()
        assert received == plan
        assert [bytes(frame) for frame in got] == frames
        assert all(memoryview(frame).readonly for frame in got)
    assert entry.collectives == follower.collectives == 2 * collectives


def test_every_length_around_the_fixed_block() -> None:
    entry, _, sender, receiver = channels()
    for extra in range(HEAD - 80, HEAD + 20):
        plan = Plan(1, ended=("x" * extra,))
        sender.send(plan)
        assert receiver.receive() == (plan, [])
    assert not entry.queue
