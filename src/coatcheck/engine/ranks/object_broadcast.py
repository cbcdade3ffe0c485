"""The collective of the `object` carrier, one side each: see :class:`coatcheck.engine.strategies.base.Exchange`.

Each exchange owns a process group (no other thread may use it meanwhile) and numbers its calls. The number and the
request travel with the object, so that a rank that got out of step is noticed and never takes one request's inputs
for another's.

This is the one place that pickles, between ranks of one job only: it is the regression that is being compared. The
bytes on the wire and the two broadcasts (length, pickle) are those of ``broadcast_object_list``, which 17a57fd86
calls; written out, because there a failure to pickle leaves the other ranks waiting.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import torch
import torch.distributed as dist

from coatcheck.engine.ranks.group import collective
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.errors import MaterializeError, RanksDisagree


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


@dataclass
class EntryExchange:
    """Makes and broadcasts."""

    group: dist.ProcessGroup
    makes: bool = True
    carried: int = 0
    _numbers: count[int] = field(default_factory=count)

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.engine.strategies.base.Exchange`."""
        number = next(self._numbers)
        made: MultimodalInputs | Failure
        try:
            made = make()
            pickled = pickle.dumps(Shared(number, request, made))
        except Exception as error:  # such as too little memory to pickle
            made = Failure(f"{type(error).__name__} on the entry rank: {error}")
            pickled = pickle.dumps(Shared(number, request, made))
        with collective():
            dist.broadcast(torch.tensor([len(pickled)]), src=0, group=self.group)
            dist.broadcast(torch.frombuffer(bytearray(pickled), dtype=torch.uint8), src=0, group=self.group)
        self.carried += len(pickled)
        return _unwrap(made)


@dataclass
class FollowerExchange:
    """Receives."""

    group: dist.ProcessGroup
    makes: bool = False
    carried: int = 0
    _numbers: count[int] = field(default_factory=count)

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.engine.strategies.base.Exchange`."""
        number = next(self._numbers)
        size = torch.zeros(1, dtype=torch.int64)
        with collective():
            dist.broadcast(size, src=0, group=self.group)
            pickled = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(pickled, src=0, group=self.group)
        self.carried += len(pickled)
        shared: Shared = pickle.loads(pickled.numpy().data)  # outside: a failure here is this rank's, on this request
        if (shared.number, shared.request) != (number, request):
            raise RanksDisagree(
                f"share {number} for request {request} was expected, "
                f"share {shared.number} for request {shared.request} came"
            )
        return _unwrap(shared.made)


def _unwrap(made: MultimodalInputs | Failure) -> MultimodalInputs:
    if isinstance(made, Failure):
        raise MaterializeError(made.reason)
    return made
