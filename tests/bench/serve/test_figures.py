"""Samples to figures: what counts, and what does not."""

from __future__ import annotations

import msgspec
import pytest

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.figures import run_of
from coatcheck.bench.serve.records import Asked, Seen
from coatcheck.bench.serve.result import Report, Run

LOAD = Load(clients=2, output_tokens=4, window_s=10.0)


def one(sent: float, ended: float, tokens: int = 4, error: str = "", first: float | None = None) -> Asked:
    return Asked(sent, ended, ended if first is None else first, tokens, tokens, True, error)


def run(loaded: Seen, observed: Seen | None = None) -> Run:
    return run_of(LOAD, loaded, observed or Seen(), contender="a", round=1, tp=2, extra={})


def test_a_request_counts_where_it_ended_in_the_window() -> None:
    made = run(Seen(asked=[one(-3, -1), one(-1, 1, first=0.0), one(2, 4, 3), one(9, 9.5, error="500: x"), one(9, 11)]))
    assert made.requests_per_s == pytest.approx(0.15)  # half of one's time, and one whole, in ten seconds
    assert made.samples["sent_ms"] == [-1000, 2000] and made.samples["latency_ms"] == [2000, 2000]
    assert made.samples["ttft_ms"] == [1000, 2000]
    assert (made.tokens_expected, made.tokens_received) == (8, 7)
    assert made.errors == {"500: x": 1}


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.9])
def test_clients_in_step_are_not_counted_by_the_wave(shift: float) -> None:
    """Two clients, two seconds a request: one request a second, wherever the window begins."""
    ends = [shift + 2 * wave for wave in range(6)]
    asked = [one(end - 2, end) for end in ends if end <= 10 for _ in range(2)]
    last = max(ended for ended in ends if ended <= 10)
    made = run(Seen(asked=asked, open_s=[10 - last] * 2 if last < 10 else []))
    assert made.requests_per_s == pytest.approx(1.0)


def test_without_a_sample_there_is_no_figure() -> None:
    made = run(Seen())
    blocks = (made.latency_ms, made.ttft_ms, made.text_gap_ms, made.probe_ms, made.health_ms)
    assert all(block is None for block in blocks)
    assert made.errors == {"no image request ended in the window": 1}
    assert msgspec.to_builtins(made)["latency_ms"] is None


def test_what_is_open_at_the_end_counts_if_it_is_the_longest() -> None:
    seen = Seen(
        gaps=[(1, 0.1), (2, 0.3), (-1, 5), (11, 5)],
        open_gaps=[(10, 0.2), (10, 0.9)],
        probes=[(1, 0.5), (9.8, 0.5)],
        open_probes=[(2, 8)],
    )
    made = run(Seen(), seen)
    assert made.text_gap_ms is not None and made.probe_ms is not None
    assert made.samples["text_gap_ms"] == [100, 300, 900] and made.text_gap_ms.max == 900
    assert made.samples["probe_ms"] == [500, 8000] and made.probe_ms.max == 8000
    assert made.samples["probe_at_ms"] == [1000, 2000]


def test_quantiles() -> None:
    made = run(Seen(asked=[one(0, 0.001 * at) for at in range(1, 101)]))
    assert made.latency_ms is not None
    assert made.latency_ms.p50 == 50.5 and made.latency_ms.p99 == pytest.approx(99.01)


def test_a_report_survives_json() -> None:
    made = run(Seen(asked=[one(0, 1, first=None), Asked(0, 1, None, 0, 0, False, "")]), Seen(gaps=[(1, 0.1)]))
    report = Report(1, {}, LOAD.as_json(), [made])
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert Load.of_json(report.options) == LOAD
