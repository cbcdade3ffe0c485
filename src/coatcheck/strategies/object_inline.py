"""``object-inline`` (alias ``17a57fd86``): the regression, kept as a contender.

The entry rank materializes and hashes, then ships the pickled object to the others with ``broadcast_object_list``, on
the scheduler's thread, although the raw inputs already rode in the request broadcast. (SGLang PR #11910, commit
17a57fd86.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.messages import Arrived
from coatcheck.strategies.base import Exchange, Materializer
from coatcheck.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class ObjectInline:
    """Carrier: object. Timing: inline."""

    name: str = "object-inline"

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.base.Strategy`."""
        return exchange.share(lambda: materialize(arrived, frames))
