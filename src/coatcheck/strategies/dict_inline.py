"""``dict-inline`` (alias ``lazy``): scheme 2 of the notes, and SGLang's default today.

The raw inputs rode in the request broadcast, so there is no second one: every rank materializes for itself, in
parallel with the others, on the scheduler's thread. The price is that each rank repeats the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.messages import Arrived
from coatcheck.strategies.base import Exchange, Materializer
from coatcheck.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class DictInline:
    """Carrier: dict. Timing: inline."""

    name: str = "dict-inline"

    def deliver(
        self, arrived: Arrived, frames: Sequence[Buffer], exchange: Exchange, materialize: Materializer
    ) -> MultimodalInputs:
        """See :class:`coatcheck.strategies.base.Strategy`."""
        return materialize(arrived, frames)
