"""Figures as text: a cell of a table."""

from __future__ import annotations

NONE = "–"


def number(value: float) -> str:
    """Three digits, all before the point, at most three after it: 0.012, 1.23, 12.3, 1234."""
    if value == 0:
        return "0"
    decimals = next((n for n, limit in ((3, 0.0995), (2, 9.995), (1, 99.95)) if abs(value) < limit), 0)
    return f"{value:.{decimals}f}"


def spread(value: float, interval: tuple[float, float]) -> str:
    """The median over rounds, and the smallest and largest round where there are several."""
    if interval[0] == interval[1]:
        return number(value)
    return f"{number(value)} [{number(interval[0])}–{number(interval[1])}]"
