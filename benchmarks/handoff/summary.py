"""From what the processes of a team measured to samples, and from samples to figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.handoff.config import PATCH_BYTES
from benchmarks.handoff.meter import LANE
from benchmarks.handoff.result import HandoffRun, Quantiles, Queued, Sample, Stall, StallByRole, Step

RELEASE = "release"


def sampled(number: int, written: Mapping[str, Any], taken: Sequence[Mapping[str, Any]]) -> Sample:
    """``written``: the front end's answer, ``taken``: the ranks', in seconds."""
    ends = [end for own in taken for _, _, end, _ in own["steps"]]
    return Sample(
        round=number,
        writer_ms=_ms(written["writer_s"]),
        hash_ms=None if written["hash_s"] is None else _ms(written["hash_s"]),
        ready_ms=_ms(max(own["held"] for own in taken) - written["started"]) if taken else None,
        agreed_ms=_ms(max(ends) - written["started"]) if ends else None,
        steps=steps_of(taken),
        read_ms=[_ms(own["read_s"]) for own in taken],
        loop_block_ms=None if written["loop_block_s"] is None else _ms(written["loop_block_s"]),
    )


def steps_of(taken: Sequence[Mapping[str, Any]]) -> list[list[Step]]:
    """By rank. A follower's step begins with the entry rank's of that name, if there is one; its lane is its own."""
    begins = {name: begin for name, begin, _, _ in reversed(taken[0]["steps"]) if name != LANE} if taken else {}
    steps = []
    for rank, own in enumerate(taken):
        made = [
            Step(name, _ms(end - (begins.get(name, begin) if rank else begin)), _ms(cpu))
            for name, begin, end, cpu in own["steps"]
        ]
        steps.append([*made, Step(RELEASE, *map(_ms, own["release"]))])
    return steps


def run_of(
    contender: str,
    ranks: int,
    grid: tuple[int, int, int],
    samples: list[Sample],
    queued: list[Queued],
    carried: int,
    failed: str,
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
        agreed_ms=_quantiles(sample.agreed_ms for sample in plain),
        stall_ms=_by_role([one.steps for one in queued]),
        idle_stall_ms=_by_role([sample.steps for sample in plain]),
        lane_cpu_ms=_quantiles(
            step.cpu_ms for one in queued for steps in one.steps for step in steps if step.name == LANE
        ),
        hash_ms=_quantiles(sample.hash_ms for sample in plain),
        loop_block_ms=_quantiles(sample.loop_block_ms for sample in samples),
        read_ms=_quantiles(read for sample in plain for read in sample.read_ms),
        failed=failed,
        samples=samples,
        queued=queued,
    )


def _by_role(requests: list[list[list[Step]]]) -> StallByRole:
    """``requests``: steps by rank of each."""
    entry = [steps for ranks in requests for steps in ranks[:1]]
    return StallByRole(_stall(entry), _stall([steps for ranks in requests for steps in ranks[1:]]))


def _stall(of: list[list[Step]]) -> Stall | None:
    own = [[step for step in steps if step.name != LANE] for steps in of]
    wall = _quantiles(sum(step.wall_ms for step in steps) for steps in own)
    cpu = _quantiles(sum(step.cpu_ms for step in steps) for steps in own)
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
