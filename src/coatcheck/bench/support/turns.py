"""Who comes when in a round."""

from __future__ import annotations

from collections.abc import Sequence


def rotated(strategies: Sequence[str], number: int) -> list[str]:
    """The order of a round: each strategy comes first, second, ... equally often."""
    at = number % len(strategies)
    return [*strategies[at:], *strategies[:at]]
