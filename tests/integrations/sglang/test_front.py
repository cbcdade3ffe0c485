"""The arena's owner: what is checked in, given back, given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import zmq

from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.errors import ArenaFull, PayloadTooLarge
from coatcheck.integrations.sglang.codec import Packed, Packer, Unpackable, unpack
from coatcheck.integrations.sglang.front import Front, Refused
from coatcheck.integrations.sglang.records import Attached, Ticket, Withdrawn, ticket_of
from coatcheck.messages import Ready, Record, Returned
from coatcheck.private_socket import PrivateEndpoint
from coatcheck.wire import encode

RANKS = 2
SIZE = 1 << 20


class Peer:
    """All ranks. They prepare whatever they are told to, until ``reports`` is changed."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.reader = ArenaReader(ArenaAddress.from_json(front.hello.arena))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._out.connect(front.hello.reports)
        self._in = [self._context.socket(zmq.PULL) for _ in range(RANKS)]
        self.attached = [Attached(rank, PrivateEndpoint(told).address) for rank, told in enumerate(self._in)]
        self.reports: Callable[[Ticket, int], Ready | None] = lambda ticket, rank: Ready(ticket.request, rank, None)
        self.told: list[list[Ticket | Withdrawn]] = [[] for _ in range(RANKS)]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._prepare, daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        poller, out = zmq.Poller(), self._context.socket(zmq.PUSH)
        out.connect(self.front.hello.reports)
        for told in self._in:
            poller.register(told, zmq.POLLIN)
        while not self._closing.is_set():
            for socket, _ in poller.poll(20):
                rank = self._in.index(socket)
                record = ticket_of(socket.recv())
                self.told[rank].append(record)
                report = self.reports(record, rank) if isinstance(record, Ticket) else None
                if report is not None:
                    out.send(encode(report))
        out.close(linger=0)

    def attach(self) -> None:
        self.say(*self.attached)
        self.until(lambda: self.front.attached)

    def say(self, *records: Record) -> None:
        for record in records:
            self._out.send(encode(record))

    def told_all(self, *records: Ticket | Withdrawn) -> None:
        self.until(lambda: all(told == [*records] for told in self.told))

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
        self._closing.set()
        self._thread.join()
        self.reader.close()
        self._context.destroy(linger=0)


@contextmanager
def opened() -> Iterator[Peer]:
    front = Front(SIZE, RANKS)
    made = Peer(front)
    try:
        yield made
    finally:
        made.close()
        front.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with opened() as made:
        made.attach()
        yield made


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


def test_tickets_go_out_once_every_rank_is_attached() -> None:
    with opened() as peer:
        peer.say(peer.attached[0], peer.attached[0], Attached(1, "junk"))
        peer.junk()
        time.sleep(0.1)
        assert not peer.front.attached
        peer.say(peer.attached[1])
        peer.until(lambda: peer.front.attached)
        peer.told_all(check_in(peer.front, torch.ones(1)))


def test_a_ticket_is_had_once_every_rank_has_prepared_it(peer: Peer) -> None:
    peer.reports = lambda ticket, rank: None if rank else Ready(ticket.request, rank, None)

    async def wait() -> Ticket:
        checking = asyncio.create_task(peer.front.check_in(pack(torch.ones(1)), copy=False))
        await asyncio.to_thread(peer.until, lambda: all(peer.told))
        await asyncio.sleep(0.05)
        assert not checking.done()
        (ticket,) = peer.told[0]
        peer.say(Ready(ticket.request, 1, None))
        return await checking

    ticket = asyncio.run(wait())
    peer.told_all(ticket)


def test_what_a_rank_cannot_prepare_is_refused_and_given_back(peer: Peer) -> None:
    peer.reports = lambda ticket, rank: Ready(ticket.request, rank, "broken" if rank else None)
    with pytest.raises(Refused, match="broken"):
        check_in(peer.front, torch.ones(1))
    ticket = peer.told[1][0]
    assert isinstance(ticket, Ticket)
    peer.told_all(ticket, Withdrawn(ticket.request))
    peer.give_back(ticket)
    peer.until_free()


def test_what_a_rank_does_not_report_is_refused_although_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatcheck.integrations.sglang.front.READY_TIMEOUT_S", 0.2)
    monkeypatch.setattr("coatcheck.integrations.sglang.front.LOOK_S", 0.05)
    with opened() as peer:
        peer.attach()
        peer.reports = lambda ticket, rank: None
        with pytest.raises(Refused, match=r"no report from rank 0, 1 within 0\.2 s"):
            check_in(peer.front, torch.ones(1))


def test_who_leaves_while_the_ranks_prepare_has_withdrawn_its_ticket(peer: Peer) -> None:
    peer.reports = lambda ticket, rank: None

    async def leave() -> None:
        checking = asyncio.create_task(peer.front.check_in(pack(torch.ones(1)), copy=False))
        await asyncio.to_thread(peer.until, lambda: all(peer.told))
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking

    asyncio.run(leave())
    (ticket, *_) = peer.told[0]
    assert isinstance(ticket, Ticket)
    peer.told_all(ticket, Withdrawn(ticket.request))
    assert peer.held, "the ranks have not given it back"
    peer.give_back(ticket)
    peer.until_free()


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
    peer.front.withdraw(tickets[2])  # it was never sent
    peer.told_all(*tickets, Withdrawn(tickets[2].request))
    peer.give_back(tickets[2])
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
