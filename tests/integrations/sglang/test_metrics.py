"""What the plugin measures: its sums, and that they come together from several processes as SGLang reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from coatcheck.arena import Arena
from coatcheck.arena.metrics import STATES
from coatcheck.integrations.sglang import metrics, support
from coatcheck.integrations.sglang.metrics import FrontMetrics, RankMetrics

LABELS = {"strategy": "handle-background", "rank": "1"}


class Clock:
    """Stands for ``time``; a thread computes half of the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.now / 2


class Measured:
    """A rank's metrics by a clock that does not run by itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.registry = CollectorRegistry()
        self.clock = Clock()
        patch.setattr(metrics, "time", self.clock)
        self.rank = RankMetrics(1, self.registry)

    def call(self, seconds: float, *waited_s: float, lane_s: float = 0) -> None:
        """One of ``recv_requests``, of which the plugin's part takes that long and hands on so many requests.

        ``lane_s``: that the lane worked on each of them.
        """
        self.rank.start()
        self.clock.now += seconds
        self.rank.claimed([(waited, lane_s) for waited in waited_s])
        self.clock.now += 7  # SGLang's

    def of(self, name: str) -> tuple[float | None, Any]:
        """How many were observed, and their sum."""
        self.rank.write()
        read = self.registry.get_sample_value
        return read(f"coatcheck_{name}_count", LABELS), read(f"coatcheck_{name}_sum", LABELS)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


def test_a_request_s_stall_is_the_plugin_s_part_of_the_call_that_hands_it_on(measured: Measured) -> None:
    measured.call(5)
    assert measured.of("stall_seconds") == (0, 0)
    measured.call(4, 3)
    measured.call(5)
    assert measured.of("stall_seconds") == (1, 4)
    assert measured.of("stall_cpu_seconds") == (1, 2)
    assert measured.of("admission_wait_seconds") == (1, 3)


def test_requests_that_are_handed_on_at_once_share_a_call(measured: Measured) -> None:
    measured.call(6, 1, 2, 3)
    assert measured.of("stall_seconds") == (3, 6)
    read = measured.registry.get_sample_value
    below = [read("coatcheck_stall_seconds_bucket", LABELS | {"le": seconds}) for seconds in ("1.0", "2.5")]
    assert below == [0, 3]  # each has 2
    assert measured.of("admission_wait_seconds") == (3, 6)


def test_what_the_lane_took_from_the_scheduler_s_thread_is_in_the_stall(measured: Measured) -> None:
    measured.call(4, 3, 3, lane_s=0.5)
    assert measured.of("stall_seconds") == (2, 5)
    assert measured.of("stall_cpu_seconds") == (2, 2)
    assert measured.of("admission_wait_seconds") == (2, 6)


def test_waits_for_room_and_the_event_loop_s_lag_are_observed() -> None:
    registry = CollectorRegistry()
    front = FrontMetrics(registry)
    for seconds in (0.25, 0.5):
        front.waited(seconds)
        front.lag(2 * seconds)
    read = registry.get_sample_value
    assert read("coatcheck_sglang_room_wait_seconds_count") == 2
    assert read("coatcheck_sglang_room_wait_seconds_sum") == 0.75
    assert read("coatcheck_event_loop_lag_seconds_count") == 2
    assert read("coatcheck_event_loop_lag_seconds_sum") == 1.5


def test_who_waits_and_the_breaker_are_shown_as_they_are() -> None:
    registry = CollectorRegistry()
    front = FrontMetrics(registry)
    read = registry.get_sample_value
    with Arena(1 << 20) as arena:
        for waiting, aside in ((3, True), (0, False)):  # the arena as it was
            front.arena(arena.statistics(), waiting, aside)
            assert read("coatcheck_sglang_room_waiting") == waiting
            assert read("coatcheck_sglang_breaker_open") == aside


def test_the_arena_is_shown_as_it_is_and_its_counts_once() -> None:
    registry = CollectorRegistry()
    front = FrontMetrics(registry)
    arena = Arena(1 << 20)
    try:
        for request in "ab":
            block = arena.find(request, b"d" * 32) or arena.reserve(5000)
            if request == "a":
                arena.commit(request, block, 5000, b"d" * 32)
            front.arena(arena.statistics(), 0, False)
            front.arena(arena.statistics(), 0, False)
        statistics = arena.statistics()
    finally:
        arena.close()
    read = registry.get_sample_value
    shown = {state: read("coatcheck_arena_bytes", {"state": state}) for state in STATES}
    assert shown == {state: getattr(statistics, state) for state in STATES}
    assert shown["in_use"]
    assert read("coatcheck_arena_high_water_bytes") == statistics.high_water
    assert read("coatcheck_arena_reservations_total") == statistics.reservations == 1
    assert read("coatcheck_arena_hits_total") == statistics.hits == 1


PROCESS = """
import sys, time
from coatcheck.integrations.sglang import codec, arena_owner, opening, plugin, prepare, records, rollcall, targets
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.metrics import FrontMetrics, rank_metrics
assert "prometheus_client" not in sys.modules, "imported before SGLang has prepared for it"

import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
if sys.argv[2] == "front":
    metrics = FrontMetrics()
    metrics.went("carried")
    metrics.went("carried")
    metrics.arena(arena_owner.ArenaOwner(1 << 20, [], Pace(0.0)).statistics(), 2, True)
    os._exit(0)  # as a server that is killed: what was measured has been written
metrics = rank_metrics(True, int(sys.argv[2]))
for _ in range(2):
    metrics.start()
    metrics.claimed([(0.5, 0.25)])
    metrics.materialized(0.25)
time.sleep(1.5)  # until the thread has written
os._exit(0)
"""


def test_processes_measure_into_sglang_s_page(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    for role in ("front", "0", "1"):
        command = [sys.executable, "-c", PROCESS, str(tmp_path), role]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    read = registry.get_sample_value
    assert read("coatcheck_sglang_requests_total", {"way": "carried"}) == 2
    assert read("coatcheck_sglang_requests_total", {"way": "no room"}) == 0
    assert read("coatcheck_sglang_requests_total", {"way": "breaker open"}) == 0
    assert (read("coatcheck_sglang_room_waiting"), read("coatcheck_sglang_breaker_open")) == (2, 1)
    assert read("coatcheck_arena_bytes", {"state": "free"}) == 1 << 20
    assert read("coatcheck_arena_bytes", {"state": "in_use"}) == 0
    for rank in "01":
        labels = LABELS | {"rank": rank}
        for name in ("stall_seconds", "stall_cpu_seconds", "materialize_seconds", "admission_wait_seconds"):
            assert read(f"coatcheck_{name}_count", labels) == 2, name
        assert read("coatcheck_materialize_seconds_sum", labels) == 0.5
        assert read("coatcheck_admission_wait_seconds_sum", labels) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_sglang_says_whether_metrics_are_wanted(fake_sglang: pytest.MonkeyPatch, wanted: bool) -> None:
    context = sys.modules["sglang.srt.runtime_context"]
    fake_sglang.setattr(context, "get_observability", lambda: SimpleNamespace(enable_metrics=wanted))
    assert support.metrics_wanted() is wanted
