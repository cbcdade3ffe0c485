"""The worker process: takes jobs one at a time and answers each with a record.

:class:`coatcheck.intake.pool.WorkerPool` starts it. It leaves when its standard input ends, and dies with its parent.
Its state is worthless: killing it costs the job at hand. Workers are forked from one process that has imported and made
all that they need (:mod:`coatcheck.forkserver`), and is told :class:`coatcheck.intake.config.WorkerSettings` as its one
argument.

What a job's body means is the program's matter: the settings name the class that handles it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import zmq

from coatcheck import forkserver, process, wire
from coatcheck.arena import ArenaAddress, AttachedMemory
from coatcheck.errors import BadRequest, WireError
from coatcheck.intake.config import WorkerSettings
from coatcheck.intake.records import Done, Failed, Grant, Item, Job, Later, Need, Refused, ToWorker, WorkerReady
from coatcheck.intake.writer import NoRoom, PayloadWriter
from coatcheck.wire import Buffer

log = logging.getLogger("coatcheck.worker")


class Handler(Protocol):
    """The program's part in a worker, made there as ``HANDLER(config)`` with the pool's ``handler_config``."""

    def handle(self, body: Sequence[Buffer], writer: PayloadWriter) -> tuple[tuple[Item, ...], bytes]:
        """The body's items, their payloads written by ``writer``; and what else the program wants to know, encoded.

        ``body``: frames, as the pool was given them. Raises BadRequest if they are at fault; NoRoom comes from the
        writer.
        """
        ...


class PoolSocket:
    """The worker's connection to its pool."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._decode = wire.Decoder[ToWorker](ToWorker)

    def next_job(self) -> tuple[Job, Sequence[memoryview]]:
        """The next job and its frames."""
        record, frames = wire.split(self._socket.recv_multipart(copy=False))
        job = self._decode(record)
        if not isinstance(job, Job):
            raise WireError(f"a job was expected, {type(job).__name__} came")
        return job, frames

    def ask(self, need: Need) -> Grant | Later:
        """See :class:`coatcheck.intake.writer.Pool`."""
        wire.send(self._socket, need)
        answer = self._decode(self._socket.recv())
        if isinstance(answer, Job):
            raise WireError("a job came in the middle of a job")
        return answer

    def answer(self, record: Done | Refused | Failed | WorkerReady, frames: Sequence[memoryview] = ()) -> None:
        """The job's one answer."""
        wire.send(self._socket, record, frames)


def main(argument: str) -> None:
    """Forks workers until standard input ends. ``argument``: WorkerSettings."""
    settings = wire.from_argument(argument, WorkerSettings)
    process.set_name("coatcheck-works")
    process.die_with_parent()
    process.leave_signals_to_parent()
    logging.basicConfig(format="%(asctime)s coatcheck-workers %(levelname)s %(message)s")
    forkserver.serve(partial(work, settings, _made(settings.handler, settings.handler_config)))


def work(settings: WorkerSettings, handler: Handler, identity: str) -> None:
    """A worker: serves jobs until standard input ends. ``identity``: "place.life" in the pool."""
    place = identity.partition(".")[0]
    process.set_name(f"coatcheck-work{place}")  # "worker0" would not fit into the kernel's 15 characters
    logging.basicConfig(format=f"%(asctime)s coatcheck-worker{place} %(levelname)s %(message)s", force=True)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(settings.pool)
    try:
        serve(socket, settings.arena, handler)
    finally:
        context.destroy(linger=0)


def _made(handler: str, config: str) -> Handler:
    module, _, name = handler.partition(":")
    made: Handler = getattr(importlib.import_module(module), name)(config)
    return made


def serve(socket: zmq.Socket[bytes], arena: ArenaAddress | None, handler: Handler) -> None:
    """Maps the arena, reports WorkerReady, answers jobs."""
    mapped = AttachedMemory(arena, writable=True) if arena is not None else None
    memory = mapped.view if mapped is not None else None
    pool = PoolSocket(socket)
    pool.answer(WorkerReady(pid=os.getpid()))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        if sys.stdin.fileno() in dict(poller.poll()):
            return  # nothing is ever written to it, so this is its end
        answer(pool, memory, handler)


def answer(pool: PoolSocket, memory: memoryview | None, handler: Handler) -> None:
    """One job, whatever happens in it. Keeps nothing of it."""
    job, frames = pool.next_job()
    writer = PayloadWriter(job, pool, memory)
    try:
        items, result = handler.handle(frames, writer)
        pool.answer(Done(job.job, items, result), writer.frames)
    except BadRequest as error:
        pool.answer(Refused(job.job, str(error), error.param, error.code))
    except NoRoom:
        pass  # the pool said so itself
    except Exception as error:
        log.error("job %d failed:\n%s", job.job, traceback.format_exc())
        pool.answer(Failed(job.job, f"The request could not be processed ({type(error).__name__})"))


if __name__ == "__main__":
    main(sys.argv[1])
