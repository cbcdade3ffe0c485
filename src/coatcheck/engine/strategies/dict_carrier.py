"""The ``dict`` carrier: raw inputs ride in the request broadcast, every rank materializes for itself.

No second broadcast; the price is that each rank repeats the same work. Inline it is scheme 2 of the notes, lazy
materialization, and SGLang's default today; in the background it is scheme 3, the combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.base import Exchange, Materializer
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class DictCarrier:
    """See :class:`coatcheck.engine.strategies.base.Carrier`."""

    def collective(self, arrived: Arrived) -> bool:
        """See :class:`coatcheck.engine.strategies.base.Carrier`."""
        return False

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """See :class:`coatcheck.engine.strategies.base.Carrier`."""
        return materialize(arrived, frames)
