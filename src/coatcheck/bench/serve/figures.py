"""From what the processes saw to a run's figures. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.records import Asked, Seen
from coatcheck.bench.serve.result import Peak, Run, Tail

Pairs = Sequence[tuple[float, float]]
NEVER = "no image request ended in the window"


def run_of(
    load: Load, loaded: Seen, observed: Seen, *, contender: str, round: int, tp: int | None, extra: dict[str, Any]
) -> Run:
    """``extra``: what is to stand there beside what this client saw of itself."""
    window = load.window_s
    ended = [one for one in loaded.asked if 0 <= one.ended <= window]
    good = [one for one in ended if not one.error]
    gaps = _within(observed.gaps, window, observed.open_gaps)
    probes = _answered(observed.probes, window, observed.open_probes)
    healths = _answered(observed.healths, window, observed.open_healths)
    errors = Counter(one.error for one in ended if one.error)
    errors.update(why for at, why in observed.errors if 0 <= at <= window)
    if not ended:
        errors[NEVER] += 1
    received = sum(one.tokens for one in good)
    return Run(
        contender=contender,
        round=round,
        tp=tp,
        clients=load.clients,
        images=load.images,
        side=max(load.size),
        output_tokens=load.output_tokens,
        requests_per_s=rounded(_served(good, loaded.open_s, window) / window),
        latency_ms=tail(_ms(one.ended - one.sent) for one in good),
        ttft_ms=tail(_ms(one.first - one.sent) for one in good if one.first is not None),
        text_gap_ms=peak(_ms(gap) for _, gap in gaps),
        probe_ms=peak(_ms(took) for _, took in probes),
        health_ms=peak(_ms(took) for _, took in healths),
        errors=dict(errors),
        tokens_expected=len(good) * load.output_tokens,
        tokens_received=received,
        samples=_samples(good, gaps, probes, healths),
        extra={**extra, **_about(load, loaded, observed, good)},
    )


def _served(good: Sequence[Asked], open_s: Sequence[float], window: float) -> float:
    """Requests that the server served in the window, each counted by the share of its time that lies in it.

    Clients of a closed loop fall into step: 32 of them end together, and a window of four such waves would count three
    or five of them. Of one that was open at the end the whole time is not known: as long as the others took, at least.
    """
    if not good:
        return 0.0
    took = [one.ended - one.sent for one in good]
    mean = sum(took) / len(took)
    ended = sum((one.ended - max(one.sent, 0.0)) / of for one, of in zip(good, took, strict=True) if of > 0)
    return ended + sum(min(so_far, window) / max(so_far, mean) for so_far in open_s if max(so_far, mean) > 0)


def _samples(good: Sequence[Asked], gaps: Pairs, probes: Pairs, healths: Pairs) -> dict[str, list[float | None]]:
    return {
        "sent_ms": [_ms(one.sent) for one in good],
        "latency_ms": [_ms(one.ended - one.sent) for one in good],
        "ttft_ms": [None if one.first is None else _ms(one.first - one.sent) for one in good],
        "tokens": [one.tokens for one in good],
        **{
            f"{name}{what}": [_ms(pair[at]) for pair in pairs]
            for name, pairs in (("text_gap", gaps), ("probe", probes), ("health", healths))
            for at, what in enumerate(("_at_ms", "_ms"))
        },
    }


def _about(load: Load, loaded: Seen, observed: Seen, good: Sequence[Asked]) -> dict[str, Any]:
    streams = [one for one in observed.streams if 0 <= one.ended <= load.window_s and not one.error]
    return {
        "load_cpu_percent": rounded(loaded.cpu_percent),
        "observer_cpu_percent": rounded(observed.cpu_percent),
        "load_lag_ms": _ms(loaded.lag_s),
        "observer_lag_ms": _ms(observed.lag_s),
        "tokens_counted_by": "usage" if all(one.counted for one in good) else "chunks",
        "text_tokens_per_s": rounded(observed.texts / load.window_s),
        "text_answers": len(streams),
        "pictures": loaded.pictures,
        "pictures_repeated": loaded.repeated,
        "open_at_end": len(loaded.open_s),
        "longest_open_s": rounded(max(loaded.open_s, default=0.0)),
    }


def _within(ended: Pairs, window: float, open_at_end: Pairs) -> list[tuple[float, float]]:
    """Those that ended in the window; ``at`` is their end. What was open at its end: see ``_longer``."""
    found = [(at, took) for at, took in ended if 0 <= at <= window]
    return found + _longer(found, open_at_end)


def _answered(ended: Pairs, window: float, open_at_end: Pairs) -> list[tuple[float, float]]:
    """The same where ``at`` is their beginning."""
    found = sorted((at, took) for at, took in ended if 0 <= at + took <= window)
    return found + _longer(found, open_at_end)


def _longer(found: Pairs, open_at_end: Pairs) -> list[tuple[float, float]]:
    """What was open at the end counts with its time so far if that is longer than all others: a stall must show."""
    longest = max((took for _, took in found), default=0.0)
    return [(at, took) for at, took in open_at_end if took > longest]


def tail(values: Iterable[float]) -> Tail | None:
    """Of milliseconds."""
    found = list(values)
    return Tail(*_quantiles(found, 0.5, 0.99)) if found else None


def peak(values: Iterable[float]) -> Peak | None:
    """Of milliseconds."""
    found = list(values)
    return Peak(*_quantiles(found, 0.5, 0.99, 1.0)) if found else None


def _quantiles(values: list[float], *at: float) -> list[float]:
    return [rounded(float(value)) for value in np.quantile(values, at)]


def _ms(seconds: float) -> float:
    return rounded(seconds * 1e3)


def rounded(value: float) -> float:
    """To what a clock here can tell."""
    return round(value, 3)
