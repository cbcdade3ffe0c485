"""The three carriers: what crosses to the ranks for one request. See :class:`coatcheck.engine.strategies.base.Carrier`.

``object``: the entry rank materializes, and the pickled object is broadcast. Inline it is the regression, kept as a
contender: 17a57fd86 (SGLang PR #11910) ships the materialized object to the other ranks with ``broadcast_object_list``
on the scheduler's thread, although the raw inputs already were in the request broadcast.

``dict``: the raw inputs are part of the request broadcast, and every rank materializes for itself. No second broadcast;
in return each rank repeats the same work. Inline it is SGLang's default today.

``handle``: payloads stay in the arena, and the request broadcast has their handles. Whatever their size, a rank looks
up the block and lays a tensor over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.base import Carrier, Exchange, Materializer
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.errors import MaterializeError
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class ObjectCarrier:
    """One rank materializes for all."""

    def collective(self, arrived: Arrived) -> bool:
        """Text has no object to share, as in SGLang."""
        return bool(arrived.items)

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """Through the exchange, unless the request is text."""
        if not self.collective(arrived):
            return materialize(arrived, frames)
        return exchange.share(arrived.request, lambda: materialize(arrived, frames))


@dataclass(frozen=True)
class DictCarrier:
    """Every rank materializes what came beside the record."""

    def collective(self, arrived: Arrived) -> bool:
        """Never: the request broadcast had everything."""
        return False

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """From the frames."""
        return materialize(arrived, frames)


@dataclass(frozen=True)
class HandleCarrier(DictCarrier):
    """Every rank maps what lies in the arena."""

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """From the arena. Payloads beside the record are a mistake of the front end, and refused."""
        if frames:
            raise MaterializeError(f"{len(frames)} payloads came beside a request whose carrier is the handle")
        return super().deliver(arrived, frames, exchange, materialize)


BY_NAME: dict[str, Callable[[], Carrier]] = {"object": ObjectCarrier, "dict": DictCarrier, "handle": HandleCarrier}
