"""Metrics before and after, and what is made of them."""

from __future__ import annotations

import psutil
import pytest

from benchmarks.gpu.counters import Usage, difference, memory, parse, summary, uncached_tokens

HISTOGRAM = "sglang:uncached_prompt_tokens_histogram"
METRICS = f"""
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
sglang:prompt_tokens_total{{is_streaming="True",model_name="m, \\"n\\""}} 2800.0
sglang:prompt_tokens_total{{is_streaming="False",model_name="m"}} 50.0
sglang:cuda_graph_passes_total{{mode="decode",pid="7"}} 5.0
{HISTOGRAM}_sum{{model_name="m"}} 2850.0
{HISTOGRAM}_count{{model_name="m"}} 4.0
{HISTOGRAM}_bucket{{le="100.0",model_name="m"}} 2.0
{HISTOGRAM}_bucket{{le="300.0",model_name="m"}} 2.0
sglang:num_queue_reqs{{model_name="m"}} 3.0
coatcheck_sglang_requests_total{{way="carried"}} 2.0
coatcheck_arena_bytes{{state="free"}} 100.0
coatcheck_stall_seconds_bucket{{le="0.1",rank="0"}} 9.0
coatcheck_stall_seconds_sum{{rank="0",strategy="handle-background"}} 0.5
"""


def test_counters_are_added_up_over_labels_but_those_that_say_something() -> None:
    assert parse(METRICS) == {
        "sglang:prompt_tokens_total": 2850.0,
        'sglang:cuda_graph_passes_total{mode="decode"}': 5.0,
        f"{HISTOGRAM}_sum": 2850.0,
        f"{HISTOGRAM}_count": 4.0,
        f'{HISTOGRAM}_bucket{{le="100.0"}}': 2.0,
        'coatcheck_sglang_requests_total{way="carried"}': 2.0,
        'coatcheck_arena_bytes{state="free"}': 100.0,
        'coatcheck_stall_seconds_sum{rank="0"}': 0.5,
    }


def test_counters_give_what_was_added_and_gauges_what_is() -> None:
    before = {"a_total": 1.0, "coatcheck_arena_bytes": 5.0}
    after = {"a_total": 4.0, "b_total": 2.0, "coatcheck_arena_bytes": 7.0}
    assert difference(before, after) == {"a_total": 3.0, "b_total": 2.0, "coatcheck_arena_bytes": 7.0}


def test_tokens_are_those_of_requests_with_pictures() -> None:
    assert uncached_tokens(parse(METRICS)) == 2850 / 2
    assert uncached_tokens({}) is None
    assert summary({})["uncached_tokens_per_request"] is None


def test_a_process_s_time_and_memory() -> None:
    me = psutil.Process()
    usage = Usage({"me": [me]})
    while sum(me.cpu_times()[:2]) - usage._before["me"]["other"] < 0.2:
        sum(range(100_000))
    assert 20 <= usage.percent("me", 1.0)["other"] < 300
    assert usage.total("me", 1.0) >= 20
    found = memory([me])
    assert 0 < found["pss_mib"] <= found["rss_mib"] == pytest.approx(me.memory_info().rss / 2**20, rel=0.2)


def test_a_process_that_has_ended_costs_nothing() -> None:
    child = psutil.Popen(["sleep", "0"])
    child.wait(10)
    usage = Usage({"it": [child]})
    assert usage.total("it", 1.0) == 0
    assert memory([child]) == {"rss_mib": 0, "pss_mib": 0}
