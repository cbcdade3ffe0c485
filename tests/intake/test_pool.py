"""The pool of workers: life, death and time."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from coatcheck.errors import BadRequest, Overloaded, WorkerFailed
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.pool import WorkerPool
from tests.support.pool_workers import command
from tests.support.processes import runs

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool(kind: str = "obeys", **options: Any) -> AsyncIterator[WorkerPool]:
    config = PoolConfig(**{"workers": 1, **options})
    made = WorkerPool(config, "none:None", "", command=command(kind))
    await made.start()
    try:
        yield made
    finally:
        await made.close()
        await made.close()


async def test_jobs_and_errors() -> None:
    async with pool() as workers:
        await workers.ready(10)
        assert (await workers.process(b"x" * 100_000))[0].result == b"100000"
        with pytest.raises(BadRequest, match="no") as caught:
            await workers.process(b"refuse")
        assert (caught.value.param, caught.value.code) == ("p", "c")
        with pytest.raises(WorkerFailed, match="oops"):
            await workers.process(b"fail")
        statistics = workers.statistics()
        assert (statistics.jobs, statistics.deaths, statistics.ready, statistics.busy) == (3, 0, 1, 0)


async def test_many_jobs_over_two_workers() -> None:
    async with pool(workers=2) as workers:
        answers = await asyncio.gather(*[workers.process(b"x" * n) for n in range(1, 60)])
        assert [done.result for done, _ in answers] == [b"%d" % n for n in range(1, 60)]


@pytest.mark.parametrize("body", [b"die", b"nonsense", b"other"])
async def test_a_worker_that_dies_or_errs_costs_its_job_only(body: bytes) -> None:
    async with pool() as workers:
        with pytest.raises(WorkerFailed, match="again"):
            await workers.process(body)
        assert (await workers.process(b"ab"))[0].result == b"2"
        assert workers.statistics().deaths == 1


async def test_a_job_past_its_limit_is_ended_by_force() -> None:
    async with pool(job_timeout_s=0.2) as workers:
        with pytest.raises(WorkerFailed, match="longer than"):
            await workers.process(b"sleep")
        assert (await workers.process(b"ab"))[0].result == b"2"


async def test_cancelled_jobs() -> None:
    async with pool() as workers:
        await workers.ready(10)
        at_work = asyncio.create_task(workers.process(b"nap"))
        waiting = asyncio.create_task(workers.process(b"die"))
        await asyncio.sleep(0.1)
        assert (workers.statistics().busy, workers.statistics().waiting) == (1, 1)
        waiting.cancel()
        at_work.cancel()
        await asyncio.wait([waiting, at_work])
        assert workers.statistics().waiting == 0
        assert (await workers.process(b"ab"))[0].result == b"2"  # after the nap; nobody died
        assert workers.statistics().deaths == 0


async def test_too_many_waiting() -> None:
    async with pool(max_waiting=2) as workers:
        jobs = [asyncio.create_task(workers.process(b"ab")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await workers.process(b"ab")
        await asyncio.gather(*jobs)


@pytest.mark.parametrize(("kind", "why"), [("no_workers", "status 7"), ("dies", "it ended")])
async def test_workers_that_cannot_start(kind: str, why: str) -> None:
    async with pool(kind, workers=2) as workers:
        waiting = asyncio.create_task(workers.process(b"ab"))
        with pytest.raises(WorkerFailed, match=why):
            await workers.ready(15)
        with pytest.raises(WorkerFailed):
            await waiting
        with pytest.raises(WorkerFailed):
            await workers.process(b"ab")
        assert not workers.is_ready


@pytest.mark.parametrize("kind", ["never_ready", "stuck"])
async def test_a_worker_that_never_gets_ready(kind: str) -> None:
    async with pool(kind, worker_start_timeout_s=0.1) as workers:
        with pytest.raises(WorkerFailed):
            await workers.ready(15)


async def test_close_leaves_no_process_and_fails_what_is_open() -> None:
    async with pool(workers=2) as workers:
        jobs = [asyncio.create_task(workers.process(body)) for body in (b"sleep", b"sleep", b"ab")]
        await workers.ready(10)
        async with asyncio.timeout(15):
            while workers.statistics().busy < 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        pids = [worker.process.pid for worker in workers._workers.values()]
        await workers.close()
        for job in jobs:
            with pytest.raises(WorkerFailed, match="shut down"):
                await job
        assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_worker_leaves_signals_to_its_parent() -> None:
    async with pool() as workers:
        await workers.ready(10)
        (worker,) = workers._workers.values()
        os.kill(worker.process.pid, signal.SIGTERM)
        os.kill(worker.process.pid, signal.SIGINT)
        assert (await workers.process(b"ab"))[0].result == b"2"


PARENT = """
import asyncio, sys
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.pool import WorkerPool
from tests.support.pool_workers import command
async def main():
    pool = WorkerPool(PoolConfig(), "none:None", "", command=command("obeys"))
    await pool.start()
    await pool.ready(10)
    print(*[worker.process.pid for worker in pool._workers.values()], flush=True)
    await pool.process(b"sleep")
asyncio.run(main())
"""


async def test_workers_die_with_their_parent() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    await asyncio.sleep(0.1)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(5):
        while any(map(runs, pids)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
