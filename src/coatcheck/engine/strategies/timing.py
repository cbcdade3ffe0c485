"""The second axis of a strategy."""

from __future__ import annotations

from enum import Enum


class Timing(Enum):
    """Where materialization runs."""

    INLINE = "inline"  # on the scheduler's thread
    BACKGROUND = "background"  # in the lane
