"""The image-processing process: takes jobs one at a time, answers each with a record.

:class:`coatcheck.intake.pool.WorkerPool` starts it with the arguments ADDRESS, IDENTITY, CONFIG. It leaves when
its standard input ends, and dies with its parent. Its state is worthless: killing it costs the job at hand.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

import zmq

from coatcheck import process, wire
from coatcheck.arena import ArenaAddress
from coatcheck.engine.http.config import FrontendConfig, from_json
from coatcheck.errors import BadRequest
from coatcheck.intake.records import Failed, Refused, WorkerReady
from coatcheck.intake.writer import Desk, NoPlace

if TYPE_CHECKING:
    from coatcheck.engine.chat.handler import Processor

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

    from coatcheck.engine.chat.handler import Processor

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


def answer(socket: zmq.Socket[bytes], processor: Processor, desk: Desk) -> None:
    """Receives one job and sends exactly one answer back, whatever happens in it. Keeps nothing of it."""
    job, frames = desk.job()
    try:
        payloads: list[memoryview] = []
        wire.send(socket, processor.process(job, frames[0], desk.room(job, payloads)), payloads)
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
