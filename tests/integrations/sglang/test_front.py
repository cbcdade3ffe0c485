"""The arena's owner: what is checked in, given back, given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
import zmq

from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.errors import ArenaFull, PayloadTooLarge
from coatcheck.integrations.sglang.codec import Packed, Packer, Unpackable, unpack
from coatcheck.integrations.sglang.front import Front
from coatcheck.integrations.sglang.records import Attached, Ticket
from coatcheck.messages import Record, Returned
from coatcheck.wire import encode

RANKS = 2
SIZE = 1 << 20


class Peer:
    """All ranks."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.reader = ArenaReader(ArenaAddress.from_json(front.hello.arena))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._out.connect(front.hello.returns)

    def say(self, *records: Record) -> None:
        for record in records:
            self._out.send(encode(record))

    def junk(self) -> None:
        self._out.send(b"junk")

    def give_back(self, ticket: Ticket) -> None:
        self.say(*(Returned(ticket.request, rank) for rank in range(RANKS)))

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    @property
    def held(self) -> int:
        statistics = self.front.statistics()
        return statistics.reserved + statistics.in_use + statistics.quarantined

    def until_free(self) -> None:
        self.until(lambda: self.held == 0)

    def close(self) -> None:
        self.reader.close()
        self._context.destroy(linger=0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    front = Front(SIZE, RANKS)
    made = Peer(front)
    yield made
    made.close()
    front.close()


def pack(tensor: torch.Tensor) -> Callable[[], Packed]:
    return lambda: Packer().pack([tensor], [tensor])


def check_in(front: Front, tensor: torch.Tensor) -> Ticket:
    return asyncio.run(front.check_in(pack(tensor), copy=False))


def test_a_ticket_leads_to_the_tensor(peer: Peer) -> None:
    tensor = torch.rand(100)
    ticket = check_in(peer.front, tensor)
    (made,) = unpack(peer.reader.view(ticket.handle), lend=False)
    assert torch.equal(made, tensor)
    assert len(encode(ticket)) <= 128
    assert peer.held
    peer.say(Returned(ticket.request, 0), Returned(ticket.request, 0))  # one rank alone, even twice
    time.sleep(0.1)
    assert peer.held
    peer.say(Returned(ticket.request, 1))
    peer.until_free()


def test_tickets_go_out_once_every_rank_is_attached(peer: Peer) -> None:
    peer.say(Attached(0), Attached(0))
    peer.junk()
    time.sleep(0.1)
    assert not peer.front.attached
    peer.say(Attached(1))
    peer.until(lambda: peer.front.attached)


def test_equal_content_is_written_once_and_each_ticket_given_back_by_itself(peer: Peer) -> None:
    tensor = torch.rand(100)
    tickets = [check_in(peer.front, tensor.clone()) for _ in range(3)]
    assert len({ticket.handle for ticket in tickets}) == 1
    assert len({ticket.request for ticket in tickets}) == 3
    assert peer.front.statistics().reservations == 1
    for ticket in tickets[:2]:
        peer.give_back(ticket)
    time.sleep(0.1)
    assert peer.held
    peer.front.cancel(tickets[2])  # it was never sent
    peer.until_free()


def test_without_room_nothing_is_held(peer: Peer) -> None:
    large = torch.zeros(SIZE * 5 // 8, dtype=torch.uint8)
    ticket = check_in(peer.front, large)
    with pytest.raises(ArenaFull):
        check_in(peer.front, large + 1)
    with pytest.raises(PayloadTooLarge):
        check_in(peer.front, torch.zeros(2 * SIZE, dtype=torch.uint8))
    with pytest.raises(Unpackable):
        check_in(peer.front, torch.ones(2, requires_grad=True))
    peer.give_back(ticket)
    peer.until_free()
    check_in(peer.front, large + 1)


@pytest.mark.parametrize("fails", [False, True], ids=["slow", "failing"])
def test_a_block_is_nobodys_while_a_thread_may_write_to_it(peer: Peer, fails: bool) -> None:
    writing, may_end = threading.Event(), threading.Event()

    class Slow(Packed):
        def write(self, room: memoryview) -> None:
            writing.set()
            assert may_end.wait(10)
            if fails:
                raise RuntimeError("disk full of memory")

    async def leave() -> None:
        checking = asyncio.create_task(peer.front.check_in(lambda: Slow(5000, b"d" * 32, ()), copy=False))
        await asyncio.to_thread(writing.wait, 10)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        assert peer.front.statistics().reserved
        may_end.set()
        await asyncio.to_thread(peer.until_free)

    asyncio.run(leave())


def test_the_loop_runs_while_a_payload_is_packed_and_written(peer: Peer) -> None:
    async def beat() -> None:
        may_pack = threading.Event()

        def slow() -> Packed:
            assert may_pack.wait(10)
            return pack(torch.ones(3))()

        checking = asyncio.create_task(peer.front.check_in(slow, copy=False))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not checking.done()
        may_pack.set()
        await checking

    asyncio.run(beat())
