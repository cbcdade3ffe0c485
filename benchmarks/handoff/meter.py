"""What a contender's two sides do, and what is measured of them: the same for all contenders.

Clocks: wall time is the host's monotonic clock, so times of different processes compare; CPU time is that of the
thread that measures. One hand-off:

* ``started``: the front end has the tensor. What it was made of and how is no part of this.
* *writer*: what the front end does until it has nothing more to do, its hash of the content left out (``hash``).
* *steps*: what a rank's scheduler thread does for the request until the tensor is usable there, and all ranks know that
  it is on all of them, where a contender lets them know: from the moment in which the entry rank turns to the request
  (a follower's step begins with the entry rank's step of that name, since a lock-step scheduler waits for it) to the
  moment in which the thread is free again. Time between steps is free.
  A rank that slept before is slower, in CPU time too (one gloo broadcast 0.07 ms, after 10 ms of sleep 0.31 ms). So
  stalls are measured in *bursts*, in which requests wait for the ranks, and apart from that with one request at a time.
* *ready*: from ``started`` until the last rank holds the tensor: on whatever thread, if the rank's side says when, else
  at the end of its last step.
* *agreed*: from ``started`` until the last rank's thread has done its last step.
* *lane*: CPU time of a rank's other thread for the request. No part of the stall. What gloo's and zmq's own threads
  take is counted for nobody.
* *release*: what the thread does to let go of the tensor after its use. Part of the stall.
* *read*: reading every byte of the tensor once, afterwards, which also faults in what was only mapped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

LANE = "lane"
WAIT_S = 60.0  # every wait of a contender is bounded by this, where its code can be told


@dataclass(frozen=True)
class Place:
    """Where a contender's side is: files and sockets go into ``directory``. ``rank``: -1 is the front end."""

    contender: str
    directory: str
    ranks: int
    rank: int = -1

    def path(self, name: str) -> str:
        """Of a file or socket of this contender's own."""
        return f"{self.directory}/{self.contender}-{name}"


@dataclass
class Payload:
    """One image as the front end has it: float32 (patches, 1176), or uint8 (patches, 588) before normalization."""

    name: str  # of the request, unique
    grid: tuple[int, int, int]  # (t, h, w) in patches
    wide: NDArray[np.float32]
    compact: NDArray[np.uint8]
    encoded: bytes  # the image file


@dataclass(frozen=True)
class Written:
    """What the front end measured; seconds. ``hash_s`` None: this contender's front end computes no identity."""

    started: float
    writer_s: float
    hash_s: float | None
    values: NDArray[np.float32] | NDArray[np.uint8]  # of the payload, as the ranks are to get them


@dataclass
class Meter:
    """Of one rank and one hand-off."""

    held: float | None = None  # when this rank held the tensor, if that is not the end of the last step

    steps: list[tuple[str, float, float, float]] = field(default_factory=list)  # name, begin, end, CPU seconds

    @contextmanager
    def lane(self) -> Iterator[None]:
        """A thread beside the scheduler's is busy with the request; the tensor is held when it is done."""
        begin, cpu = time.monotonic(), time.thread_time()
        yield
        self.held = time.monotonic()
        self.steps.append((LANE, begin, self.held, time.thread_time() - cpu))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """The scheduler's thread is busy with the request."""
        with self.step_from(name, time.monotonic(), time.thread_time()):
            yield

    @contextmanager
    def step_from(self, name: str, begin: float, cpu: float) -> Iterator[None]:
        """The same, of a step that began before: ``begin`` and ``cpu`` are the two clocks then."""
        yield
        self.steps.append((name, begin, time.monotonic(), time.thread_time() - cpu))


class Front(Protocol):
    """A front end's side of one contender."""

    async def hand_off(self, payload: Payload) -> Written:
        """Runs on the event loop, and until the front end's part is done."""
        ...

    def settle(self) -> None:
        """After every rank has released: gets back what is the front end's. Bounded."""
        ...

    def close(self) -> None:
        """Once, at the end."""
        ...


class RankSide(Protocol):
    """A rank's side of one contender; all of it runs on the thread that stands for the scheduler's."""

    def prepare(self) -> None:
        """Before anything is measured: makes this contender's settings those of the process."""
        ...

    def wait(self) -> None:
        """Sleeps until a request is there. A follower that sleeps in a collective returns at once."""
        ...

    def take(self, meter: Meter) -> torch.Tensor:
        """The tensor, usable, as ready as this contender's ranks ever are. Raises TimeoutError."""
        ...

    def release(self) -> None:
        """Lets go of it; no reference to the tensor is left elsewhere."""
        ...

    def close(self) -> None:
        """Once, at the end."""
        ...


def checksum(values: NDArray[np.float32] | NDArray[np.uint8]) -> int:
    """Reads every byte, at the speed of memory: the sum of its words. Not made to withstand anybody."""
    flat = values.reshape(-1).view(np.uint8)
    whole = flat[: len(flat) // 8 * 8].view(np.uint64)
    return int(np.add.reduce(whole)) + int(flat[len(whole) * 8 :].sum())
