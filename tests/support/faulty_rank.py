"""A rank that fails to materialize where a request's name asks for it: ``fault=KIND@RANK``, as in ``x-fault=raise@1``.

Kinds: ``raise`` (an exception), ``memory`` (MemoryError), ``late`` and ``slow`` (later than the other ranks, but in
time), ``hang`` (later than the ready timeout of tests/support/engine.py), ``pixels`` (this rank's pixels differ from
the others'), ``encode`` (pixels that the vision tower cannot take). And on followers ``unpickle`` (what the entry rank
shared came, but cannot be read).

And one that lacks a carrier where the environment variable COATCHECK_LACKING says so: CARRIER@RANK, as in ``object@1``.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest import mock

from coatcheck.engine.ranks import main as rank_main
from coatcheck.engine.ranks.object_broadcast import FollowerExchange
from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies import carriers
from coatcheck.engine.strategies.base import Carrier, Materializer
from coatcheck.engine.strategies.inputs import MultimodalInputs
from coatcheck.wire import Buffer

LACKING = "COATCHECK_LACKING"  # environment: carrier@rank
NEEDED = "what this carrier needs is not there"

SLEEPS_S = {"late": 1.0, "slow": 2.0, "hang": 4.0}

FAULT = re.compile(r"fault=(?P<kind>\w+)@(?P<rank>\d+)")


class FaultyFollowerExchange(FollowerExchange):
    """Fails after the collective, where unpickling would."""

    def share(self, request: str, make: Callable[[], MultimodalInputs]) -> MultimodalInputs:
        made = super().share(request, make)
        if f"fault=unpickle@{os.environ['RANK']}" in request:
            raise pickle.UnpicklingError("a planted fault")
        return made


def faulty(materialize: Materializer, rank: int) -> Materializer:
    """Wraps a rank's materializer."""

    def wrapped(arrived: Arrived, frames: Sequence[Buffer]) -> MultimodalInputs:
        fault = FAULT.search(arrived.request)
        kind = fault["kind"] if fault and int(fault["rank"]) == rank else None
        if kind == "raise":
            raise RuntimeError("a planted fault")
        if kind == "memory":
            raise MemoryError("a planted shortage")
        if kind in SLEEPS_S:
            time.sleep(SLEEPS_S[kind])
        inputs = materialize(arrived, frames)
        if kind == "pixels":
            return replace(inputs, items=tuple(replace(i, pixels=i.pixels + 1) for i in inputs.items))
        if kind == "encode":
            return replace(inputs, items=tuple(replace(i, pixels=i.pixels[:, :7]) for i in inputs.items))
        return inputs

    return wrapped


def lacking_carrier() -> Carrier:
    raise ImportError(NEEDED)


if __name__ == "__main__":
    carrier, _, lacking = os.environ.get(LACKING, "").partition("@")
    if lacking == os.environ["RANK"]:
        carriers.BY_NAME[carrier] = lacking_carrier
    with mock.patch.object(rank_main, "FollowerExchange", FaultyFollowerExchange):
        rank_main.main(sys.argv[1], faulty)
