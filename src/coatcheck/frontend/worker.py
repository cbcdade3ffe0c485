"""The image-processing process: takes jobs one at a time, answers each with a record.

:class:`coatcheck.frontend.workers.WorkerPool` starts it with the arguments ADDRESS, IDENTITY, CONFIG. It leaves when
its standard input ends, and dies with its parent. Its state is worthless: killing it costs the job at hand.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import zmq

from coatcheck import process, wire
from coatcheck.arena import ArenaAddress, AttachedMemory
from coatcheck.errors import BadRequest, ConfigError, WireError
from coatcheck.frontend.config import FrontendConfig, from_json
from coatcheck.messages import Failed, Grant, Handle, Job, Need, Processed, Refused, ToWorker, WorkerReady

if TYPE_CHECKING:
    from coatcheck.frontend.processor import Pixels, Processor

log = logging.getLogger("coatcheck.worker")


def main(address: str, identity: str, config_json: str, arena: str) -> None:
    """Serves jobs until standard input ends. ``identity``: "place.life" in the pool; ``arena``: "" if there is none."""
    place = identity.partition(".")[0]
    process.set_name(f"coatcheck-work{place}")  # "worker0" would not fit into the kernel's 15 characters
    process.die_with_parent()
    process.leave_signals_to_parent()
    logging.basicConfig(format=f"%(asctime)s coatcheck-worker{place} %(levelname)s %(message)s")
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    try:
        serve(socket, from_json(config_json), ArenaAddress.from_json(arena) if arena else None)
    finally:
        context.destroy(linger=0)


def serve(socket: zmq.Socket[bytes], config: FrontendConfig, arena: ArenaAddress | None) -> None:
    """Loads the model's processor, maps the arena, reports WorkerReady, answers jobs."""
    import torch
    from PIL import Image

    from coatcheck.frontend.processor import Processor

    torch.set_num_threads(1)  # as many workers as cores, not as many threads each
    Image.MAX_IMAGE_PIXELS = None  # this process enforces max_pixels from each header instead
    processor = Processor(config)
    desk = Desk(socket, arena)
    wire.send(socket, WorkerReady(pid=os.getpid()))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        if sys.stdin.fileno() in dict(poller.poll()):
            return  # nothing is ever written to it, so this is its end
        answer(socket, processor, desk)


class Desk:
    """The worker's side of the arena: asks for room, and writes."""

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

    def check_in(self, processed: Processed, pixels: Sequence[Pixels]) -> tuple[Processed, Sequence[Pixels]]:
        """The same, its pixels in the arena, or those that go beside it since the front end wants them there.

        Raises NoPlace if there was no room; the front end knows why.
        """
        if self._memory is None:
            raise ConfigError("a job wants the arena, and there is none")
        wire.send(self._socket, Need(processed.job, tuple(values.nbytes for values in pixels)))
        granted = self._decode(self._socket.recv())
        if not isinstance(granted, Grant) or granted.job != processed.job:
            raise NoPlace
        if not granted.places:
            return processed, pixels
        items = []
        for item, values, (offset, nonce) in zip(processed.items, pixels, granted.places, strict=True):
            self._memory.view[offset : offset + values.nbytes] = values.data.cast("B")
            items.append(msgspec.structs.replace(item, pixels=Handle(offset, nonce, item.pixels.shape, "float32")))
        return msgspec.structs.replace(processed, items=tuple(items)), ()


class NoPlace(Exception):
    """The arena had no room."""


def answer(socket: zmq.Socket[bytes], processor: Processor, desk: Desk) -> None:
    """Receives one job and sends exactly one answer back, whatever happens in it. Keeps nothing of it."""
    job, frames = desk.job()
    try:
        processed, pixels = processor.process(job.job, frames[0])
        beside: Sequence[Pixels] = pixels
        if job.arena and pixels:
            processed, beside = desk.check_in(processed, pixels)
        wire.send(socket, processed, [values.data.cast("B") for values in beside])
    except BadRequest as error:
        refused = Refused(job=job.job, message=str(error), param=error.param, code=error.code, status=error.status)
        wire.send(socket, refused)
    except NoPlace:
        wire.send(socket, Failed(job=job.job, message="There was no room for the request's payloads"))
    except Exception as error:
        log.error("job %d failed:\n%s", job.job, traceback.format_exc())
        wire.send(socket, Failed(job=job.job, message=f"The request could not be processed ({type(error).__name__})"))


if __name__ == "__main__":
    main(*sys.argv[1:5])
