"""From what clients saw and ranks traced to figures: quantiles of each round, medians over rounds."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from coatcheck.bench.engine.result import Quantiles, RequestSample, Round, Stall, StallByRole, StallQuantiles
from coatcheck.bench.engine.rounds import RawRound
from coatcheck.engine.ranks.trace import Span

STALLS = ("receive", "broadcast", "deliver", "admit", "return")  # on the scheduler's thread: these do not overlap
BROADCASTS = ("broadcast", "exchange")  # on either thread

Traces = Sequence[Mapping[str, list[Span]]]  # by rank: spans by request
Pair = tuple[float, float]


def by_request(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """One rank's spans by request."""
    found: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        found[span.request].append(span)
    return dict(found)


def digest(traces: Traces, raw: RawRound) -> str:
    """sha256 over the inputs of all requests, as all ranks consumed them; empty if one was not verified."""
    digests = []
    for heard in raw.heard:
        verified = [span.digest for span in traces[0].get(heard.name, ()) if span.phase == "verify"]
        if heard.error is not None or len(verified) != 1:
            return ""
        digests.append(verified[0])
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def sampled(raw: RawRound, traces: Traces) -> Round:
    """A round, with what every rank spent on every request."""
    requests, stalls = [], []
    for index, heard in enumerate(raw.heard):
        spans = [trace.get(heard.name, []) for trace in traces]
        ok = heard.error is None and bool(heard.times)
        requests.append(
            RequestSample(
                index=index,
                sent=_round(heard.sent - raw.start),
                latency_ms=_ms(heard.times[-1] - heard.sent) if heard.times else 0.0,
                ttft_ms=_ms(heard.times[0] - heard.sent) if heard.times else None,
                itl_ms=[_ms(b - a) for a, b in zip(heard.times, heard.times[1:], strict=False)],
                stall_ms=[_total(own, STALLS, "scheduler") for own in spans] if ok else [],
                stall_cpu_ms=[_total(own, STALLS, "scheduler", cpu=True) for own in spans] if ok else [],
                broadcast_ms=[_total(own, BROADCASTS) for own in spans] if ok else [],
                materialize_ms=[_materialize(own) for own in spans] if ok else [],
                error=heard.error or (None if heard.times else "no token came"),
            )
        )
        stalls += [
            Stall(rank, index, span.phase, _round(span.start - raw.start), _round(span.wall_ms), _round(span.cpu_ms))
            for rank, own in enumerate(spans)
            for span in own
            if span.thread == "scheduler" and span.phase in STALLS
        ]
    cpu = {name: round(seconds, 3) for name, seconds in raw.cpu_seconds.items()}
    return Round(raw.number, raw.start, raw.seconds, cpu, round(raw.load, 1), requests, stalls, raw.said_sha256)


def median(values: Sequence[float]) -> float:
    """Over rounds."""
    return _round(float(np.median(values)))


def interval(values: Sequence[float]) -> Pair:
    """Smallest and largest round."""
    return _round(min(values)), _round(max(values))


def over_rounds(rounds: Sequence[Round], figure: Callable[[Round], float]) -> tuple[float, Pair]:
    """Median and interval of a figure; there is at least one round."""
    values = [figure(round_) for round_ in rounds]
    return median(values), interval(values)


def quantiles(rounds: Sequence[Round], values: Callable[[RequestSample], Iterable[float | None]]) -> Quantiles | None:
    """Of the values of all requests of each round. Rounds without any value are left out; None if all are."""
    pooled = [_pool(round_, values) for round_ in rounds]
    pooled = [pool for pool in pooled if pool]
    if not pooled:
        return None
    fifty = [float(np.quantile(pool, 0.5)) for pool in pooled]
    high = [float(np.quantile(pool, 0.99)) for pool in pooled]
    return Quantiles(median(fifty), median(high), interval(fifty), interval(high))


def stalls(rounds: Sequence[Round], ranks: Sequence[int]) -> StallQuantiles | None:
    """Of these ranks, pooled."""
    wall = quantiles(rounds, lambda request: [request.stall_ms[rank] for rank in ranks if request.stall_ms])
    cpu = quantiles(rounds, lambda request: [request.stall_cpu_ms[rank] for rank in ranks if request.stall_cpu_ms])
    if wall is None or cpu is None:
        return None
    return StallQuantiles(wall.p50, wall.p99, cpu.p50, cpu.p99, wall.p50_interval, wall.p99_interval, cpu.p50_interval)


def stall_by_role(rounds: Sequence[Round], tp: int) -> StallByRole:
    """The entry rank's, and all followers'."""
    return StallByRole(stalls(rounds, [0]), stalls(rounds, range(1, tp)) if tp > 1 else None)


def by_rank(
    rounds: Sequence[Round], tp: int, values: Callable[[RequestSample], Sequence[float | None]]
) -> dict[str, Quantiles]:
    """Quantiles of each rank that has values."""
    found = {}
    for rank in range(tp):
        figures = quantiles(rounds, lambda request, rank=rank: values(request)[rank : rank + 1])  # type: ignore[misc]
        if figures is not None:
            found[str(rank)] = figures
    return found


def failures(rounds: Sequence[Round]) -> dict[str, int]:
    """Failed requests by reason."""
    return dict(Counter(r.error for round_ in rounds for r in round_.requests if r.error is not None).most_common())


def _pool(round_: Round, values: Callable[[RequestSample], Iterable[float | None]]) -> list[float]:
    return [
        value for request in round_.requests if request.error is None for value in values(request) if value is not None
    ]


def _total(spans: Sequence[Span], phases: Sequence[str], thread: str | None = None, cpu: bool = False) -> float:
    chosen = (span for span in spans if span.phase in phases and thread in (None, span.thread))
    return _round(sum(span.cpu_ms if cpu else span.wall_ms for span in chosen))


def _materialize(spans: Sequence[Span]) -> float | None:
    made = [span.wall_ms for span in spans if span.phase == "materialize"]
    return _round(sum(made)) if made else None


def _ms(seconds: float) -> float:
    return _round(seconds * 1e3)


def _round(value: float) -> float:
    return round(value, 4)
