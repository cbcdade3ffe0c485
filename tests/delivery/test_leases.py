"""A block comes back once, and only when nothing lies over it any more."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.delivery.leases import Leases
from coatcheck.errors import HandleStale
from coatcheck.integrations.sglang.codec import flat, pack, unpack
from coatcheck.integrations.sglang.records import Ticket
from tests.support.sglang_peer import until


class House:
    """An arena, and one reader's leases."""

    def __init__(self) -> None:
        self.arena = Arena(1 << 20)
        self.reader = ArenaReader(self.arena.address)
        self.back: list[str] = []
        self.leases = Leases(self.reader, 0, lambda returned: self.back.append(returned.request))

    def ticket(self, name: str, *tensors: torch.Tensor) -> Ticket:
        blocks = [self.arena.put(name, flat(tensor).data) for tensor in tensors]
        if blocks:
            self.arena.dispatch(name, [0])
        handles = (Handle(block.offset, block.nonce, (block.nbytes,), "uint8") for block in blocks)
        return Ticket(name, pack(list(tensors), tensors, tensors), tuple(handles))

    def tensors(self, ticket: Ticket) -> list[torch.Tensor]:
        made: list[torch.Tensor] = unpack(ticket.body, self.leases.lend(ticket.request, ticket.handles))
        return made

    def tensor(self, ticket: Ticket) -> torch.Tensor:
        (made,) = self.tensors(ticket)
        return made

    def until_back(self, *names: str) -> None:
        deadline = time.monotonic() + 10
        while self.back != [*names]:
            assert time.monotonic() < deadline, self.back
            time.sleep(0.005)

    def stays(self) -> None:
        gc.collect()
        time.sleep(0.05)
        assert self.back == []


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    assert made.leases.close(10)
    gc.collect()
    made.reader.close()
    made.arena.close()


HOLDERS: list[Callable[[torch.Tensor], Any]] = [
    lambda tensor: tensor,
    lambda tensor: tensor[1:2],
    lambda tensor: tensor.view(-1)[5:].view(torch.uint8),
    lambda tensor: tensor.numpy(),
    lambda tensor: [tensor.detach()],
    lambda tensor: tensor.untyped_storage(),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=["itself", "slice", "bytes", "numpy", "alias", "storage"])
def test_anything_that_lies_over_it_keeps_it(house: House, holder: Callable[[torch.Tensor], Any]) -> None:
    held = holder(house.tensor(house.ticket("r", torch.rand(4, 5))))
    house.stays()
    del held
    house.until_back("r")


def test_a_copy_does_not_keep_it(house: House) -> None:
    copied = house.tensor(house.ticket("r", torch.ones(4))) + 1
    house.until_back("r")
    assert copied.tolist() == [2, 2, 2, 2]


def test_it_comes_back_once_whatever_happens(house: House) -> None:
    ticket = house.ticket("copied", torch.ones(4))
    house.leases.lend(ticket.request, ticket.handles)
    house.until_back("copied")
    (handle,) = ticket.handles
    stale = handle, Handle(handle.offset, handle.nonce ^ 1, handle.shape, "uint8")
    with pytest.raises(HandleStale):
        house.leases.lend("stale", stale)
    house.until_back("copied", "stale")
    twice = house.ticket("twice", torch.ones(4))
    first, second = house.tensor(twice), house.tensor(twice)  # two dispatches of one block
    del first
    house.until_back("copied", "stale", "twice")
    del second
    house.until_back("copied", "stale", "twice", "twice")


def test_a_request_comes_back_once_nothing_lies_over_any_of_its_blocks(house: House) -> None:
    first, second, third = house.tensors(house.ticket("r", torch.ones(4), torch.zeros(5), torch.ones(6)))
    del second
    house.stays()
    del first
    house.stays()
    del third
    house.until_back("r")


def test_one_without_blocks_is_not_given_back(house: House) -> None:
    assert house.tensors(house.ticket("none")) == []
    house.stays()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts end anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_it_comes_back_without_the_garbage_collector(no_collector: None, house: House) -> None:
    held = house.tensors(house.ticket("r", torch.ones(4), torch.zeros(5)))
    time.sleep(0.05)
    assert house.back == []
    del held
    house.until_back("r")


def test_a_block_that_changed_hands_under_a_loan_is_told(house: House, caplog: pytest.LogCaptureFixture) -> None:
    tensor = house.tensor(house.ticket("r", torch.ones(4)))
    house.arena.acknowledge("r", 0)  # a mistake: the reader has said nothing
    house.arena.end("r")
    del tensor
    house.until_back("r")
    assert "was another's before" in caplog.text


def test_the_last_reference_may_go_on_any_thread_and_in_a_cycle(house: House) -> None:
    cycle: list[Any] = [house.tensor(house.ticket("r", torch.ones(4)))]
    cycle.append(cycle)
    gc.collect()
    house.stays()
    del cycle
    gc.collect()
    house.until_back("r")


def fenced(house: House, fence: Any) -> None:
    """From now on, in place of none."""
    house.leases._fence = fence


def test_what_a_device_may_still_read_is_given_back_when_it_has(house: House) -> None:
    passed: list[threading.Event] = []

    def fence() -> Any:
        passed.append(threading.Event())
        return passed[-1].is_set

    fenced(house, fence)
    held = house.tensors(house.ticket("first", torch.ones(4)))
    time.sleep(0.05)
    assert not passed, "a fence is put up behind what is over, not before"
    del held
    until(lambda: len(passed) == 1)
    house.stays()
    house.tensors(house.ticket("second", torch.ones(5)))
    until(lambda: len(passed) == 2)
    passed[1].set()
    house.stays()
    passed[0].set()
    house.until_back("first", "second")


def test_nothing_is_given_back_without_its_fence(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coatcheck.delivery.leases.RETRY_S", 0.05)
    works = threading.Event()

    def fence() -> Any:
        if not works.is_set():
            raise RuntimeError("the stream is being captured")
        return lambda: True

    fenced(house, fence)
    house.tensors(house.ticket("r", torch.ones(4)))
    until(lambda: "no fence could be put up" in caplog.text)
    house.stays()
    works.set()
    house.until_back("r")


def test_a_fence_that_cannot_be_looked_at_has_not_passed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatcheck.delivery.leases.RETRY_S", 0.02)
    looks: list[int] = []

    def fence() -> Any:
        number = len(looks)

        def passed() -> bool:
            looks.append(number)
            if len(looks) < 3:
                raise RuntimeError("not permitted when a stream is capturing")
            return True

        return passed

    fenced(house, fence)
    for name in ("first", "second", "third"):
        house.tensors(house.ticket(name, torch.ones(4)))
    until(lambda: sorted(house.back) == ["first", "second", "third"])
    assert len(looks) >= 3
