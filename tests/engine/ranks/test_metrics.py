"""Metrics of real ranks: every rank's stalls reach the front end, and a trace has each request on each rank."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.ranks import trace
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.records import Snapshot
from coatcheck.engine.strategies.table import STRATEGIES
from tests.support.engine import Engine
from tests.support.workload import Workload

pytestmark = [pytest.mark.timeout(180), pytest.mark.processes]

WAIT_S = 10.0
REQUESTS = 3


def stalls(snapshot: Snapshot | None) -> dict[str, float]:
    """Requests counted, by strategy."""
    return {
        dict(sample.labels)["strategy"]: sample.value
        for family in (snapshot.families if snapshot else ())
        for sample in family.samples
        if sample.name == "coatcheck_stall_seconds_count"
    }


def test_every_rank_counts_every_request(workload: Workload, tmp_path: Path) -> None:
    with Engine(DEFAULT_MODEL, 2, RankConfig(trace=str(tmp_path)), runner="null") as engine:
        names: list[str] = []
        texts: list[str] = []
        for strategy in STRATEGIES:
            for index in range(REQUESTS):
                request = workload.request(f"{strategy}-{index}", strategy, [(8, 8)])
                engine.submit(request.arrived, request.frames)
                names.append(request.arrived.request)
            text = workload.request(f"{strategy}-text", strategy)
            engine.submit(text.arrived)
            texts.append(text.arrived.request)
        engine.wait(*names, *texts)
        expected = dict.fromkeys(STRATEGIES, REQUESTS + 1)
        deadline = time.monotonic() + WAIT_S
        while any(stalls(engine.snapshots.get(rank)) != expected for rank in range(2)):
            engine.pump(0.1)
            assert time.monotonic() < deadline, {rank: stalls(engine.snapshots.get(rank)) for rank in range(2)}
    for rank in range(2):
        spans = trace.read(tmp_path, rank)
        for name in names:
            phases = {(span.phase, span.thread) for span in spans if span.request == name}
            assert (("broadcast", "scheduler") in phases) == (not name.startswith("handle"))
            assert ("admit", "scheduler") in phases
            assert ("deliver", "scheduler" if name.rsplit("-", 1)[0].endswith("inline") else "lane") in phases
            assert (("receive", "scheduler") in phases) == (rank == 0)
            assert (("exchange", "scheduler") in phases or ("exchange", "lane") in phases) == ("object" in name)
            made = [span for span in spans if span.request == name and span.phase == "materialize"]
            assert len(made) == (0 if rank and "object" in name else 1)
        for name in texts:
            phases = {(span.phase, span.thread) for span in spans if span.request == name}
            assert not {phase for phase, _ in phases} & {"exchange", "broadcast"}, "text has nothing to exchange"
            assert "materialize" in {phase for phase, _ in phases}
