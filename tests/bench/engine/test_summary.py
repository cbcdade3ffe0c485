"""From samples to figures."""

from __future__ import annotations

import pytest

from coatcheck.bench.engine import summary
from coatcheck.bench.engine.driver import Heard
from coatcheck.bench.engine.result import Round
from coatcheck.bench.engine.rounds import RawRound
from coatcheck.engine.ranks.trace import Phase, Span, Thread


def span(request: str, phase: Phase, thread: Thread, start: float, wall: float, digest: str = "") -> Span:
    return Span(request, "dict-inline", phase, thread, start, wall, wall / 2, 0, digest)


def raw(number: int, latencies: dict[str, float], failed: str = "") -> RawRound:
    """Requests by name, sent at 100; two tokens each, the second one at the latency's end."""
    heard = [
        Heard(name, 100.0, [100.0 + latency / 2, 100.0 + latency], "x", "broken" if name == failed else None)
        for name, latency in latencies.items()
    ]
    return RawRound(number, "dict-inline", 99.0, 2.0, {"rank0": 1.0, "rank1": 0.5}, 0.0, heard)


ENTRY = summary.by_request(
    [
        span("a", "receive", "scheduler", 100, 1),
        span("a", "broadcast", "scheduler", 101, 2),
        span("a", "deliver", "scheduler", 102, 30),
        span("a", "materialize", "scheduler", 102, 20),
        span("a", "exchange", "scheduler", 104, 10),
        span("a", "admit", "scheduler", 105, 0.5),
        span("b", "broadcast", "scheduler", 101, 4),
        span("b", "deliver", "lane", 102, 50),
        span("b", "materialize", "lane", 102, 40),
        span("b", "exchange", "lane", 102, 10),
    ]
)
FOLLOWER = summary.by_request([span("a", "deliver", "scheduler", 102, 8), span("b", "admit", "scheduler", 102, 1)])


def test_stall_is_the_scheduler_s_time_and_counts_nothing_twice() -> None:
    round_ = summary.sampled(raw(0, {"a": 1.0, "b": 2.0}), [ENTRY, FOLLOWER])
    first, second = round_.requests
    assert first.stall_ms == [33.5, 8]
    assert first.stall_cpu_ms == [16.75, 4]
    assert second.stall_ms == [4, 1]
    assert first.broadcast_ms == [12, 0]
    assert second.broadcast_ms == [14, 0], "a broadcast counts on whatever thread it ran"
    assert first.materialize_ms == [20, None]
    assert second.materialize_ms == [40, None]
    assert (first.sent, first.latency_ms, first.ttft_ms, first.itl_ms) == (1.0, 1000, 500, [500])
    assert {(stall.rank, stall.index, stall.phase, stall.start) for stall in round_.stalls} == {
        (0, 0, "receive", 1),
        (0, 0, "broadcast", 2),
        (0, 0, "deliver", 3),
        (0, 0, "admit", 6),
        (0, 1, "broadcast", 2),
        (1, 0, "deliver", 3),
        (1, 1, "admit", 3),
    }


def test_a_failed_request_counts_as_failed_and_in_no_quantile() -> None:
    rounds = [summary.sampled(raw(0, {"a": 1.0, "b": 9.0}, failed="b"), [ENTRY, FOLLOWER])]
    latency = summary.quantiles(rounds, lambda request: [request.latency_ms])
    assert latency is not None
    assert latency.p99 == 1000
    assert summary.failures(rounds) == {"broken": 1}


def test_figures_are_medians_over_rounds_with_the_smallest_and_largest() -> None:
    rounds = [summary.sampled(raw(n, {"a": latency}), [ENTRY, FOLLOWER]) for n, latency in enumerate((1, 5, 2))]
    latency = summary.quantiles(rounds, lambda request: [request.latency_ms])
    assert latency is not None
    assert (latency.p50, latency.p50_interval) == (2000, (1000, 5000))
    assert summary.over_rounds(rounds, lambda r: r.seconds) == (2.0, (2.0, 2.0))


def test_stalls_go_by_role() -> None:
    rounds = [summary.sampled(raw(0, {"a": 1.0}), [ENTRY, FOLLOWER])]
    by_role = summary.stall_by_role(rounds, 2)
    assert by_role.entry is not None
    assert by_role.follower is not None
    assert (by_role.entry.p50, by_role.entry.cpu_p50, by_role.follower.p50) == (33.5, 16.75, 8)
    assert summary.stall_by_role(rounds, 1).follower is None
    materialize = summary.by_rank(rounds, 2, lambda request: request.materialize_ms)
    assert list(materialize) == ["0"], "a rank that does not materialize has no figure"


def test_nothing_comes_of_nothing() -> None:
    rounds: list[Round] = [summary.sampled(raw(0, {"a": 1.0}, failed="a"), [ENTRY, FOLLOWER])]
    assert summary.quantiles(rounds, lambda request: [request.latency_ms]) is None
    assert summary.stall_by_role(rounds, 2).entry is None


@pytest.mark.parametrize("missing", ["", "b"])
def test_inputs_have_a_digest_only_if_every_request_was_verified(missing: str) -> None:
    spans = [span(name, "verify", "scheduler", 0, 0, digest=f"of {name}") for name in "ab" if name != missing]
    found = summary.digest([summary.by_request(spans)], raw(0, {"a": 1.0, "b": 1.0}))
    assert bool(found) == (missing == "")
