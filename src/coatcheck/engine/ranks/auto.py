"""What ``auto`` means on the entry rank: the concrete strategy of each request, which it writes into the plan.

Where the payloads are was decided before: by handle, or beside the request. Left is the timing. Inline, the
scheduler's thread of every rank stands still for the request's cost, and whoever runs, or stands behind it, comes
that much later. In the background the request itself comes later: by the lane's backlog, since the lane is one queue,
and by the handover to it. Auto takes the smaller sum of delays::

    inline  if  delayed * cost <= backlog + handover

Invariants (``tests/engine/ranks/test_auto.py``):

* Where nobody is delayed a request is inline, whatever was measured; so is text, which has nothing to materialize.
* One more that is delayed never turns background into inline, a longer lane never turns inline into background.
* A lane that falls behind gets no more: what is queued there is at most the cost of the dearest request times the
  most that were delayed at once, plus one request. Beyond, requests are inline, which slows the step loop down and so
  is back pressure, and both threads work. When what is in the lane is admitted, more are delayed by what is inline,
  and the lane, empty by then, is taken again.

Not in the formula: what the lane does under the interpreter's lock holds the scheduler's thread up as well, so that
background saves less than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coatcheck.arena.handle import Handle, nbytes
from coatcheck.engine.records import Arrived, AutoRule
from coatcheck.engine.strategies.timing import Timing

KINDS = ("dict", "handle")  # carriers that auto chooses from


@dataclass(frozen=True)
class Line:
    """Seconds as a function of payload bytes."""

    base_s: float
    per_byte_s: float

    def __call__(self, payload: int) -> float:
        return self.base_s + payload * self.per_byte_s


FREE = Line(0.0, 0.0)


@dataclass
class Load:
    """What the next request meets; kept up to date while a plan's arrivals are taken in."""

    delayed: int  # requests that would come later if it were inline: those that run or are ready, and those behind it
    backlog_s: float  # of work that is in the lane


def decide(cost_s: float, handover_s: float, load: Load) -> Timing:
    """See the module's docstring. Times in seconds, none negative."""
    if load.delayed * cost_s <= load.backlog_s + handover_s:
        return Timing.INLINE
    return Timing.BACKGROUND


@dataclass(frozen=True)
class Auto:
    """Decides by what :mod:`coatcheck.engine.ranks.auto_threshold` measured."""

    rule: AutoRule
    costs: Mapping[str, Line] = field(default_factory=dict)  # materializing, by carrier

    def cost(self, arrived: Arrived) -> float:
        """Seconds that materializing takes a thread."""
        return self.costs.get(kind(arrived), FREE)(sum(nbytes(item.pixels) for item in arrived.items))

    def strategy(self, arrived: Arrived, load: Load) -> str:
        """The concrete strategy of a request that asked for ``auto``."""
        if not arrived.items:
            timing = Timing.INLINE
        elif self.rule.timing == "measured":
            timing = decide(self.cost(arrived), self.rule.handover_s, load)
        else:
            timing = Timing(self.rule.timing)
        return f"{kind(arrived)}-{timing.value}"


def kind(arrived: Arrived) -> str:
    """The carrier that fits where the request's payloads are."""
    return "handle" if any(isinstance(item.pixels, Handle) for item in arrived.items) else "dict"
