"""Room for all of a request's blocks or for none, in a line, and nothing leaks, whoever leaves when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coatcheck.arena import Arena
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.queue import ArenaQueue, Reservation, Want
from coatcheck.errors import ArenaFull, PayloadTooLarge

PAGES = 64
CONTENTS = [(bytes([index]) * 32, (index + 1) * 3 * PAGE) for index in range(5)]  # digest and bytes


class Loop(asyncio.SelectorEventLoop):
    """Its time is the test's."""

    now = 0.0

    def time(self) -> float:
        """Seconds."""
        return self.now

    def settle(self) -> None:
        """Runs whatever can run now."""
        busy = True
        while busy:
            self.call_soon(self.stop)
            self.run_forever()
            timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
            busy = bool(self._ready) or any(timer.when() <= self.now for timer in timers)  # type: ignore[attr-defined]


@dataclass
class Request:
    """A request that asked for room."""

    wants: list[Want]
    contents: list[bytes]  # of each want: what it will hold, known or not
    patience_s: float
    asked: float
    task: asyncio.Task[list[Reservation]]
    waited: bool = False  # it did not get its room at once
    got: list[Reservation] = field(default_factory=list)
    stored: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that it wants."""
        return sum(want.nbytes for want in self.wants)


class QueueMachine(RuleBasedStateMachine):
    """Requests on an event loop: they ask, wait, leave, store and end."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.arena = Arena(PAGES * PAGE)
        self.lock = threading.Lock()
        self.queue = ArenaQueue(self.arena, self.lock)
        self.requests: dict[str, Request] = {}  # in the order in which they asked; all that hold or wait
        self.count = 0
        self.step()

    def step(self) -> None:
        """Whatever can go on does; what has ended is looked at."""
        self.loop.settle()
        for name, request in list(self.requests.items()):
            if request.got or not request.task.done():
                request.waited |= not request.task.done()
                continue
            if request.task.cancelled():
                del self.requests[name]
            elif (error := request.task.exception()) is not None:
                self._refused(name, request, error)
            else:
                self._served(name, request)
        for request in self.requests.values():
            assert request.task.done() or self.loop.now < request.asked + request.patience_s, "it waits too long"

    def _refused(self, name: str, request: Request, error: BaseException) -> None:
        del self.requests[name]
        if isinstance(error, PayloadTooLarge):
            assert request.nbytes > self.arena.capacity
            assert not request.waited
        else:
            assert isinstance(error, ArenaFull)
            assert self.loop.now >= request.asked + request.patience_s

    def _served(self, name: str, request: Request) -> None:
        request.got = request.task.result()
        assert len(request.got) == len(request.wants), "all or nothing"
        for want, place in zip(request.wants, request.got, strict=True):
            assert place.block.size >= want.nbytes
            assert not place.filled or place.block.digest == want.digest
        for earlier, other in self.requests.items():
            if earlier == name:
                break
            assert other.task.done(), f"{name} has overtaken {earlier}"

    @rule(
        known=st.lists(st.integers(0, len(CONTENTS) - 1), max_size=2),
        unknown=st.lists(st.integers(0, len(CONTENTS) - 1), max_size=2),
        others=st.lists(st.integers(1, 45), max_size=2),
        patience_s=st.sampled_from([0.0, 1.0, 5.0, 5.0, 20.0]),
    )
    def ask(self, known: list[int], unknown: list[int], others: list[int], patience_s: float) -> None:
        """``known``: content whose digest is known by now; ``others``: pages of content that nobody else has."""
        name = str(self.count)
        self.count += 1
        wants = [Want(CONTENTS[index][1], CONTENTS[index][0]) for index in known]
        wants += [Want(CONTENTS[index][1]) for index in unknown]
        wants += [Want(count * PAGE - 7) for count in others]
        if not wants:
            return
        contents = [CONTENTS[index][0] for index in [*known, *unknown]]
        contents += [f"{name}/{index}".encode() for index in range(len(others))]
        line = self.queue.waiting
        task = self.loop.create_task(self.queue.reserve(name, wants, patience_s))
        self.requests[name] = Request(wants, contents, patience_s, self.loop.now, task)
        self.step()
        if line and name in self.requests and task.done():
            raise AssertionError(f"{name} was served past {line} that wait")

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def passes(self, seconds: float) -> None:
        self.loop.now += seconds
        self.step()

    def _one(self, which: int, waits: bool, stored: bool = False) -> str | None:
        found = [n for n, r in self.requests.items() if r.task.done() != waits and r.stored == stored]
        return found[which % len(found)] if found else None

    @precondition(lambda self: any(not request.task.done() for request in self.requests.values()))
    @rule(which=st.integers(0, 20), room_first=st.booleans())
    def leave(self, which: int, room_first: bool) -> None:
        """Who waits is cancelled; perhaps just when room has come free, before it has noticed."""
        name = self._one(which, waits=True)
        assert name is not None
        if room_first:
            self._finish(self._one(which, waits=False, stored=True))
        self.requests[name].task.cancel()
        self.step()

    @rule(which=st.integers(0, 20))
    def store(self, which: int) -> None:
        """As the front does: content that came meanwhile is shared, the rest committed."""
        name = self._one(which, waits=False)
        if name is None:
            return
        request = self.requests[name]
        with self.lock:
            for place, content, want in zip(request.got, request.contents, request.wants, strict=True):
                if place.filled:
                    continue
                known = self.arena.find(name, content)
                if known is not None:
                    empty, place.block = place.block, known
                    self.arena.cancel(empty)
                else:
                    place.block = self.arena.commit(name, place.block, want.nbytes, content)
                place.filled = True
        request.stored = True
        self.step()

    @rule(which=st.integers(0, 20))
    def give_up(self, which: int) -> None:
        """It failed before it was stored."""
        name = self._one(which, waits=False)
        if name is not None:
            with self.lock:
                self.queue.cancel(name, self.requests.pop(name).got)
            self.step()

    @rule(which=st.integers(0, 20))
    def end(self, which: int) -> None:
        """It has been stored, and is over."""
        self._finish(self._one(which, waits=False, stored=True))
        self.step()

    def _finish(self, name: str | None) -> None:
        if name is not None:
            del self.requests[name]
            with self.lock:
                self.arena.end(name)

    @invariant()
    def the_line_is_who_waits(self) -> None:
        waiting = [name for name, request in self.requests.items() if not request.task.done()]
        assert self.queue.waiting == len(waiting)

    @invariant()
    def nothing_is_held_but_by_who_got_it(self) -> None:
        places = [place for request in self.requests.values() for place in request.got]
        reserved = sum(place.block.size for place in places if not place.filled)
        used = {place.block.offset: place.block.size for place in places if place.filled}
        statistics = self.arena.statistics()
        assert (statistics.reserved, statistics.in_use, statistics.quarantined) == (reserved, sum(used.values()), 0)

    @invariant()
    def nobody_waits_before_an_empty_arena(self) -> None:
        if not any(request.got for request in self.requests.values()):
            assert self.queue.waiting == 0

    def teardown(self) -> None:
        """Room comes to all who wait, one after the other; then nothing is left."""
        while self.requests:
            held = [name for name, request in self.requests.items() if request.got]
            assert held, "they wait for each other"
            with self.lock:
                for name in held:
                    self.queue.cancel(name, self.requests.pop(name).got)
            self.step()
        statistics = self.arena.statistics()
        assert statistics.free + statistics.cached == PAGES * PAGE
        self.loop.close()
        self.arena.close()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(PAGES * PAGE) as made:
        yield made


