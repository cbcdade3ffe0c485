"""What a rank is told when it is started."""

from __future__ import annotations

import msgspec

from coatcheck.arena import ArenaAddress
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.wire import from_argument, to_argument

STORE_FD = "COATCHECK_STORE_FD"  # environment: listening socket that rank 0 inherits, so that no port is guessed


class RankSettings(msgspec.Struct, frozen=True):
    """All a rank needs to know; who it is stands in the environment (see :mod:`coatcheck.engine.ranks.group`)."""

    engine: EngineConfig
    ranks: RankConfig
    requests: str  # ZMQ address of the front end's PUSH socket
    events: str  # ZMQ address of the front end's PULL socket
    arena: ArenaAddress | None = None  # None: strategies that need one are unavailable

    def encode(self) -> str:
        """As JSON, for a command line."""
        return to_argument(self)

    @staticmethod
    def decode(encoded: str) -> RankSettings:
        """What ``encode`` made; values are checked again."""
        return from_argument(encoded, RankSettings)
