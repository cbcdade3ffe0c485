"""What a measurement's processes tell each other, a JSON object a line, and the window's clock.

Times are in seconds since the window's start.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec

from coatcheck.bench.serve.bodies import Target

TICK_S = 0.01  # the event loop is late by what a sleep of this is longer
TELL_S = 0.5


class Job(msgspec.Struct, frozen=True):
    """Parent -> child."""

    role: str
    target: Target
    load: dict[str, Any]
    first: int  # which of one's own pictures


class Asked(msgspec.Struct, frozen=True):
    """An image request that has ended."""

    sent: float
    ended: float
    first: float | None
    tokens: int
    chunks: int
    counted: bool  # tokens are the server's own count
    error: str


class Seen(msgspec.Struct):
    """Child -> parent. Pairs are (at, how long)."""

    asked: list[Asked] = []
    open_s: list[float] = []  # how long the image requests have been under way that were open at the end
    pictures: int = 0
    repeated: int = 0
    gaps: list[tuple[float, float]] = []
    texts: int = 0  # chunks of text streams in the window
    streams: list[Asked] = []
    probes: list[tuple[float, float]] = []
    healths: list[tuple[float, float]] = []
    open_gaps: list[tuple[float, float]] = []
    open_probes: list[tuple[float, float]] = []
    open_healths: list[tuple[float, float]] = []
    errors: list[tuple[float, str]] = []  # of observers: when and what
    cpu_percent: float = 0.0  # of a core, in the window
    lag_s: float = 0.0  # the longest by which the event loop was late in the window


class Line(msgspec.Struct, omit_defaults=True):
    """Child -> parent, one a line."""

    ready: bool = False
    ended: int = 0
    seen: Seen | None = None


def say(line: Line) -> None:
    """To the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


class Clock:
    """The window: seconds since its start."""

    def __init__(self, start: float, window_s: float) -> None:
        self.start = start
        self.end = start + window_s
        self.window_s = window_s

    def at(self, moment: float) -> float:
        """Of a monotonic time."""
        return moment - self.start

    def now(self) -> float:
        return time.monotonic() - self.start

    async def wait_for_end(self, seen: Seen) -> None:
        """Measures this process meanwhile: CPU time and lag, in the window."""
        await asyncio.sleep(max(0.0, -self.now()))
        began, cpu = self.now(), time.process_time()
        while (now := self.now()) < self.window_s:
            await asyncio.sleep(min(TICK_S, self.window_s - now))
            seen.lag_s = max(seen.lag_s, self.now() - now - TICK_S)
        seen.cpu_percent = 100 * (time.process_time() - cpu) / max(1e-9, self.now() - began)
