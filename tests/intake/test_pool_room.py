"""Jobs whose payloads go into the arena: written in place, leased, and no worker waits for room."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.arena.queue import ArenaQueue
from coatcheck.errors import ArenaFull, BadRequest, PayloadTooLarge, WorkerFailed
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.placement import Policy
from coatcheck.intake.pool import WorkerPool
from tests.support.pool_workers import command

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool(wait_s: float = 0.2, pages: int = 8, **options: Any) -> AsyncIterator[tuple[WorkerPool, Arena]]:
    config = PoolConfig(**{"workers": 1, "arena_wait_s": wait_s, **options})
    with Arena(pages * PAGE) as arena:
        queue = ArenaQueue(arena, threading.Lock())
        made = WorkerPool(config, "none:None", "", arena=arena, queue=queue, command=command("asks_for_room"))
        await made.start()
        try:
            yield made, arena
        finally:
            await made.close()


async def test_a_worker_writes_in_place_and_its_blocks_are_leased() -> None:
    async with pool() as (made, arena):
        record, frames = await made.process(b"write", policy=Policy(holder="a"))
        assert frames == []
        reader = ArenaReader(arena.address)
        handles = [item.pixels for item in record.items if isinstance(item.pixels, Handle)]
        assert [bytes(reader.view(handle)) for handle in handles] == [b"wwwww", b"wwwwww"]
        assert arena.statistics().in_use == 2 * PAGE
        arena.end("a")
        assert arena.statistics().free == 8 * PAGE
        reader.close()


@pytest.mark.parametrize("body", [b"die", b"twice", b"elsewhere", b"sleep", b"refuse"])
async def test_a_worker_s_end_costs_its_request_and_no_room(body: bytes) -> None:
    async with pool(job_timeout_s=2) as (made, arena):
        with pytest.raises((WorkerFailed, BadRequest)):
            await made.process(body, policy=Policy(holder="a"))
        arena.end("a")
        assert arena.statistics().free == 8 * PAGE, "the range of a worker that ended did not come back"
        await made.process(b"write", policy=Policy(holder="b"))
        assert arena.statistics().in_use == 2 * PAGE


async def test_no_room_in_time_is_overload_and_the_worker_lives() -> None:
    async with pool() as (made, arena):
        filled = arena.reserve(8 * PAGE)
        with pytest.raises(ArenaFull):
            await made.process(b"write", policy=Policy(holder="a"))
        arena.cancel(filled)
        await made.process(b"write", policy=Policy(holder="b"))
        assert made.statistics().deaths == 0


async def test_a_client_that_leaves_the_line_holds_up_nobody() -> None:
    async with pool(wait_s=30) as (made, arena):
        filled = arena.reserve(7 * PAGE)  # one page is left; a job wants two
        leaving = asyncio.create_task(made.process(b"write", policy=Policy(holder="a")))
        await made.ready(30)
        await asyncio.sleep(0.3)
        leaving.cancel()
        async with asyncio.timeout(5):  # its only worker is free again, long before the wait is over
            with pytest.raises(asyncio.CancelledError):
                await leaving
            waiting = asyncio.create_task(made.process(b"write", policy=Policy(holder="b")))
            await asyncio.sleep(0.1)
            arena.cancel(filled)
            await waiting
        assert arena.statistics().in_use == 2 * PAGE
        assert made.statistics().deaths == 0


async def test_waiting_for_room_is_no_time_of_the_worker_s() -> None:
    async with pool(wait_s=30, job_timeout_s=0.5) as (made, arena):
        filled = arena.reserve(8 * PAGE)
        waiting = asyncio.create_task(made.process(b"write", policy=Policy(holder="a")))
        await asyncio.sleep(1)
        arena.cancel(filled)
        async with asyncio.timeout(5):
            await waiting
        assert made.statistics().deaths == 0


async def test_a_job_that_waits_for_room_occupies_no_worker() -> None:
    async with pool(wait_s=30, workers=2) as (made, arena):
        await made.ready(30)
        filled = arena.reserve(8 * PAGE)
        waiting = [asyncio.create_task(made.process(b"write", policy=Policy(holder=str(n)))) for n in range(4)]
        async with asyncio.timeout(10):
            done, _ = await made.process(b"text", policy=Policy(holder="t"))
            assert done.result == b"text"
            while made.statistics().busy:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
            arena.cancel(filled)
            await asyncio.gather(*waiting)
        assert arena.statistics().in_use == 8 * PAGE
        assert made.statistics().deaths == 0


async def test_who_asks_for_something_else_when_it_comes_again_is_served_or_fails_in_the_end() -> None:
    async with pool(wait_s=30) as (made, arena):
        await made.ready(30)
        filled = arena.reserve(8 * PAGE)
        growing = asyncio.create_task(made.process(b"grows", policy=Policy(holder="a")))
        await asyncio.sleep(0.2)
        arena.cancel(filled)
        async with asyncio.timeout(10):
            done, _ = await growing  # it wants 7 bytes the second time
        assert len(done.items) == 2
        assert (arena.statistics().in_use, arena.statistics().reserved) == (2 * PAGE, 0)


async def test_what_can_never_fit_is_refused_and_holds_up_nobody() -> None:
    async with pool(wait_s=30, pages=1) as (made, arena):
        async with asyncio.timeout(10):
            with pytest.raises(PayloadTooLarge):
                await made.process(b"write", policy=Policy(holder="a"))
            assert (await made.process(b"text"))[0].result == b"text"
        assert arena.statistics().free == PAGE


async def test_a_pool_that_closes_fails_who_waits_for_room() -> None:
    async with pool(wait_s=30) as (made, arena):
        await made.ready(30)
        arena.reserve(8 * PAGE)
        waiting = asyncio.create_task(made.process(b"write", policy=Policy(holder="a")))
        async with asyncio.timeout(10):
            while not made._reserving:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
            await made.close()
            with pytest.raises(WorkerFailed, match="shut down"):
                await waiting
