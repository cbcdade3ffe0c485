"""Contenders of ``benchmarks.handoff`` that go wrong, each in its way, and one that works; all without torch."""

from __future__ import annotations

import os
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.handoff.meter import Meter, Payload, Place, Written

VALUES = np.ones(4, dtype=np.float32)


class Front:
    """Sends nothing."""

    def __init__(self, place: Place) -> None:
        if place.contender == "will-not-start":
            raise RuntimeError("no such device\nand more")

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        return Written(time.monotonic(), 0.001, None, VALUES)

    def settle(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Values:
    """As much of a tensor as is asked for."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values

    def numpy(self) -> NDArray[np.float32]:
        """See torch.Tensor."""
        return self._values


class Rank:
    """Makes something up, fails, dies or hangs, by its contender's name."""

    def __init__(self, place: Place) -> None:
        self._place = place
        if place.contender == "dies":
            self._shared = SharedMemory(f"coatcheck-test-{os.getppid()}-{place.rank}", create=True, size=4096)
            resource_tracker.unregister(self._shared._name, "shared_memory")  # type: ignore[attr-defined]

    def prepare(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """At once."""

    def take(self, meter: Meter) -> Any:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("take"):
            if self._place.rank == 1:
                match self._place.contender:
                    case "hangs":
                        time.sleep(3600)
                    case "raises":
                        raise ValueError("cannot be mapped")
                    case "dies":
                        os._exit(3)
                    case "other-bytes":
                        return Values(2 * VALUES)
        return Values(VALUES)

    def release(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


SIDES = dict.fromkeys(("works", "will-not-start", "hangs", "raises", "dies", "other-bytes"), (Front, Rank))
