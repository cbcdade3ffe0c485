"""Several servers under one load, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Mapping

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.figures import run_of
from coatcheck.bench.serve.measure import Progress, check, measure
from coatcheck.bench.serve.records import Seen
from coatcheck.bench.serve.result import Report, Run
from coatcheck.bench.support.environment import environment
from coatcheck.bench.support.files import SCHEMA
from coatcheck.bench.support.turns import rotated
from coatcheck.errors import ConfigError


async def compare(servers: Mapping[str, str], load: Load, rounds: int, progress: Progress) -> Report:
    """``servers``: URLs by name. Raises ConfigError where one cannot be measured before all begins.

    One that fails later is in the report as failed, and the others go on.
    """
    before = environment()
    for name, url in servers.items():
        progress.phase(f"{name}: asking what it serves", 0.0)
        await check(url, load)
    runs = []
    for number in range(1, rounds + 1):
        for name in rotated(list(servers), number - 1):
            said = _Round(progress, f"round {number} of {rounds}, ")
            try:
                runs.append(await measure(servers[name], load, contender=name, round=number, progress=said))
            except ConfigError as error:
                runs.append(failed(load, name, number, str(error)))
    options = {**load.as_json(), "rounds": rounds, "servers": dict(servers)}
    return Report(SCHEMA, before, options, runs)


class _Round:
    """A progress that says which round it is."""

    def __init__(self, progress: Progress, which: str) -> None:
        self._which = which
        self._progress = progress
        self.passed = progress.passed

    def phase(self, text: str, seconds: float) -> None:
        """See :class:`coatcheck.bench.serve.measure.Progress`."""
        self._progress.phase(self._which + text, seconds)


def failed(load: Load, contender: str, number: int, why: str) -> Run:
    """A run in which nothing could be measured."""
    run = run_of(load, Seen(), Seen(), contender=contender, round=number, tp=None, extra={"notes": []})
    run.errors.clear()
    run.errors[why] = 1
    return run
