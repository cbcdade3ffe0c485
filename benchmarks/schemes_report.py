"""Tables and plots of docs/analysis.md from the files that ``benchmarks.schemes measure`` wrote."""

from __future__ import annotations

from pathlib import Path


def write(directory: Path) -> None:
    """See the module."""
    raise NotImplementedError(directory)
