"""Options of the worker processes, and what one is told. The limits of media stand in ``limits.py``.

The configuration of a program takes them over: each default stands here only.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from coatcheck.arena import ArenaAddress
from coatcheck.intake.limits import require


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The worker processes, and how long their jobs wait. Times in seconds; an impossible value raises ConfigError."""

    workers: int = 2
    max_waiting: int = 256  # jobs that wait for a worker, before Overloaded
    worker_start_timeout_s: float = 60.0
    job_timeout_s: float = 60.0  # one job in a worker; past it the worker is killed
    arena_wait_s: float = 10.0  # for room in a full arena, before ArenaFull

    def __post_init__(self) -> None:
        require("workers", self.workers, 1 <= self.workers <= 256, "1 to 256")
        require("max_waiting", self.max_waiting, self.max_waiting >= 1, "1 or more")
        for name in ("worker_start", "job"):
            seconds = getattr(self, f"{name}_timeout_s")
            require(f"{name}_timeout", seconds, 0 < seconds <= 86400, "above 0, at most 86400 seconds")
        require("arena-wait", self.arena_wait_s, 0 < self.arena_wait_s <= 3600, "above 0, at most 3600 seconds")


class WorkerSettings(msgspec.Struct, frozen=True):
    """What all workers of a pool are told, on the command line (see :func:`coatcheck.wire.to_argument`)."""

    pool: str  # ZMQ address of the pool's ROUTER socket
    arena: ArenaAddress | None  # None: payloads ride in the message
    handler: str  # "module:Class", a coatcheck.intake.worker.Handler
    handler_config: str  # what it is made of
