"""Other processes' metrics in the front end's registry."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, generate_latest

from coatcheck.engine.http.collectors import CpuSeconds, RankSnapshots
from coatcheck.engine.records import Family, Sample, Snapshot


def snapshot(rank: int, value: float) -> Snapshot:
    sample = Sample("coatcheck_stall_seconds_sum", (("strategy", "dict-inline"),), value)
    return Snapshot(rank, (Family("coatcheck_stall_seconds", "text", "histogram", (sample,)),))


def test_samples_of_all_ranks_stand_under_one_name() -> None:
    registry = CollectorRegistry()
    registry.register(RankSnapshots(lambda: [snapshot(0, 1.5), snapshot(1, 2.5)]))
    page = generate_latest(registry).decode()
    assert page.count("# TYPE coatcheck_stall_seconds histogram") == 1
    assert 'coatcheck_stall_seconds_sum{rank="0",strategy="dict-inline"} 1.5' in page
    assert 'coatcheck_stall_seconds_sum{rank="1",strategy="dict-inline"} 2.5' in page


def test_cpu_time_is_told_by_process_and_the_dead_are_left_out() -> None:
    registry = CollectorRegistry()
    registry.register(CpuSeconds(lambda: {"front-end": os.getpid(), "worker0": 2**22 + 1}))
    spent = registry.get_sample_value("coatcheck_cpu_seconds_total", {"process": "front-end"})
    assert spent is not None
    assert 0 < spent <= sum(os.times()[:2]) + 0.02
    assert registry.get_sample_value("coatcheck_cpu_seconds_total", {"process": "worker0"}) is None
