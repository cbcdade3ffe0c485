"""What the plugin shows in a real server's ``/metrics``."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.sglang.questions import Client
from benchmarks.sglang.server import SglangServer
from tests.sglang.conftest import SERVERS, Page
from training.evaluate import held_out

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

RANKS = ("0", "1")
HELD = ("reserved", "in_use", "quarantined")
BY_RANK = ("stall_seconds", "stall_cpu_seconds", "materialize_seconds", "admission_wait_seconds")
SHOWN_S = 20.0  # much is written once a second


def settled(url: str) -> Page:
    """The page once it has been the same for longer than anything is held back, and nothing of the arena is in use."""
    deadline = time.monotonic() + SHOWN_S
    page, since = Page(url), time.monotonic()
    while any(page.value("coatcheck_arena_bytes", state=state) for state in HELD) or time.monotonic() - since < 2.5:
        assert time.monotonic() < deadline, f"not given back after {SHOWN_S} s"
        time.sleep(0.25)
        last, page = page, Page(url)
        if _settling(page) != _settling(last):
            since = time.monotonic()
    return page


def _settling(page: Page) -> dict[Any, float]:
    """All of ours but what is looked at all the time."""
    return {sample: value for sample, value in page.ours.items() if "event_loop_lag" not in sample[0]}


def counted(page: Page, rank: str) -> list[float]:
    """Requests in each of a rank's histograms."""
    return [page.value(f"coatcheck_{name}_count", strategy="handle-background", rank=rank) for name in BY_RANK]


async def test_every_request_is_counted_on_every_rank(server: SglangServer, name: str) -> None:
    pictures = list(held_out(3, 21, kinds=("describe",)))
    async with Client(server.url) as opened:
        await opened.ask(pictures[0])  # in a new server, the ranks attach meanwhile
        before = settled(server.url)
        for picture in (*pictures[1:], pictures[1]):
            await opened.ask(picture)
    after = settled(server.url)
    assert {"sglang:time_to_first_token_seconds_count", "sglang:num_running_reqs"} <= after.names  # SGLang's own
    if not SERVERS[name]:
        assert not after.ours
        return
    assert after.carried - before.carried == 3
    for rank in RANKS:
        assert [now - then for now, then in zip(counted(after, rank), counted(before, rank), strict=True)] == [3] * 4
    assert after.value("coatcheck_arena_high_water_bytes")
    assert after.value("coatcheck_arena_bytes", state="cached")
    assert after.value("coatcheck_event_loop_lag_seconds_count")
    assert after.value("coatcheck_sglang_breaker_open") == 0
    for counter, more in (("reservations", 2), ("hits", 1)):
        of = f"coatcheck_arena_{counter}_total"
        assert after.value(of) - before.value(of) == more, counter
