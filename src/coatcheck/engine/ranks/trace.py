"""Traces, where asked for: every span of every request as a line of JSON, one file for each rank.

Histograms are always on (:mod:`coatcheck.engine.ranks.recorder`); a trace keeps each sample, for measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Phase = Literal["receive", "broadcast", "deliver", "materialize", "exchange", "admit", "return", "verify"]
Thread = Literal["scheduler", "lane"]


class Span(msgspec.Struct, frozen=True):
    """What one thread of a rank spent on one request. ``deliver`` includes ``materialize`` and ``exchange``."""

    request: str
    strategy: str
    phase: Phase
    thread: Thread
    start: float  # seconds on the host's monotonic clock
    wall_ms: float
    cpu_ms: float
    nbytes: int = 0  # broadcast
    digest: str = ""  # of the inputs, where phase is verify: on the entry rank, once all ranks agreed


def path(directory: str | Path, rank: int) -> Path:
    """Where a rank writes its trace."""
    return Path(directory) / f"rank{rank}.jsonl"


class Trace:
    """Writes spans; safe to use from several threads. The file may lag behind until ``flush`` or ``close``."""

    def __init__(self, directory: str, rank: int) -> None:
        """Raises OSError if the file cannot be made."""
        self._encode = msgspec.json.Encoder().encode
        self._file = path(directory, rank).open("wb")

    def write(self, span: Span) -> None:
        """Adds a line."""
        self._file.write(self._encode(span) + b"\n")

    def flush(self) -> None:
        """Hands all lines so far to the system."""
        self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def read(directory: str | Path, rank: int) -> list[Span]:
    """The spans that a rank has written, in the order of their ends. A last line that a dying rank left is dropped."""
    lines = path(directory, rank).read_bytes().split(b"\n")[:-1]
    return msgspec.json.Decoder(list[Span]).decode(b"[" + b",".join(lines) + b"]")
