"""One round: a closed loop over the workload."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from coatcheck.bench.engine.driver import Heard
from coatcheck.bench.engine.rounds import run_round
from coatcheck.bench.support.turns import rotated

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeDriver:
    """Answers after a while; counts how many ask at once."""

    prompt_tokens = 0

    def __init__(self, error_at: int = -1) -> None:
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0
        self.error_at = error_at

    def payload_bytes(self, strategy: str) -> int:
        return 0

    def pids(self) -> dict[str, int]:
        return {"rank0": os.getppid(), "rank1": 2**22 + 1}  # the second one has died

    async def ask(self, index: int, strategy: str) -> Heard:
        self.asked.append(index)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        return Heard(f"{strategy}{index}", said=str(index), error="broken" if index == self.error_at else None)


async def test_the_whole_workload_in_order_so_many_at_once() -> None:
    driver, done = FakeDriver(), []
    raw = await run_round(driver, "dict-inline", 3, 10, 4, lambda: done.append(1))
    assert driver.asked == list(range(10))
    assert driver.most_at_once == 4
    assert len(done) == 10
    assert [heard.name for heard in raw.heard] == [f"dict-inline{index}" for index in range(10)]
    assert 0.03 <= raw.seconds < 5
    assert raw.start <= time.monotonic() - raw.seconds
    assert "rank1" not in raw.cpu_seconds


async def test_tokens_have_one_sum_and_none_if_a_request_failed() -> None:
    one = await run_round(FakeDriver(), "a", 0, 3, 2, lambda: None)
    two = await run_round(FakeDriver(), "b", 1, 3, 3, lambda: None)
    more = await run_round(FakeDriver(), "a", 0, 4, 2, lambda: None)
    broken = await run_round(FakeDriver(error_at=1), "a", 0, 3, 2, lambda: None)
    assert one.said_sha256 == two.said_sha256 != more.said_sha256
    assert broken.said_sha256 == ""


def test_every_strategy_comes_first_equally_often() -> None:
    orders = [rotated(["a", "b", "c"], number) for number in range(6)]
    assert [order[0] for order in orders] == ["a", "b", "c"] * 2
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
