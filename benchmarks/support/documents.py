"""Blocks of a document that a command writes: they stand between markers which name it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the checkout


def replaced(text: str, name: str, made: str, module: str) -> str:
    """``text`` with what stands between the markers of that block replaced.

    ``module``: what writes it, below ``benchmarks``, as in ``pages.handoff``. Raises ValueError if there are no such
    markers.
    """
    begin, end = f"<!-- {name}: python -m benchmarks.{module} write -->\n", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the document has no place for the table {name}")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{made}\n{end}{rest.split(end, 1)[1]}"
