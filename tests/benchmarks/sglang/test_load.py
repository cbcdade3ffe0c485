"""What the measurements on live SGLang servers make of their samples."""

from __future__ import annotations

import pytest

from benchmarks.sglang import memory as sglang_memory
from benchmarks.sglang import small_arena as sglang_small_arena
from benchmarks.sglang.memory import Run, Sample
from benchmarks.sglang.small_arena import PLUGIN, WITHOUT, Round
from benchmarks.support.footprint import Footprint

GB = 10**9


def look(seconds: float, gigabytes: float, running: int | None, waiting: int | None, answered: int = 0) -> Sample:
    pss = {"tokenizer": GB, "scheduler": round((gigabytes - 1) * GB)}
    found = Footprint(pss, round(gigabytes * GB) - GB // 2, GB // 2)
    return Sample(seconds, found, 8 * GB, running, waiting, answered)


def run(contender: str, factor: float = 1) -> Run:
    """10 requests: 2 GB idle, 7 at the peak, 6 at the end."""
    samples = [
        *(look(-2, 2 * factor, 0, 0), look(-1, 2 * factor, 0, 0)),
        *(look(1, 4, None, None), look(2, 4.5, 2, 3), look(3, 5, 1, 8), look(4, 7 * factor, 5, 4)),
        *(look(30, 6 * factor, 10, 0), look(40, 6 * factor, 10, 0), look(45, 6 * factor, 10, 0), look(46, 3, 0, 0, 10)),
    ]
    return Run(contender, 10, samples, "all was there", [], look(60, 2.5 * factor, 0, 0, 10))


def test_memory_is_told_by_stages() -> None:
    found = run("without")
    stages = {name: found.total(name) / GB for name in sglang_memory.STAGES}
    # One whose prefill is under way is counted by nobody; the end is before answers came.
    assert stages == {"idle": 2, "all sent": 5, "peak": 7, "end": 6, "after": 2.5}
    row = sglang_memory.table([found]).splitlines()[2]
    assert row == "| without | 2.00 | 5.00 | 7.00 | 6.00 | 2.50 | 10 / 0 | 1.00 | 5.00 | 0.50 |"


def test_memory_that_was_never_all_in_flight_is_not_called_so() -> None:
    found = run("without")
    never = Run("without", 11, [s for s in found.samples if s.running != 10], "600 s were over", [])
    assert never.stage("all sent") is None
    assert "| - |" in sglang_memory.table([never])


def test_memory_is_compared_as_a_whole_and_beyond_idle() -> None:
    found = sglang_memory.ratios([run("without"), run("with the plugin", 1.5)])
    assert found == pytest.approx(
        {"peak": 1.5, "end": 1.5, "peak, beyond idle": 7.5 / 5, "end, beyond idle": 6 / 4}, rel=1e-6
    )
    assert sglang_memory.ratios([run("without")]) == {}


def part(number: int, contender: str, seconds: float, wrong: list[int]) -> Round:
    return Round(number, contender, seconds, [0.5] * 40, wrong, {}, 0.02, 1.0)


def test_throughput_is_compared_round_by_round() -> None:
    rounds = [
        *(part(1, WITHOUT, 20, [3]), part(1, PLUGIN, 40, [3, 4])),
        *(part(2, PLUGIN, 20, []), part(2, WITHOUT, 16, [7])),
    ]
    assert sglang_small_arena.ratios(rounds) == [0.5, 0.8]
    assert sglang_small_arena.worse(rounds) == [(1, 4)]
    rows = sglang_small_arena.table(rounds).splitlines()
    assert rows[2].startswith("| without | 2.25 (2.00 to 2.50) | 0.5 | 0.5 | 2 | 0 | 0.02 |")
    assert rows[3].startswith("| with the plugin | 1.50 (1.00 to 2.00) | 0.5 | 0.5 | 2 | 0 |")
