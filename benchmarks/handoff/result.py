"""What ``python -m benchmarks.handoff --json`` writes: schema 1, as the engine's. In ms; ``meter`` says of what."""

from __future__ import annotations

from typing import Any

import msgspec


class Step(msgspec.Struct, frozen=True):
    """One span of a rank's scheduler thread; ``wall_ms`` of a follower counts from the entry rank's beginning."""

    name: str
    wall_ms: float
    cpu_ms: float


class Sample(msgspec.Struct, frozen=True):
    """One hand-off. Lists are by rank."""

    round: int  # from 1
    writer_ms: float
    hash_ms: float | None
    ready_ms: float | None  # None: this contender has no ranks
    agreed_ms: float | None
    steps: list[list[Step]]  # the last one, ``release``, comes after the tensor's use
    read_ms: list[float]
    loop_block_ms: float | None = None  # where it is there, nothing else of the sample is used


class Queued(msgspec.Struct, frozen=True):
    """One request that waited for the ranks, behind others."""

    round: int
    steps: list[list[Step]]  # by rank


class Quantiles(msgspec.Struct, frozen=True):
    """Over all samples."""

    p50: float
    p99: float


class Stall(msgspec.Struct, frozen=True):
    """All steps of a request together, the release too; of followers, all of them pooled."""

    p50: float
    p99: float
    cpu_p50: float
    cpu_p99: float


class StallByRole(msgspec.Struct, frozen=True):
    """None where there is no such rank."""

    entry: Stall | None
    follower: Stall | None


class HandoffRun(msgspec.Struct, frozen=True):
    """One contender, one number of ranks, one size."""

    contender: str
    ranks: int
    payload_bytes: int  # of float32 pixels
    carried_bytes: int  # of what the ranks get
    writer_ms: Quantiles | None  # all None where it failed before the first sample
    ready_ms: Quantiles | None
    agreed_ms: Quantiles | None
    stall_ms: StallByRole  # of requests that waited for the ranks
    idle_stall_ms: StallByRole  # of requests that came one at a time, to ranks that slept
    lane_cpu_ms: Quantiles | None  # of all ranks; None where everything is done on the scheduler's thread
    hash_ms: Quantiles | None
    loop_block_ms: Quantiles | None
    read_ms: Quantiles | None  # of all ranks
    failed: str  # why there are no samples, or no more; empty if there are all
    samples: list[Sample]
    queued: list[Queued]


class Turn(msgspec.Struct, frozen=True):
    """One contender's turn in a round."""

    contender: str
    ranks: int
    round: int
    load: float  # CPU time of all processes but the team's and the benchmark's own, in percent of one core


class HandoffReport(msgspec.Struct, frozen=True):
    """The file."""

    schema: int
    environment: dict[str, Any]
    options: dict[str, Any]
    turns: list[Turn]
    runs: list[HandoffRun]
