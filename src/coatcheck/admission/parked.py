"""A rank's own table of requests that wait for the entry rank's decision.

Invariant: a rank never decides. Inputs enter when they are materialized (None: this rank failed on them) and leave
when a plan admits or ends the request; nothing else removes them, and nothing is left once every request has ended.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from coatcheck.errors import RanksDisagree

T = TypeVar("T")


class Parked(Generic[T]):
    """Inputs by request, between materialization and admission."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._inputs: dict[str, T | None] = {}

    def park(self, request: str, inputs: T | None) -> None:
        """Keeps the inputs; None where this rank failed, and therefore waits for the rejection."""
        self._inputs[request] = inputs

    def admit(self, request: str) -> T:
        """Hands the inputs over. Raises RanksDisagree if this rank has none: it never reported the request ready."""
        inputs = self._inputs.pop(request, None)
        if inputs is None:
            raise RanksDisagree(f"rank {self._rank} was told to admit request {request}, for which it has no inputs")
        return inputs

    def drop(self, request: str) -> None:
        """The request ended before it was admitted; unknown here: it ran."""
        self._inputs.pop(request, None)

    def __len__(self) -> int:
        return len(self._inputs)
