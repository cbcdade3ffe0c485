"""A burst of large requests is taken in piece by piece: no rank holds more than it may, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.ranks import trace
from coatcheck.engine.ranks.config import RankConfig
from tests.support.engine import Engine
from tests.support.workload import Workload

pytestmark = [pytest.mark.timeout(120), pytest.mark.processes]

GRID = (16, 16)
PAYLOAD = 16 * 16 * 1176 * 4
ROOM = 2  # requests


@pytest.mark.parametrize("strategy", ["dict-inline", "object-background"])
def test_a_burst_is_taken_in_piece_by_piece(workload: Workload, tmp_path: Path, strategy: str) -> None:
    # The first is slow and one runs at a time: without the bound all would have arrived by then.
    ranks = RankConfig(ready_timeout_s=5, waiting_payload_bytes=ROOM * PAYLOAD, trace=str(tmp_path))
    with Engine(DEFAULT_MODEL, 2, ranks, max_running=1, runner="null") as engine:
        names = ["fault=slow@0", *(f"burst{index}" for index in range(7))]
        requests = [workload.request(name, strategy, [GRID], seed=seed) for seed, name in enumerate(names)]
        for request in requests:
            engine.submit(request.arrived, request.frames)
        engine.abort("burst5")  # not taken in yet
        results = engine.wait(*names)
        assert [result.finish for result in results] == ["abort" if name == "burst5" else "length" for name in names]
        assert results[3].digest == workload.digest(requests[3])
    for rank in range(2):
        spans = trace.read(tmp_path, rank)
        changes = [(span.start, 1) for span in spans if span.phase == "broadcast"]
        changes += [(span.start, -1) for span in spans if span.phase == "admit"]
        held = [sum(change for _, change in sorted(changes)[: at + 1]) for at in range(len(changes))]
        assert max(held) <= ROOM + 1, "a plan's arrivals come before what it admits, hence one more"
        assert not [span for span in spans if span.request == "burst5" and span.phase == "broadcast"]


def test_one_that_is_larger_than_the_bound_is_served(workload: Workload) -> None:
    with Engine(DEFAULT_MODEL, 2, RankConfig(ready_timeout_s=5, waiting_payload_bytes=1), runner="null") as engine:
        requests = [workload.request(f"large{index}", "dict-inline", [GRID], seed=index) for index in range(3)]
        for request in requests:
            engine.submit(request.arrived, request.frames)
        results = engine.wait(*[request.arrived.request for request in requests])
        assert [result.digest for result in results] == [workload.digest(request) for request in requests]
