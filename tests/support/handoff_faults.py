"""Contenders of ``coatcheck bench handoff`` that go wrong, each in its own way."""

from __future__ import annotations

import time

import torch

from coatcheck.bench.handoff.meter import Meter, Payload, Place, Written
from coatcheck.bench.handoff.peers.pipe import Watch


class Front:
    """Sends nothing."""

    def __init__(self, place: Place) -> None:
        if place.contender == "will-not-start":
            raise RuntimeError("no such device\nand more")

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`coatcheck.bench.handoff.meter.Front`."""
        watch = Watch()
        return Written(watch.start, watch.seconds(), None, payload.wide)

    def settle(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Rank:
    """Makes something up, fails, dies or hangs, by its contender's name."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def wait(self) -> None:
        """At once."""

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`coatcheck.bench.handoff.meter.RankSide`."""
        with meter.step("take"):
            if self._place.rank == 1:
                match self._place.contender:
                    case "hangs":
                        time.sleep(3600)
                    case "raises":
                        raise ValueError("cannot be mapped")
                    case "dies":
                        raise SystemExit(3)
        return torch.ones(4)

    def release(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


SIDES = dict.fromkeys(("will-not-start", "hangs", "raises", "dies", "other-bytes"), (Front, Rank))
