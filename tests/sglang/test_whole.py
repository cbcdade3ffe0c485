"""Mode whole: what it makes of requests is what SGLang makes of them; and what happens when its workers die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.sglang.questions import Client
from benchmarks.sglang.server import CPU_ENVIRONMENT, SglangServer
from tests.sglang.conftest import Page, Servers, until_idle, until_whole
from training.evaluate import BUCKETS, Sample, held_out

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
COMPARE_S = 200.0


@pytest.mark.parametrize(
    ("model_type", "backend"),
    [("qwen2_vl", "pil"), ("qwen2_5_vl", "auto"), ("qwen3_vl", "auto"), ("qwen3_vl_moe", "pil"), ("qwen3_5", "auto")],
)
def test_ids_positions_features_and_errors_are_sglang_s_to_the_bit(
    model_type: str, backend: str, request: pytest.FixtureRequest
) -> None:
    peers = request.config.getoption("--peers")
    command = [peers / "sglang" / "bin" / "python", "-W", "ignore", "-m", "tests.support.sglang_whole"]
    environment = {**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(
        [*command, model_type, backend],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMPARE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    equal = json.loads(done.stdout.splitlines()[-1])
    assert sum(equal.values()) > 90
    named = {"format jpeg cmyk", "format png 16 bit", "source http URL", "identity", "broken: truncated png"}
    assert named <= equal.keys()


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, servers: Servers) -> Iterator[SglangServer]:
    """With two workers, and nothing else running."""
    servers.close()
    environment = {"COATCHECK_SGLANG_WORKERS": "2"}
    with SglangServer("--enable-metrics", environment=environment, peers=request.config.getoption("--peers")) as server:
        until_whole(server)
        yield server


def processes(server: SglangServer, name: str) -> list[psutil.Process]:
    """By their name, a pattern."""
    return [one for one in server.family() if re.fullmatch(name, one.name())]


WORKER, FORKS_THEM = r"coatcheck-work\d", "coatcheck-works"


async def rightly(opened: Client, samples: list[Sample]) -> None:
    gate = asyncio.Semaphore(8)

    async def one(asked: Sample) -> None:
        async with gate:
            assert (await opened.ask(asked))[0].text == asked.answer

    await asyncio.gather(*map(one, samples))


@pytest.mark.parametrize(
    ("name", "killed"),
    [(WORKER, 1), (WORKER, 2), (FORKS_THEM, 1)],
    ids=["one", "all", "what forks them, and so all"],
)
async def test_a_worker_s_death_costs_nobody_an_answer(whole: SglangServer, name: str, killed: int) -> None:
    before, seed = Page(whole.url), 40 + 2 * killed + len(name)
    assert (len(processes(whole, WORKER)), len(processes(whole, FORKS_THEM))) == (2, 1)
    async with Client(whole.url) as opened:
        asking = asyncio.create_task(rightly(opened, list(held_out(24, seed, BUCKETS))))
        await asyncio.sleep(1.0)
        dead = processes(whole, name)[:killed]
        assert len(dead) == killed
        for worker in dead:
            os.kill(worker.pid, signal.SIGKILL)
        await asking
        until_whole(whole)
        await rightly(opened, list(held_out(4, seed + 1, BUCKETS)))
        await until_idle(opened)
    after = Page(whole.url)
    assert after.whole >= before.whole + 4, "others have taken their place"
    assert not {worker.pid for worker in dead} & {worker.pid for worker in processes(whole, name)}
    await until_free(whole)


async def test_images_that_nobody_waits_for_leave_nothing_behind(whole: SglangServer) -> None:
    async with Client(whole.url) as opened:
        for delay in (0.0, 0.01, 0.05, 0.2, 0.5):
            asking = asyncio.create_task(opened.ask(*held_out(1, 60, BUCKETS)))
            await asyncio.sleep(delay)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until_idle(opened)
        await rightly(opened, list(held_out(2, 61, BUCKETS)))
        await until_idle(opened)
    await until_free(whole)


async def until_free(server: SglangServer) -> None:
    """Nothing in the arena is reserved, in use, or in quarantine."""
    for _ in range(100):
        page = Page(server.url)
        held = {
            state: page.value("coatcheck_arena_bytes", state=state) for state in ("reserved", "in_use", "quarantined")
        }
        if not any(held.values()):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(held)
