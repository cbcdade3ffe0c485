"""From what the processes of a team measured to samples, and from samples to figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from coatcheck.bench.handoff.config import PATCH_BYTES
from coatcheck.bench.handoff.result import HandoffRun, Quantiles, Sample, Stall, StallByRole, Step

RELEASE = "release"


def sampled(number: int, written: Mapping[str, Any], taken: Sequence[Mapping[str, Any]]) -> Sample:
    """``written``: the front end's answer, ``taken``: the ranks', in seconds."""
    begins = {name: begin for name, begin, _, _ in reversed(taken[0]["steps"])} if taken else {}
    steps = []
    for rank, own in enumerate(taken):
        made = [
            Step(name, _ms(end - (begins.get(name, begin) if rank else begin)), _ms(cpu))
            for name, begin, end, cpu in own["steps"]
        ]
        steps.append([*made, Step(RELEASE, *map(_ms, own["release"]))])
    ends = [end for own in taken for _, _, end, _ in own["steps"]]
    return Sample(
        round=number,
        writer_ms=_ms(written["writer_s"]),
        hash_ms=None if written["hash_s"] is None else _ms(written["hash_s"]),
        ready_ms=_ms(max(ends) - written["started"]) if ends else None,
        steps=steps,
        read_ms=[_ms(own["read_s"]) for own in taken],
        loop_block_ms=None if written["loop_block_s"] is None else _ms(written["loop_block_s"]),
    )


def run_of(
    contender: str, ranks: int, grid: tuple[int, int, int], samples: list[Sample], carried: int, failed: str
) -> HandoffRun:
    """Samples in which the event loop was watched count for that alone."""
    plain = [sample for sample in samples if sample.loop_block_ms is None]
    return HandoffRun(
        contender=contender,
        ranks=ranks,
        payload_bytes=grid[0] * grid[1] * grid[2] * PATCH_BYTES,
        carried_bytes=carried,
        writer_ms=_quantiles(sample.writer_ms for sample in plain),
        ready_ms=_quantiles(sample.ready_ms for sample in plain),
        stall_ms=StallByRole(_stall(plain, slice(0, 1)), _stall(plain, slice(1, None))),
        hash_ms=_quantiles(sample.hash_ms for sample in plain),
        loop_block_ms=_quantiles(sample.loop_block_ms for sample in samples),
        read_ms=_quantiles(read for sample in plain for read in sample.read_ms),
        failed=failed,
        samples=samples,
    )


def _stall(samples: Iterable[Sample], ranks: slice) -> Stall | None:
    of = [steps for sample in samples for steps in sample.steps[ranks]]
    wall = _quantiles(sum(step.wall_ms for step in steps) for steps in of)
    cpu = _quantiles(sum(step.cpu_ms for step in steps) for steps in of)
    return None if wall is None or cpu is None else Stall(wall.p50, wall.p99, cpu.p50, cpu.p99)


def _quantiles(values: Iterable[float | None]) -> Quantiles | None:
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Quantiles(*(_round(float(np.quantile(there, at))) for at in (0.5, 0.99)))


def _ms(seconds: float) -> float:
    return _round(seconds * 1e3)


def _round(value: float) -> float:
    return round(value, 4)
