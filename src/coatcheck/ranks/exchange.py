"""The collective that the `object` carrier needs, one side each: see :class:`coatcheck.strategies.Exchange`.

This is the one place that pickles, between ranks of one job only: it is the regression that is being compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from coatcheck.errors import MaterializeError
from coatcheck.ranks.group import Group
from coatcheck.strategies.inputs import MultimodalInputs


@dataclass(frozen=True)
class _Failure:
    """Stands in the place of a result, so that a failure on the entry rank is a failure everywhere and not a hang."""

    reason: str


@dataclass(frozen=True)
class EntryExchange:
    """Makes and broadcasts."""

    group: Group

    def share(self, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.Exchange`."""
        made: MultimodalInputs | _Failure
        try:
            made = make()
        except Exception as error:
            made = _Failure(f"{type(error).__name__} on the entry rank: {error}")
        with self.group.collective():
            dist.broadcast_object_list([made], src=0, group=self.group.control)
        return _unwrap(made)


@dataclass(frozen=True)
class FollowerExchange:
    """Receives."""

    group: Group

    def share(self, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.Exchange`."""
        received: list[MultimodalInputs | _Failure | None] = [None]
        with self.group.collective():
            dist.broadcast_object_list(received, src=0, group=self.group.control)
        return _unwrap(received[0])


def _unwrap(made: MultimodalInputs | _Failure | None) -> MultimodalInputs:
    if isinstance(made, MultimodalInputs):
        return made
    raise MaterializeError(made.reason if made else "nothing was broadcast")
