"""What ``coatcheck bench engine --json`` writes: schema 1. Every sample stands beside the summary made of it.

Times are in milliseconds where a name ends in ``_ms``, else in seconds. ``start`` is on the host's monotonic clock.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Stall(msgspec.Struct, frozen=True):
    """A span in which a rank's scheduler thread was at work on one request's inputs (or waited for them)."""

    rank: int
    index: int  # of the request in the workload
    phase: str  # receive, broadcast, deliver, admit or return
    start: float  # since the round's start
    wall_ms: float
    cpu_ms: float  # of this thread


class RequestSample(msgspec.Struct, frozen=True):
    """One request of one round. Lists by rank are in order of rank; empty if the request failed."""

    index: int  # in the workload
    sent: float  # since the round's start
    latency_ms: float  # sent to last token
    ttft_ms: float | None  # sent to first token; None if there was none
    itl_ms: list[float]  # between tokens
    stall_ms: list[float]  # by rank: wall time of the scheduler's thread
    stall_cpu_ms: list[float]  # by rank: CPU time of the scheduler's thread
    broadcast_ms: list[float]  # by rank: in broadcasts of this request's payload, whatever the thread
    materialize_ms: list[float | None]  # by rank, whatever the thread; None on a rank that did not materialize
    error: str | None = None


class Round(msgspec.Struct, frozen=True):
    """The whole workload once, under one strategy."""

    round: int  # from 1
    start: float
    seconds: float
    cpu_seconds: dict[str, float]  # by process: rank0, rank1, ..., in http mode also front-end and workers
    load: float  # CPU time of all other processes of the host as share of one core, in percent
    requests: list[RequestSample]
    stalls: list[Stall]
    tokens_sha256: str


class Quantiles(msgspec.Struct, frozen=True):
    """Of the requests of a round; the median over rounds, and the smallest and largest round."""

    p50: float
    p99: float
    p50_interval: tuple[float, float]
    p99_interval: tuple[float, float]


class StallQuantiles(msgspec.Struct, frozen=True):
    """Wall and CPU time."""

    p50: float
    p99: float
    cpu_p50: float
    cpu_p99: float
    p50_interval: tuple[float, float]
    p99_interval: tuple[float, float]
    cpu_p50_interval: tuple[float, float]


class StallByRole(msgspec.Struct, frozen=True):
    """``follower``: of all followers, pooled; None with one rank."""

    entry: StallQuantiles | None
    follower: StallQuantiles | None


class Run(msgspec.Struct, frozen=True):
    """One strategy's figures: medians over rounds. Intervals are the smallest and the largest round.

    Of five rounds these hold the true median with a probability of 94 % (1 - 2 / 2**5).
    """

    strategy: str
    tp: int
    concurrency: int
    requests: int  # per round
    rounds: int
    image: str  # WIDTHxHEIGHT as asked for
    images_per_request: int
    payload_bytes: int  # of one request, as the ranks received it
    prompt_tokens: int
    output_tokens: int
    input: str
    runner: str
    step_ms: float
    qps: float  # requests finished per second
    qps_interval: tuple[float, float]
    latency_ms: Quantiles | None  # None where nothing succeeded
    ttft_ms: Quantiles | None
    itl_ms: Quantiles | None
    stall_ms: StallByRole
    broadcast_ms: dict[str, Quantiles]  # by rank, "0", "1", ...; empty if there was nothing to broadcast
    materialize_ms: dict[str, Quantiles]  # by rank; without ranks that do not materialize
    cpu_percent: float  # of one core, all processes of the engine together
    cpu_percent_interval: tuple[float, float]
    failed: int
    failures: dict[str, int]  # by reason
    inputs_sha256: str  # over the inputs as consumed on all ranks, in the verifying pass; empty if that failed
    tokens_sha256: str  # over all tokens of every round; empty if rounds disagree or a request failed
    samples: list[Round]
    video: str = ""  # name of the file that each request has, or "made"; empty: images


class Report(msgspec.Struct, frozen=True):
    """The file."""

    schema: int
    environment: dict[str, Any]  # versions, machine, date, commit, load
    options: dict[str, Any]  # of the command
    runs: list[Run]
