"""``auto`` on real ranks: what it chooses idle and under load, by option, and without an arena."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.ranks import trace
from coatcheck.engine.ranks.auto_threshold import LEAST_BYTES, MOST_BYTES
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.records import Sampling
from tests.support.engine import Engine
from tests.support.faulty_rank import LACKING
from tests.support.workload import Workload

pytestmark = [pytest.mark.timeout(180), pytest.mark.processes]

WAIT_S = 10.0
SMALL, LARGE = [(2, 2)], [(8, 8)]  # 18,816 and 301,056 bytes
KIB_20 = 20 << 10


def chosen(engine: Engine) -> dict[str, float]:
    """The entry rank's count of what auto chose."""
    return {
        dict(sample.labels)["strategy"]: sample.value
        for family in (engine.snapshots[0].families if 0 in engine.snapshots else ())
        for sample in family.samples
        if sample.name == "coatcheck_auto_total"
    }


def until_chosen(engine: Engine, count: int) -> dict[str, float]:
    deadline = time.monotonic() + WAIT_S
    while sum(chosen(engine).values()) < count:
        engine.pump(0.1)
        assert time.monotonic() < deadline, chosen(engine)
    return chosen(engine)


def spans(directory: Path, rank: int, request: str) -> set[tuple[str, str]]:
    return {(span.strategy, span.phase) for span in trace.read(directory, rank) if span.request == request}


def test_small_rides_inside_large_goes_by_handle_and_load_goes_to_the_lane(workload: Workload, tmp_path: Path) -> None:
    ranks = RankConfig(auto_inside_bytes=KIB_20, trace=str(tmp_path))
    with Engine(DEFAULT_MODEL, 2, ranks, runner="null", step_ms=2) as engine:
        assert engine.ready.auto.inside_bytes == KIB_20
        assert engine.ready.auto.timing == "measured"
        assert 0 < engine.ready.auto.handover_s < 1
        idle = [workload.request(f"idle {len(grids)} {grids}", "auto", grids) for grids in ([], SMALL, LARGE)]
        for request in idle:  # one after the other: nobody is delayed
            engine.submit(request.arrived, request.frames)
            (result,) = engine.wait(request.arrived.request)
            assert result.digest == workload.digest(request)
        assert until_chosen(engine, 3) == {"dict-inline": 2, "handle-inline": 1}
        running = workload.request("running", "auto", LARGE, sampling=Sampling(500))
        engine.submit(running.arrived, running.frames)
        while len(engine.results["running"].tokens) < 2:
            assert engine.pump(30)
        loaded = [workload.request(f"loaded {grids}", "auto", grids) for grids in ([], SMALL, LARGE)]
        for request in loaded:
            engine.submit(request.arrived, request.frames)
            (result,) = engine.wait(request.arrived.request)
            assert result.digest == workload.digest(request)
        assert not engine.results["running"].ended, "nothing ran beside them any more"
        engine.abort("running")
        engine.wait("running")
        assert until_chosen(engine, 7) == {
            "dict-inline": 3,
            "handle-inline": 2,
            "dict-background": 1,
            "handle-background": 1,
        }
    for rank in range(2):
        for name, carrier in zip(
            [request.arrived.request for request in idle], ("dict", "dict", "handle"), strict=True
        ):
            seen = spans(tmp_path, rank, name)
            assert (f"{carrier}-inline", "materialize") in seen
            assert "exchange" not in {phase for _, phase in seen}, "a collective of its own"
            assert ((f"{carrier}-inline", "broadcast") in seen) == (name == f"idle 1 {SMALL}")


def test_without_options_all_is_measured(workload: Workload) -> None:
    with Engine(DEFAULT_MODEL, 2, runner="null") as engine:
        inside = engine.ready.auto.inside_bytes
        assert inside is not None
        assert LEAST_BYTES <= inside <= MOST_BYTES
        assert engine.ready.auto.handover_s > 0


def test_options_leave_nothing_to_measure(workload: Workload) -> None:
    with Engine(DEFAULT_MODEL, 1, RankConfig(auto_inside_bytes=0, auto_timing="background"), runner="null") as engine:
        assert (engine.ready.auto.inside_bytes, engine.ready.auto.timing) == (0, "background")
        assert engine.ready.auto.handover_s == 0, "measured for nothing"
        request = workload.request("small", "auto", SMALL)
        engine.submit(request.arrived, request.frames)
        engine.wait("small")
        assert until_chosen(engine, 1) == {"handle-background": 1}


def test_where_a_rank_cannot_take_handles_everything_rides(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LACKING, "handle@1")
    with Engine(DEFAULT_MODEL, 2, runner="null") as engine:  # all that it measures, it measures without handles
        assert engine.ready.auto.inside_bytes is None
        request = workload.request("large", "auto", LARGE)
        engine.submit(request.arrived, request.frames)
        (result,) = engine.wait("large")
        assert result.digest == workload.digest(request)
        assert until_chosen(engine, 1) == {"dict-inline": 1}
