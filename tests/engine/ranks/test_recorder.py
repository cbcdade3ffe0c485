"""What a rank measures of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coatcheck.engine.ranks import trace
from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.ranks.telemetry import take
from coatcheck.engine.ranks.trace import Trace
from coatcheck.engine.records import Arrived, Sampling
from coatcheck.engine.strategies.table import strategy_named
from coatcheck.intake.records import Item, Tensor
from coatcheck.stopwatch import Spent, Stopwatch


def arrived(name: str, patches: int, strategy: str = "dict-inline") -> Arrived:
    item = Item(Tensor(0, (patches, 10), "float32"), (1, 1, patches), 0, 1)
    return Arrived(name, strategy, (1,), (item,), Sampling(1))


def value(recorder: Recorder, name: str, **labels: str) -> float | None:
    return recorder.registry.get_sample_value(f"coatcheck_{name}", labels)


def test_a_stopwatch_tells_work_from_waiting() -> None:
    waited = Stopwatch()
    time.sleep(0.05)
    rest = waited.stop()
    assert rest.wall >= 0.05
    assert rest.cpu < 0.02
    worked = Stopwatch()
    while worked.stop().cpu < 0.02:
        pass
    assert worked.stop().wall >= 0.02


def test_the_stall_of_a_request_is_the_sum_of_its_phases() -> None:
    recorder = Recorder()
    one = arrived("one", 10)
    recorder.received(one, Spent(0, 1, 0.5))
    recorder.broadcast([one], Spent(1, 2, 0.25))
    recorder.delivered(one, strategy_named("dict-inline"), Spent(3, 4, 3), Spent(3, 3.5, 3), 0)
    recorder.admitted("one", "dict-inline", 7, Spent(9, 8, 4))
    recorder.returned("one", Spent(20, 16, 8))
    assert value(recorder, "stall_seconds_sum", strategy="dict-inline") is None, "not whole before it ends"
    recorder.ended("one")
    assert value(recorder, "stall_seconds_sum", strategy="dict-inline") == 31
    assert value(recorder, "stall_cpu_seconds_sum", strategy="dict-inline") == 15.75
    assert value(recorder, "materialize_seconds_sum", strategy="dict-inline") == 3.5
    assert value(recorder, "admission_wait_seconds_sum", strategy="dict-inline") == 7
    recorder.ended("one")
    assert value(recorder, "stall_seconds_count", strategy="dict-inline") == 1


def test_a_shared_broadcast_is_split_by_bytes() -> None:
    recorder = Recorder()
    recorder.broadcast([arrived("small", 10), arrived("large", 30, "object-inline")], Spent(0, 8, 4))
    recorder.ended("small")
    recorder.ended("large")
    assert value(recorder, "stall_seconds_sum", strategy="dict-inline") == 2
    assert value(recorder, "stall_seconds_sum", strategy="object-inline") == 6
    assert value(recorder, "broadcast_bytes_sum", carrier="object", collective="plan") == 30 * 10 * 4


def test_text_beside_an_image_has_no_part_in_its_broadcast() -> None:
    recorder = Recorder()
    text = Arrived("text", "dict-inline", (1,), (), Sampling(1))
    recorder.broadcast([text, arrived("image", 10, "object-inline")], Spent(0, 8, 4))
    recorder.ended("text")
    recorder.ended("image")
    assert value(recorder, "stall_seconds_count", strategy="dict-inline") is None
    assert value(recorder, "stall_seconds_sum", strategy="object-inline") == 8


def test_work_in_the_lane_is_no_stall() -> None:
    recorder = Recorder()
    one = arrived("one", 10, "object-background")
    recorder.delivered(one, strategy_named("object-background"), Spent(0, 5, 1), Spent(0, 2, 1), 4711)
    recorder.admitted("one", "object-background", 0, Spent(9, 1, 1))
    recorder.ended("one")
    assert value(recorder, "stall_seconds_sum", strategy="object-background") == 1
    assert value(recorder, "broadcast_seconds_sum", carrier="object", collective="exchange") == 3
    assert value(recorder, "broadcast_bytes_sum", carrier="object", collective="exchange") == 4711


def test_a_request_that_was_never_admitted_is_counted_and_forgotten() -> None:
    recorder = Recorder()
    recorder.received(arrived("one", 1), Spent(0, 1, 1))
    recorder.ended("one")
    recorder.ended("one")
    recorder.ended("never heard of")
    assert value(recorder, "stall_seconds_count", strategy="dict-inline") == 1


def test_a_snapshot_has_every_value_and_no_times_of_creation() -> None:
    recorder = Recorder()
    recorder.gauge("lane_depth", "depth", lambda: 3)
    recorder.step(Spent(0, 0.5, 0.5))
    samples = {
        (sample.name, sample.labels): sample.value
        for family in take(2, recorder.registry).families
        for sample in family.samples
    }
    assert samples["coatcheck_lane_depth", ()] == 3
    assert samples["coatcheck_step_seconds_sum", ()] == 0.5
    assert samples["coatcheck_step_seconds_bucket", (("le", "+Inf"),)] == 1
    assert not [name for name, _ in samples if name.endswith("_created")]


def test_a_trace_keeps_every_span(tmp_path: Path) -> None:
    written = Trace(str(tmp_path), 1)
    recorder = Recorder(written)
    one = arrived("one", 10)
    recorder.broadcast([one], Spent(1, 0.002, 0.001))
    recorder.delivered(one, strategy_named("dict-inline"), Spent(3, 4, 3), Spent(3, 3.5, 3), 0)
    recorder.admitted("one", "dict-inline", 7, Spent(9, 8, 4))
    recorder.returned("one", Spent(20, 16, 8))
    written.close()
    spans = trace.read(tmp_path, 1)
    assert [(span.phase, span.thread) for span in spans] == [
        ("broadcast", "scheduler"),
        ("deliver", "scheduler"),
        ("materialize", "scheduler"),
        ("admit", "scheduler"),
        ("return", "scheduler"),
    ]
    assert spans[0] == trace.Span("one", "dict-inline", "broadcast", "scheduler", 1, 2.0, 1.0, 400)


def test_a_trace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Trace(str(tmp_path / "missing"), 0)
