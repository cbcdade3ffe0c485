"""Figures as text."""

from __future__ import annotations

import msgspec
import pytest

from coatcheck.bench.engine.result import Report
from coatcheck.bench.engine.rows import ROWS, failures, labels, rows, workload
from coatcheck.bench.support.cells import number, spread
from tests.bench.conftest import failed_run, make_report, make_run


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.0123, "0.012"), (0.0996, "0.10"), (1.234, "1.23"), (9.994, "9.99"), (9.996, "10.0")),
        *((99.94, "99.9"), (99.96, "100"), (12345.6, "12346")),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_an_interval_without_width_is_left_out() -> None:
    assert spread(2, (1, 3)) == "2.00 [1.00–3.00]"
    assert spread(2, (2, 2)) == "2.00"


def test_labels_name_what_differs_and_the_workload_what_does_not(report: Report) -> None:
    assert labels(report)[:3] == ["object-inline, 2 ranks", "dict-inline, 2 ranks", "dict-inline, 4 ranks"]
    assert "ranks" not in workload(report)
    same = make_report([make_run("object-inline"), failed_run()])
    assert labels(same) == ["object-inline", "handle-inline"]
    assert workload(same) == (
        "2 ranks, 4 at once, 2 images of 1024x768, input tensors, runner model, prompts of 2070 tokens, "
        "answers of 16, 3 rounds of 12 requests"
    )


def test_rows_that_apply_to_no_run_are_left_out() -> None:
    one, two = (dict(rows(make_report([make_run("object-inline", tp=tp)]))) for tp in (1, 2))
    assert len(two) == len(ROWS)
    assert set(two) - set(one) == {name for name, _ in ROWS if "follower" in name or "broadcast" in name}


def test_figures_stand_in_their_rows() -> None:
    run = make_run("object-inline")
    cells = {name: cell for name, (cell,) in rows(make_report([run]))}
    entry, follower = run.stall_ms.entry, run.stall_ms.follower
    assert entry and follower and run.itl_ms and run.latency_ms
    assert cells["requests/s"] == spread(run.qps, run.qps_interval)
    assert cells["latency p99, ms"] == number(run.latency_ms.p99)
    assert cells["between tokens p99, ms"] == number(run.itl_ms.p99)
    assert cells["stall, entry p50, ms"] == spread(entry.p50, entry.p50_interval)
    assert cells["stall, follower p99, ms"] == number(follower.p99)
    assert cells["stall, follower CPU p50, ms"] == number(follower.cpu_p50)
    broadcast = run.broadcast_ms["0"]
    assert cells["broadcast, entry p50, ms"] == spread(broadcast.p50, broadcast.p50_interval)
    assert cells["materialize by rank p50, ms"] == f"{run.materialize_ms['0'].p50:.2g} / –"
    assert cells["payload of a request, MB"] == "24.1"
    assert cells["inputs, SHA-256"] == "1c0a57c4"
    assert cells["CPU of others, % of a core"] == number(sorted(r.load for r in run.samples)[1])


def test_reasons_are_a_line_each_with_their_count() -> None:
    run = msgspec.structs.replace(make_run("dict-inline"), failed=3, failures={"a\n  b": 2, "c": 1})
    assert failures(make_report([run])) == [
        "dict-inline: 2 requests failed: a b",
        "dict-inline: 1 request failed: c",
    ]
