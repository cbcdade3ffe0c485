"""A rank's own table of requests that wait for the decision, which is not this rank's.

Invariant: a rank never decides. A request is expected from its arrival; its inputs are parked when they are
materialized (None: this rank failed on it), by whatever thread did that; it leaves when a plan admits or ends it.
Inputs that come after the end are dropped at once, so nothing is left once every request has ended.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from coatcheck.errors import RanksDisagree

T = TypeVar("T")


class Parked(Generic[T]):
    """Inputs by request, between arrival and admission. Safe to use from the step loop's thread and the lane's."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._inputs: dict[str, T | None] = {}

    def expect(self, request: str) -> None:
        """The request arrived in a plan."""
        with self._lock:
            self._inputs[request] = None

    def expected(self, request: str) -> bool:
        """False once the request has ended or was admitted: nobody waits for its inputs."""
        with self._lock:
            return request in self._inputs

    def park(self, request: str, inputs: T) -> bool:
        """Keeps the inputs; False, and nothing kept, if the request has ended meanwhile."""
        with self._lock:
            if request not in self._inputs:
                return False
            self._inputs[request] = inputs
            return True

    def admit(self, request: str) -> T:
        """Hands the inputs over. Raises RanksDisagree if this rank has none: it never reported the request ready."""
        with self._lock:
            inputs = self._inputs.pop(request, None)
        if inputs is None:
            raise RanksDisagree(f"rank {self._rank} was told to admit request {request}, for which it has no inputs")
        return inputs

    def drop(self, request: str) -> None:
        """The request ended before it was admitted; unknown here: it ran."""
        with self._lock:
            self._inputs.pop(request, None)

    def __len__(self) -> int:
        return len(self._inputs)
