"""Where a worker puts payloads: beside its answer, or into the arena, for which it asks the front end first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import zmq

from coatcheck import wire
from coatcheck.arena import ArenaAddress, AttachedMemory
from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.errors import ConfigError, WireError
from coatcheck.intake.records import Grant, Job, Need, Place, Stored, Tensor, ToWorker, Want

Values = npt.NDArray[np.float32]

Take = Callable[[Values, PixelForm], Tensor | Handle]
"""Takes one payload, (patches, values), stores it with that dtype and says where it is."""

Room = Callable[[Sequence[Want]], Sequence[Take | Stored]]
"""Asked before anything is decoded: who takes each payload, or that it is there already."""


class NoPlace(Exception):
    """The arena had no room, or nobody waits for the request any more; the front end knows."""


def beside(frames: list[memoryview]) -> Room:
    """Payloads are appended to ``frames``."""

    def take(values: Values, dtype: PixelForm) -> Tensor:
        payload = np.ascontiguousarray(values, dtype=dtype)
        frames.append(payload.data.cast("B"))
        return Tensor(len(frames) - 1, payload.shape, dtype)

    return lambda wants: [take] * len(wants)


class Desk:
    """The worker's way to the front end: jobs, and room in the arena."""

    def __init__(self, socket: zmq.Socket[bytes], address: ArenaAddress | None) -> None:
        self._socket = socket
        self._memory = AttachedMemory(address, writable=True) if address is not None else None
        self._decode = wire.Decoder[ToWorker](ToWorker)

    def job(self) -> tuple[Job, Sequence[memoryview]]:
        """The next job and its frames."""
        record, frames = wire.split(self._socket.recv_multipart(copy=False))
        job = self._decode(record)
        if not isinstance(job, Job):
            raise WireError(f"a job was expected, {type(job).__name__} came")
        return job, frames

    def room(self, job: Job, frames: list[memoryview]) -> Room:
        """Where this job's payloads go: into the arena if the front end wants it so, or into ``frames``."""
        return partial(self._ask, job.job, frames) if job.arena else beside(frames)

    def _ask(self, job: int, frames: list[memoryview], wants: Sequence[Want]) -> Sequence[Take | Stored]:
        """Raises NoPlace."""
        if self._memory is None:
            raise ConfigError("a job wants the arena, and there is none")
        wire.send(self._socket, Need(job, tuple(wants)))
        granted = self._decode(self._socket.recv())
        if not isinstance(granted, Grant) or granted.job != job:
            raise NoPlace
        if not granted.places:
            return beside(frames)(wants)
        return [
            place if isinstance(place, Stored) else partial(self._write, place, want.nbytes)
            for place, want in zip(granted.places, wants, strict=True)
        ]

    def _write(self, place: Place, room: int, values: Values, dtype: PixelForm) -> Handle:
        """Into the arena, in place."""
        assert self._memory is not None
        handle = Handle(place.offset, place.nonce, values.shape, dtype)
        if nbytes(handle) > room:
            raise ValueError(f"{nbytes(handle)} bytes where {room} were reserved")
        there = self._memory.view[place.offset : place.offset + nbytes(handle)]
        np.copyto(np.frombuffer(there, dtype).reshape(values.shape), values, casting="unsafe")  # uint8: whole, 0 to 255
        return handle