def pages(*counts: int) -> Sequence[Want]:
    return [Want(count * PAGE) for count in counts]


def test_who_stops_waiting_lets_the_next_one_in(arena: Arena) -> None:
    queue = ArenaQueue(arena, threading.Lock())

    async def wait() -> None:
        await queue.reserve("half", pages(PAGES // 2), 0)
        large = asyncio.create_task(queue.reserve("large", pages(PAGES), 0.1))
        await asyncio.sleep(0)
        small = asyncio.create_task(queue.reserve("small", pages(1), 10))
        await asyncio.sleep(0.02)
        assert not small.done(), "it has overtaken"
        with pytest.raises(ArenaFull, match=r"no room for \d+ bytes within 0.1 s"):
            await large
        await asyncio.wait_for(small, 1)

    asyncio.run(wait())


def test_who_is_cancelled_just_when_room_came_holds_nothing_and_the_next_one_gets_it(arena: Arena) -> None:
    lock = threading.Lock()
    queue = ArenaQueue(arena, lock)

    async def wait() -> None:
        (place,) = await queue.reserve("all", pages(PAGES), 0)
        leaves = asyncio.create_task(queue.reserve("leaves", pages(PAGES), 10))
        await asyncio.sleep(0)
        stays = asyncio.create_task(queue.reserve("stays", pages(PAGES), 10))
        await asyncio.sleep(0)
        with lock:
            queue.cancel("all", [place])
        assert queue.waiting == 1, "the first has it"
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await asyncio.wait_for(stays, 1)
        assert arena.statistics().reserved == PAGES * PAGE

    asyncio.run(wait())


def test_what_needs_no_block_waits_for_nobody(arena: Arena) -> None:
    queue = ArenaQueue(arena, threading.Lock())

    async def wait() -> None:
        await queue.reserve("all", pages(PAGES), 0)
        waits = asyncio.create_task(queue.reserve("waits", pages(1), 0.1))
        await asyncio.sleep(0)
        assert await queue.reserve("none", [], 0) == []
        with pytest.raises(ArenaFull):
            await waits

    asyncio.run(wait())


def test_who_waits_on_a_loop_that_was_closed_holds_up_nobody(arena: Arena) -> None:
    lock = threading.Lock()
    queue = ArenaQueue(arena, lock)
    gone = asyncio.new_event_loop()
    gone.run_until_complete(queue.reserve("all", pages(PAGES), 0))
    left = gone.create_task(queue.reserve("left", pages(PAGES), 10))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()

    async def wait() -> None:
        waits = asyncio.create_task(queue.reserve("waits", pages(PAGES), 10))
        await asyncio.sleep(0)
        with lock:
            for block in [*arena._blocks.values()]:
                arena.cancel(block)
        await asyncio.wait_for(waits, 1)

    asyncio.run(wait())
    left._log_destroy_pending = False  # type: ignore[attr-defined]
    left.get_coro().close()


def test_once_closed_nobody_waits_any_more(arena: Arena) -> None:
    lock = threading.Lock()
    queue = ArenaQueue(arena, lock)

    async def wait() -> None:
        (place,) = await queue.reserve("all", pages(PAGES), 0)
        waiting = [asyncio.create_task(queue.reserve(str(index), pages(1), 10)) for index in range(3)]
        await asyncio.sleep(0)
        with lock:
            queue.close()
        ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
        assert all(isinstance(end, ArenaFull) for end in ends)
        with pytest.raises(ArenaFull):
            await queue.reserve("late", pages(1), 10)
        with lock:
            queue.cancel("all", [place])
        assert arena.statistics().free == PAGES * PAGE

    asyncio.run(wait())
