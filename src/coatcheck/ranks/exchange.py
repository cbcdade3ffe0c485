"""The collective that the `object` carrier needs, one side each: see :class:`coatcheck.strategies.base.Exchange`.

Each exchange owns a process group (no other thread may use it meanwhile) and numbers its calls. The number and the
request travel with the object, so that a rank that got out of step is noticed and never takes one request's inputs
for another's.

This is the one place that pickles, between ranks of one job only: it is the regression that is being compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import torch.distributed as dist

from coatcheck.errors import MaterializeError, RanksDisagree
from coatcheck.ranks.group import collective
from coatcheck.strategies.inputs import MultimodalInputs


@dataclass(frozen=True)
class Failure:
    """Stands in the place of a result, so that a failure on the entry rank is a failure everywhere and not a hang."""

    reason: str


@dataclass(frozen=True)
class Shared:
    """What is broadcast."""

    number: int  # of this exchange's calls, from 0
    request: str
    made: MultimodalInputs | Failure


@dataclass(frozen=True)
class EntryExchange:
    """Makes and broadcasts."""

    group: dist.ProcessGroup
    _numbers: count[int] = field(default_factory=count)

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.base.Exchange`."""
        made: MultimodalInputs | Failure
        try:
            made = make()
        except Exception as error:
            made = Failure(f"{type(error).__name__} on the entry rank: {error}")
        with collective():
            dist.broadcast_object_list([Shared(next(self._numbers), request, made)], src=0, group=self.group)
        return _unwrap(made)


@dataclass(frozen=True)
class FollowerExchange:
    """Receives."""

    group: dist.ProcessGroup
    _numbers: count[int] = field(default_factory=count)

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.base.Exchange`."""
        number = next(self._numbers)  # also if what comes cannot be unpickled here: the others count it
        received: list[Shared | None] = [None]
        with collective():
            dist.broadcast_object_list(received, src=0, group=self.group)
        shared = received[0]
        if shared is None or (shared.number, shared.request) != (number, request):
            was = "nothing" if shared is None else f"share {shared.number} for request {shared.request}"
            raise RanksDisagree(f"share {number} for request {request} was expected, {was} came")
        return _unwrap(shared.made)


def _unwrap(made: MultimodalInputs | Failure) -> MultimodalInputs:
    if isinstance(made, Failure):
        raise MaterializeError(made.reason)
    return made
