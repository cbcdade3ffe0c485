"""Options of ``python -m benchmarks.handoff``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.handoff.contenders import ALL, CONTENDERS
from coatcheck.errors import ConfigError

PATCH_BYTES = 4704  # of a wide patch: 1176 float32
EDGE = 14  # pixels of a patch
LARGEST_MB = 200.0
MOST_QUEUED = 5  # of the largest payload: what every contender's memory has room for


@dataclass(frozen=True)
class HandoffConfig:
    """See the comments; an impossible value raises ConfigError naming the option."""

    contenders: tuple[str, ...] = ALL
    ranks: tuple[int, ...] = (2, 4)
    sizes: tuple[float, ...] = (
        1.0,
        5.8,
        25.0,
        100.0,
    )  # MB of float32 pixels; the nearest image is taken
    rounds: int = 9
    repeats: int = 2  # hand-offs of a size in one turn, one at a time; in one more the event loop alone is measured
    burst: int = 4  # hand-offs that wait for the ranks in a queue, once in a turn; the first of them warms up
    peers: Path = Path(".peers")

    def __post_init__(self) -> None:
        unknown = [name for name in self.contenders if name not in CONTENDERS]
        if unknown or not self.contenders:
            known = ", ".join(CONTENDERS)
            raise ConfigError(f"--contenders: {', '.join(unknown) or 'none'} is not known; known: {known}")
        if not self.ranks or not all(1 <= ranks <= 8 for ranks in self.ranks):
            raise ConfigError("--ranks: numbers from 1 to 8, with commas between")
        if not self.sizes or not all(0.01 <= size <= LARGEST_MB for size in self.sizes):
            raise ConfigError(f"--sizes: MB from 0.01 to {LARGEST_MB:g}, with commas between")
        if self.rounds < 1 or self.repeats < 1:
            raise ConfigError("--rounds, --repeats: at least 1")
        if not 2 <= self.burst <= MOST_QUEUED:
            raise ConfigError(f"--burst: from 2 to {MOST_QUEUED}")


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers with commas between, each once. Raises ConfigError."""
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is not numbers with commas between") from error


def grid_of(megabytes: float) -> tuple[int, int, int]:
    """(1, h, w) in patches, both even, about square, whose wide pixels take as nearly as possible that much."""
    wanted = megabytes * 1e6 / PATCH_BYTES
    edge = wanted**0.5
    heights: Sequence[int] = [h for h in range(2, int(edge) + 3, 2) if h >= edge * 0.8] or [2]
    grids = [(1, h, max(2, round(wanted / h / 2) * 2)) for h in heights]
    return min(grids, key=lambda grid: (abs(grid[1] * grid[2] - wanted), abs(grid[1] - grid[2])))
