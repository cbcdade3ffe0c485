"""Who hands off when: contenders take turns in rounds, and only the team whose turn it is runs."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.handoff.config import EDGE, PATCH_BYTES, HandoffConfig, grid_of
from benchmarks.handoff.contenders import CONTENDERS, interpreter, versions
from benchmarks.handoff.result import HandoffReport, HandoffRun, Queued, Sample, Turn
from benchmarks.handoff.summary import run_of, sampled, steps_of
from benchmarks.handoff.team import Team, TeamFailed
from coatcheck.bench.support import noise
from coatcheck.bench.support.cpu import CpuMeter
from coatcheck.bench.support.environment import environment, load_average
from coatcheck.bench.support.files import SCHEMA
from coatcheck.bench.support.turns import rotated

WARM = 0  # a round that is not counted
WARM_TURNS = 2  # vLLM's arena has 8 slots, which take turns
Grid = tuple[int, int, int]
Progress = Callable[[str], None]


def measure(config: HandoffConfig, progress: Progress) -> HandoffReport:
    """All contenders for each number of ranks in turn. One that fails is listed with its reason."""
    names = dict.fromkeys(CONTENDERS[name].environment for name in config.contenders if CONTENDERS[name].environment)
    before = {**environment(), "peers": {name: versions(interpreter(name, config.peers)) for name in names}}
    grids = [grid_of(size) for size in config.sizes]
    turns: list[Turn] = []
    runs = []
    with _images(grids) as images:
        for ranks in config.ranks:
            match = _Match(config, ranks, images, progress)
            match.play()
            turns += match.turns
            runs += [match.run(name, grid) for name in config.contenders for grid in grids]
    options = {**asdict(config), "peers": config.peers.name}
    after = {"load_average_after": load_average()}
    return HandoffReport(SCHEMA, {**before, **after}, options, turns, runs)


@contextmanager
def _images(grids: Sequence[Grid]) -> Iterator[dict[Grid, Path]]:
    """An image file for each grid, for contenders to hash: a picture of smooth noise with some grain, as JPEG."""
    with tempfile.TemporaryDirectory(prefix="coatcheck-handoff-") as directory:
        made = {}
        for grid in grids:
            rng = np.random.default_rng(grid)
            height, width = grid[1] * EDGE, grid[2] * EDGE
            smooth = np.asarray(noise.smooth(rng, (width, height)), dtype=np.int16)
            grain = rng.integers(-8, 9, smooth.shape, dtype=np.int16)
            made[grid] = Path(directory) / f"{height}x{width}.jpg"
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(made[grid], quality=noise.QUALITY)
        yield made


@dataclass
class _Match:
    """All contenders with one number of ranks."""

    config: HandoffConfig
    ranks: int
    images: dict[Grid, Path]
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, Grid], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    bursts: dict[tuple[str, Grid], list[Queued]] = field(default_factory=lambda: defaultdict(list))
    carried: dict[tuple[str, Grid], int] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    _teams: dict[str, Team] = field(default_factory=dict)
    _count: int = 0

    def play(self) -> None:
        """The whole match; no team is left."""
        try:
            for name in dict.fromkeys(CONTENDERS[name].environment for name in self.config.contenders):
                self._enter(name)
            for _ in range(WARM_TURNS):
                for name in self.config.contenders:
                    self._turn(name, WARM)
            for number in range(1, self.config.rounds + 1):
                for name in rotated(self.config.contenders, number):
                    self._turn(name, number)
        finally:
            for team in self._teams.values():
                team.close()

    def run(self, name: str, grid: Grid) -> HandoffRun:
        """What came of one contender with one size."""
        key = name, grid
        return run_of(
            name,
            self.ranks,
            grid,
            self.samples[key],
            self.bursts[key],
            self.carried.get(key, 0),
            self.failures.get(name, ""),
        )

    def _enter(self, environment: str) -> list[str]:
        """Starts the environment's team, without contenders that cannot; the others' names."""
        python = interpreter(environment, self.config.peers)
        while names := [
            name
            for name in self.config.contenders
            if CONTENDERS[name].environment == environment and name not in self.failures
        ]:
            self.progress(f"{self.ranks} ranks: starting {environment or 'our own'}")
            opening = names[0]
            try:
                team = Team(python, self.ranks)
            except TeamFailed as error:
                self.failures.update(dict.fromkeys(names, str(error)))
                return []
            self._teams[environment] = team  # from now on it is closed in any case
            try:
                for opening in names:
                    team.open(CONTENDERS[opening])
            except TeamFailed as error:
                self.failures[opening] = str(error)
                self._teams.pop(environment).close(at_once=True)
                continue
            team.pause()
            return names
        return []

    def _turn(self, name: str, number: int) -> None:
        """All sizes, each several times; nothing if the contender has failed."""
        if name in self.failures:
            return
        environment = CONTENDERS[name].environment
        team = self._teams[environment]
        self.progress(f"{self.ranks} ranks, round {number} of {self.config.rounds}: {name}")
        team.resume()
        meter, begin = CpuMeter(team.pids()), time.monotonic()
        try:
            for grid in self.images:
                for _ in range(self.config.repeats):
                    self._hand_off(team, name, grid, number, beat=False)
                if CONTENDERS[name].loop:
                    self._hand_off(team, name, grid, number, beat=True)
                self._burst(team, name, grid, number)
        except TeamFailed as error:
            self.failures[name] = str(error)
            team.close(at_once=True)
            del self._teams[environment]
            again = self._enter(environment)
            for other in again if number != WARM else ():
                self._turn(other, WARM)
            return
        _, others = meter.stop()
        team.pause()
        if number:
            self.turns.append(Turn(name, self.ranks, number, round(others / (time.monotonic() - begin) * 100, 1)))

    def _hand_off(self, team: Team, name: str, grid: Grid, number: int, beat: bool) -> None:
        self._count += 1
        written, taken = team.hand_off(name, f"{name}/{self._count}", grid, self.images[grid], beat)
        wrong = [rank for rank, one in enumerate(taken) if one["checksum"] != written["checksum"]]
        if wrong:
            raise TeamFailed(f"rank {wrong[0]} got other bytes than the front end had")
        self.carried[name, grid] = written["carried"]
        if number:
            self.samples[name, grid].append(sampled(number, written, taken))

    def _burst(self, team: Team, name: str, grid: Grid, number: int) -> None:
        self._count += 1
        names = [f"{name}/{self._count}/{at}" for at in range(self.config.burst)]
        nbytes = grid[0] * grid[1] * grid[2] * PATCH_BYTES
        taken = team.burst(name, names, grid, self.images[grid], nbytes)
        if number:
            self.bursts[name, grid] += [Queued(number, steps_of(one)) for one in taken[1:]]
