"""Workers of a pool that do what a job's body says, without torch: ``python -m tests.support.pool_workers KIND``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import zmq

from coatcheck import forkserver, process, wire
from coatcheck.arena import AttachedMemory
from coatcheck.arena.handle import Handle
from coatcheck.arena.queue import Want
from coatcheck.intake.config import WorkerSettings
from coatcheck.intake.records import Done, Failed, Item, Job, Later, Need, Refused, Slot, ToWorker, WorkerReady

_decode = wire.Decoder[ToWorker](ToWorker)


class Connection:
    """To the pool."""

    def __init__(self, settings: WorkerSettings, identity: str) -> None:
        self.socket = zmq.Context().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self.socket.connect(settings.pool)
        self.send(WorkerReady(pid=os.getpid()))

    def send(self, record: Any) -> None:
        """To the pool."""
        wire.send(self.socket, record)

    def jobs(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and bodies, until standard input ends."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(0, zmq.POLLIN)
        while 0 not in dict(poller.poll()):
            record, body = self.socket.recv_multipart()
            job = _decode(record)
            assert isinstance(job, Job)
            yield job.job, body


def obeys(settings: WorkerSettings, identity: str) -> None:
    """Answers with the number of bytes."""
    pool = Connection(settings, identity)
    for job, body in pool.jobs():
        match body:
            case b"die":
                os._exit(3)
            case b"sleep":
                time.sleep(60)
            case b"nap":
                time.sleep(0.3)
            case b"refuse":
                pool.send(Refused(job=job, message="no", param="p", code="c"))
                continue
            case b"fail":
                pool.send(Failed(job=job, message="oops"))
                continue
            case b"nonsense":
                pool.socket.send(b"nonsense")
                continue
        pool.send(Done(job + (body == b"other"), (), b"%d" % len(body)))


def asks_for_room(settings: WorkerSettings, identity: str) -> None:
    """Two payloads of 5 and 6 bytes a job."""
    pool = Connection(settings, identity)
    assert settings.arena is not None
    memory = AttachedMemory(settings.arena, writable=True).view
    for asked, (job, body) in enumerate(pool.jobs()):
        if body == b"text":
            pool.send(Done(job, (), body))
            continue
        pool.send(Need(job, (Want(5), Want(6 + asked * (body == b"grows")))))
        granted = _decode(pool.socket.recv())
        if isinstance(granted, Later):
            continue
        assert not isinstance(granted, Job)
        items = []
        for slot, size in zip(granted.slots, (5, 6), strict=True):
            assert isinstance(slot, Slot)
            memory[slot.offset : slot.offset + size] = body[:1] * size
            items.append(Item(Handle(slot.offset, slot.nonce, (size,), "uint8"), (1, 1, 1), 0, 1))
        match body:
            case b"die":
                os._exit(3)
            case b"sleep":
                time.sleep(60)
            case b"refuse":
                pool.send(Refused(job, "no", "p", "c"))
                continue
            case b"twice":
                pool.send(Need(job, (Want(5), Want(6))))
                time.sleep(60)
            case b"elsewhere":
                items[0] = Item(Handle(0, 1, (5,), "uint8"), (1, 1, 1), 0, 1)
        pool.send(Done(job, tuple(items), body))


def dies(settings: WorkerSettings, identity: str) -> None:
    """Before it is ready."""
    raise SystemExit(7)


def never_ready(settings: WorkerSettings, identity: str) -> None:
    """A minute long."""
    time.sleep(60)


KINDS: dict[str, Callable[[WorkerSettings, str], None]] = {
    made.__name__: made for made in (obeys, asks_for_room, dies, never_ready)
}


def main(kind: str, argument: str) -> None:
    """Forks workers of that kind."""
    process.die_with_parent()
    process.leave_signals_to_parent()
    if kind == "no_workers":
        raise SystemExit(7)
    if kind == "stuck":
        time.sleep(60)
    forkserver.serve(partial(KINDS[kind], wire.from_argument(argument, WorkerSettings)))


def command(kind: str) -> list[str]:
    """For a pool."""
    return [sys.executable, "-m", "tests.support.pool_workers", kind]


if __name__ == "__main__":
    main(*sys.argv[1:])
