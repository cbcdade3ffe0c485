"""The two axes of a strategy, and the Protocol behind which all carriers stand.

A strategy is a *carrier* (what crosses to the ranks) and a *timing* (where materialization runs). A new carrier is a
class in ``carriers`` and its name in ``table``; the contract suite then runs over it.

Invariants, whatever the strategy:

* ``deliver`` is called on every rank for every request, in plan order: on the scheduler's thread (inline) or in the
  lane.
* If a carrier uses a collective for a request, every rank takes part in it, also when its own part failed: the
  failing rank sends a marker in its place. So a failure is an error on some ranks or on all, never a hang.
* Every rank consumes bit-identical inputs under all strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.engine.strategies.timing import Timing
from coatcheck.wire import Buffer

Materializer = Callable[[Arrived, Sequence[Buffer]], MultimodalInputs]
"""What arrived and its frames -> inputs.

Raises MaterializeError (or anything else: taken as a failure on this rank).
"""


class Exchange(Protocol):
    """What the entry rank makes, given to all ranks of the group.

    A collective: called on every rank in the same order.
    """

    @property
    def makes(self) -> bool:
        """True on the entry rank: ``make`` is called here."""
        ...

    @property
    def carried(self) -> int:
        """Bytes that this exchange's calls have broadcast so far."""
        ...

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """Runs ``make`` on the entry rank only and returns its result on every rank.

        Raises MaterializeError on every rank if ``make`` raised on the entry rank; RanksDisagree if this rank's call
        and the entry rank's are not for the same request, or not the same call in order.
        """
        ...


class Carrier(Protocol):
    """What crosses to the ranks for one request, and how it becomes this rank's inputs."""

    def collective(self, arrived: Arrived) -> bool:
        """True if ``deliver`` uses the exchange for this request: on every rank or on none."""
        ...

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """This rank's inputs for the request. An exception is this rank's failure on this request, nothing more."""
        ...


@dataclass(frozen=True)
class Strategy:
    """One way for pixels to reach the ranks, as users name it."""

    name: str
    carrier: Carrier
    timing: Timing
