"""A report's figures as text, and against each other: rows for the terminal and the page."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coatcheck.bench.serve.result import Peak, Run, Tail
from coatcheck.bench.support.cells import NONE, spread

Figure = Callable[[Run], float | None]
HOT_PERCENT = 80  # of a core: from here on this client may be what bounds


class Server(NamedTuple):
    """One column: a server's runs, a round each."""

    name: str
    runs: Sequence[Run]
    saved: bool = False  # from an earlier session: its rounds were not interleaved with the others'


class Cell(NamedTuple):
    """The median over rounds with the smallest and the largest, and the same of its ratio to the first column."""

    value: str
    ratio: str = ""


def servers_of(runs: Sequence[Run], saved: Sequence[Run] = ()) -> list[Server]:
    """The saved ones first: all are compared with the first column."""
    return [*_by_name(saved, True), *_by_name(runs, False)]


def _by_name(runs: Sequence[Run], saved: bool) -> list[Server]:
    names = dict.fromkeys(run.contender for run in runs)
    label = "{} (saved)" if saved else "{}"
    return [Server(label.format(name), [run for run in runs if run.contender == name], saved) for name in names]


def rows(servers: Sequence[Server]) -> list[tuple[str, list[Cell]]]:
    """Label and cells, a cell for each server; without rows that no server has a figure for."""
    made = []
    for label, of, compared in ROWS:
        cells = [_cell(servers[0], server, of, compared and at > 0) for at, server in enumerate(servers)]
        if any(cell.value != NONE for cell in cells):
            made.append((label, cells))
    return made


def ratios(base: Server, other: Server, of: Figure) -> list[float]:
    """Of rounds: those of one number with each other; each with each where one is saved."""
    if base.saved or other.saved:
        pairs = [(mine, theirs) for mine in other.runs for theirs in base.runs]
    else:
        by_round = {run.round: run for run in base.runs}
        pairs = [(run, by_round[run.round]) for run in other.runs if run.round in by_round]
    found = [(of(mine), of(theirs)) for mine, theirs in pairs]
    return [mine / theirs for mine, theirs in found if mine is not None and theirs]


def _cell(base: Server, server: Server, of: Figure, compared: bool) -> Cell:
    values = [value for run in server.runs if (value := of(run)) is not None]
    if not values:
        return Cell(NONE)
    found = ratios(base, server, of) if compared else []
    return Cell(_over_rounds(values), f"× {_over_rounds(found)}" if found else "")


def _over_rounds(values: Sequence[float]) -> str:
    return spread(statistics.median(values), (min(values), max(values)))


def problems(runs: Sequence[Run]) -> list[str]:
    """A line for each reason for which something failed, by server."""
    return [
        f"{name}: {count} × {why}"
        for name, _runs, _ in _by_name(runs, False)
        for why, count in sum((Counter(run.errors) for run in _runs), Counter[str]()).items()
    ]


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader of the figures has to know, by server."""
    found: list[str] = []
    for name, _runs, _ in _by_name(runs, False):
        expected, received = sum(run.tokens_expected for run in _runs), sum(run.tokens_received for run in _runs)
        if received != expected:
            found.append(
                f"{name}: {received} tokens received where {expected} were asked for: answers are of other lengths, so "
                "that its figures are not those of the same work as another server's"
            )
        if any(run.extra.get("tokens_counted_by") == "chunks" for run in _runs if run.tokens_received):
            found.append(f"{name}: tokens are counted by the chunks that came; the server gives no usage")
        for run in _runs:
            found += [f"{name}: {note}" for note in run.extra.get("notes", ())]
            hot = max(run.extra.get("load_cpu_percent", 0), run.extra.get("observer_cpu_percent", 0))
            if hot > HOT_PERCENT:
                found.append(f"{name}, round {run.round}: this client took {hot:.0f} % of a core; it may be the limit")
    return list(dict.fromkeys(found))


def _p50(block: Tail | Peak | None) -> float | None:
    return None if block is None else block.p50


def _p99(block: Tail | Peak | None) -> float | None:
    return None if block is None else block.p99


def _max(block: Peak | None) -> float | None:
    return None if block is None else block.max


def _extra(name: str) -> Figure:
    return lambda run: run.extra.get(name)


def _tokens(run: Run) -> float | None:
    return 100 * run.tokens_received / run.tokens_expected if run.tokens_expected else None


ROWS: list[tuple[str, Figure, bool]] = [
    ("image requests/s", lambda run: run.requests_per_s, True),
    ("latency p50, ms", lambda run: _p50(run.latency_ms), True),
    ("latency p99, ms", lambda run: _p99(run.latency_ms), True),
    ("first text p50, ms", lambda run: _p50(run.ttft_ms), True),
    ("first text p99, ms", lambda run: _p99(run.ttft_ms), True),
    ("text stream, gap p50, ms", lambda run: _p50(run.text_gap_ms), True),
    ("text stream, gap p99, ms", lambda run: _p99(run.text_gap_ms), True),
    ("text stream, gap max, ms", lambda run: _max(run.text_gap_ms), True),
    ("text streams, tokens/s", lambda run: run.extra.get("text_tokens_per_s") if run.text_gap_ms else None, True),
    ("text probe p50, ms", lambda run: _p50(run.probe_ms), True),
    ("text probe p99, ms", lambda run: _p99(run.probe_ms), True),
    ("text probe max, ms", lambda run: _max(run.probe_ms), True),
    ("/health p50, ms", lambda run: _p50(run.health_ms), True),
    ("/health max, ms", lambda run: _max(run.health_ms), True),
    ("tokens received, %", _tokens, False),
    ("errors", lambda run: float(sum(run.errors.values())), False),
    ("this client's CPU, % of a core", _extra("load_cpu_percent"), False),
    ("this client late by at most, ms", _extra("load_lag_ms"), False),
]
