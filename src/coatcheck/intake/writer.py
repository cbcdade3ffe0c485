"""Where a worker puts payloads: beside its answer, or into the arena, for which it asks the pool first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.arena.queue import Want
from coatcheck.errors import ConfigError
from coatcheck.intake.records import Grant, Job, Later, Need, Slot, Stored, Tensor

Values = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


class NoRoom(Exception):
    """There is no room now, or nobody waits for the job any more; the pool knows, and is told nothing."""


class Pool(Protocol):
    """The pool, as a worker sees it."""

    def ask(self, need: Need) -> Grant | Later:
        """Waits for the answer."""
        ...


class PayloadWriter:
    """Writes the payloads of one job."""

    def __init__(self, job: Job, pool: Pool, memory: memoryview | None) -> None:
        """``memory``: the arena's bytes, writable; None if there is no arena."""
        self.job = job
        self.frames: list[memoryview] = []  # payloads beside the answer, in order
        self._pool, self._memory = pool, memory

    def reserve(self, wants: Sequence[Want]) -> list[Slot | Stored | None]:
        """Where each payload goes, in order. None: beside the answer. To be called once, before anything is decoded.

        Raises NoRoom: the job is over for this worker.
        """
        if not self.job.arena or not wants:
            return [None] * len(wants)
        if self._memory is None:
            raise ConfigError("a job wants the arena, and there is none")
        granted = self._pool.ask(Need(self.job.job, tuple(wants)))
        if not isinstance(granted, Grant) or granted.job != self.job.job:
            raise NoRoom
        return list(granted.slots) or [None] * len(wants)

    def write(self, slot: Slot | None, values: Values, dtype: PixelForm) -> Tensor | Handle:
        """One payload, (patches, values), stored with that dtype. ``slot``: what ``reserve`` said of it.

        Raises ValueError if it is larger than its slot.
        """
        if slot is None:
            payload = np.ascontiguousarray(values, dtype=dtype)
            self.frames.append(payload.data.cast("B"))
            return Tensor(len(self.frames) - 1, payload.shape, dtype)
        assert self._memory is not None
        handle = Handle(slot.offset, slot.nonce, values.shape, dtype)
        size = nbytes(handle)
        if size > slot.nbytes:
            raise ValueError(f"{size} bytes where {slot.nbytes} were reserved")
        there = np.frombuffer(self._memory[slot.offset : slot.offset + size], dtype).reshape(values.shape)
        np.copyto(there, values, casting="unsafe")  # uint8: whole numbers, 0 to 255
        return handle
