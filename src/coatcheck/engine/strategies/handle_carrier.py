"""The ``handle`` carrier: payloads stay in the arena, only handles ride in the request broadcast; each rank maps them.

Whatever their size, a rank's part is to look up the block and lay a tensor over it. Inline is enough where that is
all there is to do; in the background it also takes what else materializing costs off the scheduler's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.base import Exchange, Materializer
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.errors import MaterializeError
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class HandleCarrier:
    """See :class:`coatcheck.engine.strategies.base.Carrier`."""

    def collective(self, arrived: Arrived) -> bool:
        """See :class:`coatcheck.engine.strategies.base.Carrier`."""
        return False

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """See :class:`coatcheck.engine.strategies.base.Carrier`. Payloads beside the record are refused."""
        if frames:
            raise MaterializeError(f"{len(frames)} payloads came beside a request whose carrier is the handle")
        return materialize(arrived, frames)
