"""The ``object`` carrier: the entry rank materializes, the pickled object is broadcast.

Inline it is the regression, kept as a contender: 17a57fd86 (SGLang PR #11910) ships the materialized object to the
other ranks with ``broadcast_object_list`` on the scheduler's thread, although the raw inputs already rode in the
request broadcast. In the background it is scheme 1 of the notes, asynchronous communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.base import Exchange, Materializer
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class ObjectCarrier:
    """See :class:`coatcheck.engine.strategies.base.Carrier`."""

    def collective(self, arrived: Arrived) -> bool:
        """See :class:`coatcheck.engine.strategies.base.Carrier`. Text has no object to share, there as here."""
        return bool(arrived.items)

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """See :class:`coatcheck.engine.strategies.base.Carrier`."""
        if not self.collective(arrived):
            return materialize(arrived, frames)
        return exchange.share(arrived.request, lambda: materialize(arrived, frames))
