"""The arena's owner: what is checked in, given back, given up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coatcheck.delivery.records import Ready, Returned
from coatcheck.errors import ArenaFull, PayloadTooLarge
from coatcheck.integrations.sglang import arena_owner as module
from coatcheck.integrations.sglang.arena_owner import ArenaOwner, Refused, Trouble
from coatcheck.integrations.sglang.breaker import FAILURES
from coatcheck.integrations.sglang.codec import LARGE, Unpackable
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.records import Alive, Attached, Failed, Ticket, Withdrawn
from tests.support.sglang_peer import Hashes, Package, Peer, until

SIZE = 1 << 20
COUNT = LARGE // 4  # float32 of a tensor with a block


class House:
    """A owner, and its ranks."""

    def __init__(self, attach: Callable[[int], Attached | None]) -> None:
        self.peer = Peer(attach=attach)
        self.pace = Pace(0.0)
        self.owner = ArenaOwner(SIZE, self.peer.addresses, self.pace)

    def attach(self) -> None:
        assert self.owner.wait_attached(10) == ""

    def check_in(self, *tensors: torch.Tensor, note: object = None) -> Ticket:
        return asyncio.run(self.owner.check_in(Package(*tensors, note=note)))

    @property
    def held(self) -> int:
        statistics = self.owner.statistics()
        return statistics.reserved + statistics.in_use + statistics.quarantined

    def until_free(self) -> None:
        until(lambda: self.held == 0)

    def patience(self, seconds: float) -> None:
        """Whatever the size."""
        self.pace.patience_s = lambda nbytes, unhashed: seconds  # type: ignore[method-assign]

    def fill(self) -> Ticket:
        """Until there is no room for a picture."""
        return self.check_in(torch.full((SIZE - LARGE + 1,), 7, dtype=torch.uint8))

    def close(self) -> None:
        self.peer.close()
        self.owner.close()


@contextlib.contextmanager
def opened(attach: Callable[[int], Attached | None] = Attached) -> Iterator[House]:
    made = House(attach)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def house() -> Iterator[House]:
    with opened() as made:
        made.attach()
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths of one."""
    monkeypatch.setattr("coatcheck.integrations.sglang.arena_owner.READY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("coatcheck.integrations.sglang.arena_owner.LOOK_S", 0.05)
    monkeypatch.setattr("coatcheck.integrations.sglang.breaker.LEAST_S", 0.2)


def picture(value: float = 1.0) -> torch.Tensor:
    return torch.full((COUNT,), float(value))


def mute(ticket: Ticket, rank: int) -> None:
    """No rank reports."""


# ---------------------------------------------------------------------- the ranks


def test_a_ticket_leads_to_the_tensors(house: House) -> None:
    one, other = torch.rand(COUNT), torch.rand(2, COUNT)
    ticket = house.check_in(one, other)
    assert all(map(torch.equal, house.peer.read(ticket), (one, other)))
    assert house.held == 3 * LARGE
    house.peer.say(Returned(ticket.request, 0), Returned(ticket.request, 0))  # one rank alone, even twice
    time.sleep(0.1)
    assert house.held
    house.peer.say(Returned(ticket.request, 1))
    house.until_free()


def test_what_has_no_large_tensor_travels_without_a_block(house: House) -> None:
    ticket = house.check_in(note=[1, 2, 3])
    assert ticket.handles == ()
    assert house.held == 0
    house.peer.told_all(ticket)


def test_tickets_go_out_once_every_rank_is_attached() -> None:
    with opened(lambda rank: None) as house:
        until(lambda: hasattr(house.peer, "arena"))
        house.peer.say(Attached(0), Attached(0))
        house.peer.send(b"junk")
        assert house.owner.wait_attached(0.2) == "rank 1 did not map the arena within 0.2 s"
        assert not house.owner.carries
        house.peer.say(Attached(1))
        house.attach()
        assert house.owner.carries
        house.peer.told_all(house.check_in(picture()))


def test_why_a_rank_could_not_attach_is_said_at_once() -> None:
    with opened(lambda rank: Attached(rank, "no such file") if rank else None) as house:
        assert house.owner.wait_attached(10) == "rank 1: no such file"


def test_a_ticket_is_had_once_every_rank_has_prepared_it(house: House) -> None:
    house.peer.reports = lambda ticket, rank: None if rank else Ready(ticket.request, rank)

    async def wait() -> Ticket:
        checking = asyncio.create_task(house.owner.check_in(Package(picture())))
        await asyncio.to_thread(house.peer.until_told, 1)
        await asyncio.sleep(0.05)
        assert not checking.done()
        (ticket,) = house.peer.tickets()
        house.peer.say(Ready(ticket.request, 1))
        return await checking

    house.peer.told_all(asyncio.run(wait()))


def test_what_a_rank_refuses_is_refused_and_given_back_and_is_no_trouble(house: House) -> None:
    house.peer.reports = lambda ticket, rank: Ready(ticket.request, rank, "broken" if rank else None)
    for _ in range(FAILURES + 2):
        with pytest.raises(Refused, match="broken"):
            house.check_in(picture())
    assert house.owner.carries
    ticket, withdrawn = house.peer.told[1][:2]
    assert isinstance(ticket, Ticket)
    assert withdrawn == Withdrawn(ticket.request)
    assert house.held
    house.peer.give_back(*house.peer.tickets())
    house.until_free()


def failing(ticket: Ticket, rank: int) -> Ready | Failed:
    return Failed(ticket.request, rank, "out of memory") if rank else Ready(ticket.request, rank)


def test_one_failing_rank_is_trouble_and_three_times_in_a_row_opens_the_breaker(
    soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened() as house:
        house.attach()
        ready = house.peer.reports
        for count in range(2 * FAILURES - 1):
            house.peer.reports = ready if count == FAILURES - 1 else failing  # with one that succeeds in between
            with contextlib.nullcontext() if count == FAILURES - 1 else pytest.raises(Trouble, match="out of memory"):
                house.check_in(picture())
            assert house.owner.carries
        with pytest.raises(Trouble, match="out of memory"):
            house.check_in(picture())
        assert house.owner.standing_aside
        assert not house.owner.carries
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        until(lambda: house.owner.carries)
        with pytest.raises(Trouble, match="out of memory"):  # one is enough now
            house.check_in(picture())
        assert not house.owner.carries
        house.peer.reports = ready
        until(lambda: house.owner.carries)
        house.check_in(picture())


def test_silence_of_a_rank_costs_what_is_open_a_bounded_time_and_later_requests_nothing(
    soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with opened() as house:
        house.attach()
        house.peer.reports = lambda ticket, rank: None if rank else Ready(ticket.request, rank)
        house.peer.answers = lambda probe, rank: None

        async def several() -> list[tuple[float, BaseException | Ticket]]:
            async def one(after: float) -> tuple[float, BaseException | Ticket]:
                await asyncio.sleep(after)
                (end,) = await asyncio.gather(house.owner.check_in(Package(picture(after))), return_exceptions=True)
                return time.monotonic(), end

            return await asyncio.gather(*map(one, (0, 0.1, 0.2)))

        start = time.monotonic()
        ends = asyncio.run(several())
        for at, end in ends:
            assert isinstance(end, Trouble)
            assert "no report from rank 1 within 0.3 s" in str(end)
            assert 0.3 <= at - start < 1
        assert max(at for at, _ in ends) - min(at for at, _ in ends) < 0.1, "all that are open, at once"
        assert not house.owner.carries
        with pytest.raises(Trouble):
            asked = time.monotonic()
            house.check_in(picture(9))
        assert time.monotonic() - asked < 0.15, "it waited for a rank that is known to be silent"
        assert len(house.peer.tickets()) == 3

        until(lambda: len(house.peer.probed[1]) >= 3)
        times = [at for at, _ in house.peer.probed[1]]
        assert all(0.15 < later - earlier < 0.6 for earlier, later in pairwise(times))
        assert not house.owner.carries, "no rank has answered"
        house.peer.answers = lambda probe, rank: None if rank else Alive(probe.number, rank)
        time.sleep(0.5)
        assert not house.owner.carries, "one has not"
        house.peer.answers = lambda probe, rank: Alive(probe.number, rank)
        house.peer.reports = lambda ticket, rank: Ready(ticket.request, rank)
        until(lambda: house.owner.carries)
        told = len(house.peer.probed[0])
        house.check_in(picture(9))
        time.sleep(0.5)
        assert len(house.peer.probed[0]) == told, "probes go on"
        assert [(record.levelname, "again" in record.message) for record in caplog.records] == [
            ("WARNING", False),
            ("INFO", True),
        ]


def test_silence_is_noticed_although_every_client_has_left(soon: None) -> None:
    with opened() as house:
        house.attach()
        house.peer.reports = mute

        async def leave() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(house.owner.check_in(Package(picture())), 0.1)

        asyncio.run(leave())
        assert house.owner.carries
        house.peer.answers = lambda probe, rank: None
        until(lambda: not house.owner.carries, 1)


def test_who_leaves_while_the_ranks_prepare_has_withdrawn_its_ticket(house: House) -> None:
    house.peer.reports = mute

    async def leave() -> None:
        checking = asyncio.create_task(house.owner.check_in(Package(picture())))
        await asyncio.to_thread(house.peer.until_told, 1)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking

    asyncio.run(leave())
    (ticket,) = house.peer.tickets()
    house.peer.told_all(ticket, Withdrawn(ticket.request))
    assert house.held, "the ranks have not given it back"
    house.peer.give_back(ticket)
    house.until_free()


# ---------------------------------------------------------------------- content


def test_the_same_picture_in_another_prompt_is_one_block(house: House) -> None:
    tensor = torch.rand(COUNT)
    tickets = [house.check_in(tensor.clone(), note=f"prompt {number}") for number in range(3)]
    assert len({ticket.handles for ticket in tickets}) == 1
    assert len({ticket.body for ticket in tickets}) == 3
    assert len({ticket.request for ticket in tickets}) == 3
    assert house.held == LARGE
    for ticket in tickets[:2]:
        house.peer.give_back(ticket)
    time.sleep(0.1)
    assert house.held
    house.owner.withdraw(tickets[2])  # it was never sent
    house.peer.told_all(*tickets, Withdrawn(tickets[2].request))
    house.peer.give_back(tickets[2])
    house.until_free()


def test_a_later_turn_adds_its_new_picture_only(house: House) -> None:
    first, second = torch.rand(COUNT), torch.rand(COUNT)
    early, late = house.check_in(first, note="turn 1"), house.check_in(first, second, note="turn 2")
    assert early.handles[0] == late.handles[0]
    assert house.held == 2 * LARGE
    assert all(map(torch.equal, house.peer.read(late), (first, second)))


def test_a_tensor_that_is_sent_several_times_is_hashed_and_written_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes, tensor = Hashes(monkeypatch), torch.rand(COUNT)
    tickets = [house.check_in(tensor, note=number) for number in range(4)]
    assert hashes.count == 1
    assert house.owner.statistics().reservations == 1
    assert len({ticket.handles for ticket in tickets}) == 1


def test_a_tensor_that_was_changed_in_between_is_another(house: House) -> None:
    tensor = torch.rand(COUNT)
    before = house.check_in(tensor)
    tensor[3] = -1.0
    after = house.check_in(tensor)
    assert before.handles != after.handles
    assert torch.equal(house.peer.read(after)[0], tensor)
    assert not torch.equal(house.peer.read(before)[0], tensor)


def test_equal_tensors_of_one_request_are_one_block(house: House) -> None:
    tensor = torch.rand(COUNT)
    ticket = house.check_in(tensor, tensor.clone())
    assert ticket.handles[0] == ticket.handles[1]
    assert house.held == LARGE
    house.peer.give_back(ticket)
    house.until_free()


# ---------------------------------------------------------------------- room


@pytest.mark.serial
def test_a_full_arena_hashes_and_packs_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.fill()
    hashes, package = Hashes(monkeypatch), Package(picture())
    for seconds in (0.0, 0.2):
        house.patience(seconds)
        asked = time.monotonic()
        with pytest.raises(ArenaFull):
            asyncio.run(house.owner.check_in(package))
        assert seconds <= time.monotonic() - asked < seconds + 0.15
    assert (hashes.count, package.packed) == (0, 0)
    assert len(house.peer.tickets()) == 1


def test_how_long_it_waits_is_asked_with_what_it_holds(house: House) -> None:
    house.fill()
    asked: list[tuple[int, int]] = []
    house.pace.patience_s = lambda nbytes, unhashed: asked.append((nbytes, unhashed)) or 0.0  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(ArenaFull):
        asyncio.run(house.owner.check_in(Package(picture(), picture(), unhashed=5)))
    assert asked == [(2 * LARGE, 5)]


def test_it_gets_the_room_that_comes_free_while_it_waits(house: House) -> None:
    first = house.fill()
    house.patience(10)

    async def wait() -> Ticket:
        checking = asyncio.create_task(house.owner.check_in(Package(picture())))
        await asyncio.to_thread(until, lambda: house.owner.waiting == 1)
        await asyncio.sleep(0.1)
        house.peer.give_back(first)
        return await checking

    ticket = asyncio.run(wait())
    assert torch.equal(house.peer.read(ticket)[0], picture())
    (waited,) = house.owner.waits
    assert 0.1 <= waited < 1
    assert house.owner.waiting == 0


def test_what_is_there_already_needs_no_room(house: House) -> None:
    tensor = picture()
    house.check_in(tensor)
    house.check_in(torch.full((SIZE - LARGE,), 7, dtype=torch.uint8))
    assert house.owner.statistics().free == 0
    house.check_in(tensor, note="again")


def test_what_carried_requests_take_is_measured(house: House) -> None:
    sizes: list[int] = []
    house.pace.carried = lambda nbytes, seconds: sizes.append(nbytes)  # type: ignore[method-assign]
    house.check_in(picture(), picture(2))
    assert sizes == [2 * LARGE]


def test_without_room_nothing_is_held(house: House) -> None:
    large = torch.zeros(SIZE * 5 // 8, dtype=torch.uint8)
    ticket = house.check_in(large)
    with pytest.raises(ArenaFull):
        house.check_in(large + 1)
    with pytest.raises(ArenaFull):
        house.check_in(picture(), large + 1)
    with pytest.raises(PayloadTooLarge):
        house.check_in(torch.zeros(2 * SIZE, dtype=torch.uint8))
    house.peer.give_back(ticket)
    house.until_free()
    house.check_in(large + 1)


def test_what_cannot_be_packed_holds_nothing(house: House) -> None:
    with pytest.raises(Unpackable):
        house.check_in(picture(), note=threading.Lock())
    assert house.held == 0
    assert house.peer.tickets() == []


def test_a_request_that_waits_for_room_waits_for_no_rank_that_is_known_to_be_silent(soon: None) -> None:
    with opened() as house:
        house.attach()
        first = house.check_in(torch.full((SIZE - LARGE // 2,), 7, dtype=torch.uint8))
        house.patience(10)
        house.peer.answers = lambda probe, rank: None

        async def wait() -> float:
            checking = asyncio.create_task(house.owner.check_in(Package(picture())))
            await asyncio.to_thread(until, lambda: house.owner.waiting == 1)
            house.peer.reports = mute
            with pytest.raises(Trouble):
                await house.owner.check_in(Package(note="small"))
            assert not house.owner.carries
            house.peer.give_back(first)
            asked = time.monotonic()
            with pytest.raises(Trouble):
                await checking
            return time.monotonic() - asked

        assert asyncio.run(wait()) < 0.2
        assert len(house.peer.tickets()) == 2
        house.until_free()


# ---------------------------------------------------------------------- threads


class Gate:
    """In place of one step of a writer's thread: it begins, and ends when it may."""

    def __init__(self, fails: bool) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._fails = fails

    def __call__(self, *arguments: Any) -> None:
        self.begun.set()
        assert self.may_end.wait(10)
        if self._fails:
            del arguments  # who keeps the error would keep a view of the arena
            raise RuntimeError("disk full of memory")
        np.copyto(*arguments)


@pytest.mark.parametrize("fails", [False, True], ids=["slow", "failing"])
def test_a_block_is_nobodys_while_a_thread_may_write_to_it(
    house: House, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    gate = Gate(fails)
    monkeypatch.setattr(module, "np", SimpleNamespace(copyto=gate, frombuffer=np.frombuffer, uint8=np.uint8))

    async def leave() -> None:
        checking = asyncio.create_task(house.owner.check_in(Package(picture())))
        await asyncio.to_thread(gate.begun.wait, 10)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        assert house.owner.statistics().reserved
        gate.may_end.set()
        await asyncio.to_thread(house.until_free)

    asyncio.run(leave())
    assert house.peer.tickets() == []


def test_who_leaves_before_a_thread_has_begun_holds_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(fails=False)
    monkeypatch.setattr(module, "np", SimpleNamespace(copyto=gate, frombuffer=np.frombuffer, uint8=np.uint8))

    async def leave() -> None:
        first = [asyncio.create_task(house.owner.check_in(Package(picture(n)))) for n in range(module.WRITERS)]
        await asyncio.to_thread(gate.begun.wait, 10)
        late = asyncio.create_task(house.owner.check_in(Package(picture(99))))
        await asyncio.sleep(0.05)
        assert house.owner.statistics().reserved == LARGE * (module.WRITERS + 1)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert house.owner.statistics().reserved == LARGE * module.WRITERS
        gate.may_end.set()
        house.peer.give_back(*await asyncio.gather(*first))
        await asyncio.to_thread(house.until_free)

    asyncio.run(leave())


def test_an_error_on_a_thread_holds_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(fails=True)
    gate.may_end.set()
    monkeypatch.setattr(module, "np", SimpleNamespace(copyto=gate, frombuffer=np.frombuffer, uint8=np.uint8))
    with pytest.raises(RuntimeError, match="disk full"):
        house.check_in(picture())
    assert house.held == 0


def test_the_loop_runs_while_a_payload_is_packed(house: House) -> None:
    may_pack = threading.Event()

    class Slow(Package):
        def body(self) -> bytes:
            assert may_pack.wait(10)
            return super().body()

    async def beat() -> None:
        checking = asyncio.create_task(house.owner.check_in(Slow(picture())))
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not checking.done()
        may_pack.set()
        await checking

    asyncio.run(beat())


# ---------------------------------------------------------------------- the end


def test_what_waits_when_it_is_closed_is_told_so_and_nothing_more_is_taken() -> None:
    with opened() as house:
        house.attach()
        house.peer.reports = mute

        async def wait() -> None:
            checking = asyncio.create_task(house.owner.check_in(Package(picture())))
            await asyncio.to_thread(house.peer.until_told, 1)
            await asyncio.to_thread(house.owner.close)
            with pytest.raises(Trouble, match="the ranks have ended"):
                await checking
            for package in (Package(picture()), Package(picture(2)), Package()):
                with pytest.raises(Trouble):
                    await house.owner.check_in(package)

        asyncio.run(wait())
        assert not house.owner.carries
        house.owner.close()


def test_what_waits_for_room_when_it_is_closed_is_told_so() -> None:
    with opened() as house:
        house.attach()
        house.fill()
        house.patience(1)

        async def wait() -> None:
            checking = [asyncio.create_task(house.owner.check_in(Package(picture(n)))) for n in range(2)]
            await asyncio.to_thread(until, lambda: house.owner.waiting == 2)
            await asyncio.to_thread(house.owner.close)
            for end in await asyncio.gather(*checking, return_exceptions=True):
                assert isinstance(end, (Trouble, ArenaFull)), repr(end)

        asyncio.run(wait())
