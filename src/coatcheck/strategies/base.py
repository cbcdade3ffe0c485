"""The Protocol behind which all strategies stand.

A strategy is a *carrier* (what crosses to the ranks) and a *timing* (where materialization runs). Adding one means
adding a file and a line in :mod:`coatcheck.strategies.table`; the contract suite then runs over it.

Invariants, whatever the strategy:

* ``deliver`` is called on every rank for every request, in plan order.
* If a strategy uses a collective for a request, every rank takes part in it, also when its own part failed: the
  failing rank sends a marker in its place. So a failure is an error on some ranks or on all, never a hang.
* Every rank consumes bit-identical inputs under all strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from coatcheck.messages import Arrived
from coatcheck.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer

Materializer = Callable[[Arrived, Sequence[Buffer]], MultimodalInputs]
"""What arrived and its frames -> inputs.

Raises MaterializeError (or anything else: taken as a failure on this rank).
"""


class Exchange(Protocol):
    """What the entry rank makes, given to all ranks of the group. A collective: called on every rank in plan order."""

    def share(self, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """Runs ``make`` on the entry rank only and returns its result on every rank.

        Raises MaterializeError on every rank if ``make`` raised on the entry rank.
        """
        ...


class Strategy(Protocol):
    """How one request's inputs reach a rank."""

    @property
    def name(self) -> str:
        """``carrier-timing``, the name users know."""
        ...

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """This rank's inputs for the request. An exception is this rank's failure on this request, nothing more."""
        ...
