"""The pool of workers: jobs in arrival order, one at a time per worker, each bounded in time; the dead are replaced."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import zmq
import zmq.asyncio

from coatcheck import process, wire
from coatcheck.engine.http.config import FrontendConfig, to_json
from coatcheck.errors import BadRequest, Overloaded, WireError, WorkerFailed
from coatcheck.intake.placement import BESIDE, Payloads, Placing
from coatcheck.intake.records import (
    Failed,
    FromWorker,
    Grant,
    Job,
    Need,
    NoRoom,
    Processed,
    Refused,
    WorkerReady,
    check_frames,
)
from coatcheck.intake.rooms import Rooms
from coatcheck.sockets import PrivateEndpoint

log = logging.getLogger("coatcheck.frontend")

COMMAND = (sys.executable, "-m", "coatcheck.intake.worker")
START_ATTEMPTS = 3  # starts in a row that fail before a worker's place is given up
CLOSE_TIMEOUT_S = 1.0  # for a worker to leave by itself
BACK_OFF_S = 0.2  # doubled with every failed start
# One thread each, no network, no GPU: workers only prepare inputs.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

Answer = tuple[Processed, list[memoryview]]
NO_ARENA = ""


@dataclass(frozen=True)
class WorkerStatistics:
    """A snapshot of a pool."""

    workers: int  # places
    ready: int  # workers that can take jobs or are at one
    busy: int
    waiting: int  # jobs that no worker has taken yet
    jobs: int  # answered so far, refusals included
    deaths: int  # workers that ended other than by close()


@dataclass(eq=False)
class _Task:
    job: int
    body: wire.Buffer
    placing: Placing
    answer: asyncio.Future[Answer]


@dataclass(eq=False)
class _Worker:
    identity: bytes
    process: asyncio.subprocess.Process
    deadline: asyncio.TimerHandle  # kills it: first bounds the start, then each job
    ready: bool = False
    task: _Task | None = None
    why: str = ""  # why we killed it, if we did


@dataclass
class _Counts:
    jobs: int = 0
    deaths: int = 0
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class WorkerPool:
    """Runs ``config.workers`` workers. Use within one event loop; ``start`` first, ``close`` last."""

    def __init__(self, config: FrontendConfig, *, command: Sequence[str] = COMMAND, rooms: Rooms | None = None) -> None:
        """``rooms``: where payloads go if ``process`` is told so."""
        self._config = config
        self._rooms = rooms
        self._grants: set[asyncio.Task[None]] = set()
        self._command = tuple(command)
        self._workers: dict[bytes, _Worker] = {}
        self._idle: deque[_Worker] = deque()
        self._waiting: deque[_Task] = deque()
        self._places: list[asyncio.Task[None]] = []
        self._receiver: asyncio.Task[None] | None = None
        self._counts = _Counts()
        self._failure: str | None = None
        self._settled = asyncio.Event()  # a first worker is ready, or none ever will be
        self._closed = False

    async def start(self) -> None:
        """Binds and begins to start workers; does not wait for them."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._endpoint = PrivateEndpoint(self._socket)
        self._receiver = asyncio.create_task(self._receive(), name="coatcheck-from-workers")
        for place in range(self._config.workers):
            self._places.append(asyncio.create_task(self._keep(place), name=f"coatcheck-worker{place}"))

    async def ready(self, timeout_s: float) -> None:
        """Waits for a first worker. Raises WorkerFailed if none can be started, TimeoutError after that time."""
        async with asyncio.timeout(timeout_s):
            await self._settled.wait()
        if self._failure is not None:
            raise WorkerFailed(self._failure)

    @property
    def is_ready(self) -> bool:
        """A worker has been ready, and the pool has not failed since: jobs are taken, if perhaps after a restart."""
        return self._settled.is_set() and self._failure is None and not self._closed

    async def process(self, body: wire.Buffer, payloads: Payloads = BESIDE) -> Answer:
        """One request's body through a worker; the caller must not change ``body`` afterwards.

        With a holder in ``payloads`` the caller ends the holder in any case.

        Raises BadRequest (the client's fault), Overloaded (too many wait, or the arena is full), WorkerFailed (the
        worker failed, died or took longer than ``job_timeout_s``). Cancelling takes a waiting job out of the queue;
        one at a worker runs on unheard.
        """
        if self._failure is not None or self._closed:
            raise WorkerFailed(self._failure or "The workers are shut down")
        if len(self._waiting) >= self._config.max_waiting:
            raise Overloaded("Too many requests wait for a worker")
        placing = Placing(payloads, self._rooms)
        task = _Task(next(self._counts.numbers), body, placing, asyncio.get_running_loop().create_future())
        self._waiting.append(task)
        self._dispatch()
        try:
            return await task.answer
        finally:
            with suppress(ValueError):
                self._waiting.remove(task)

    def pids(self) -> tuple[int, ...]:
        """Of the workers that run now, in order of their places."""
        return tuple(worker.process.pid for _, worker in sorted(self._workers.items()))

    def statistics(self) -> WorkerStatistics:
        """A snapshot."""
        workers = self._workers.values()
        return WorkerStatistics(
            workers=self._config.workers,
            ready=sum(worker.ready for worker in workers),
            busy=sum(worker.task is not None for worker in workers),
            waiting=len(self._waiting),
            jobs=self._counts.jobs,
            deaths=self._counts.deaths,
        )

    async def close(self) -> None:
        """Ends the workers, by force after a second; open jobs raise WorkerFailed. Idempotent."""
        if self._closed or self._receiver is None:
            return
        self._closed = True
        tasks = [self._receiver, *self._places, *self._grants]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in list(self._workers.values()):
            worker.deadline.cancel()
            assert worker.process.stdin is not None
            worker.process.stdin.close()
        ends = [asyncio.create_task(worker.process.wait()) for worker in self._workers.values()]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_TIMEOUT_S)
        for worker in list(self._workers.values()):
            self._kill(worker, "shut down")
        await asyncio.gather(*ends)
        for worker in list(self._workers.values()):
            self._bury(worker)
        self._fail_waiting("The workers are shut down")
        self._endpoint.close()
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------- jobs

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            task = self._waiting.popleft()
            if task.answer.done():  # cancelled
                continue
            worker = self._idle.popleft()
            worker.task = task
            self._arm_job(worker)
            message = [
                worker.identity,
                wire.encode(Job(task.job, task.placing.payloads.form, bool(task.placing.payloads.holder))),
                task.body,
            ]
            task.body = b""  # ZeroMQ holds it now
            self._send(worker, message)

    def _send(self, worker: _Worker, message: list[wire.Buffer]) -> None:
        sent = asyncio.ensure_future(self._socket.send_multipart(message, copy=False))
        sent.add_done_callback(lambda done: self._sent(done, worker))

    def _sent(self, done: asyncio.Future[Any], worker: _Worker) -> None:
        if not done.cancelled() and done.exception() is not None:
            self._kill(worker, "could not be reached")

    async def _receive(self) -> None:
        decode = wire.Decoder[FromWorker](FromWorker)
        while True:
            message = await self._socket.recv_multipart(copy=False)
            worker = self._workers.get(message[0].bytes)
            if worker is None:
                continue  # buried since
            try:
                record, frames = wire.split(message[1:])
                self._answered(worker, decode(record), frames)
            except WireError as error:
                self._kill(worker, f"sent what we do not understand: {error}")

    def _needs(self, worker: _Worker, need: Need) -> None:
        task = worker.task
        if task is None or need.job != task.job:
            raise WireError("room asked for no job of its own")
        task.placing.expects(need)
        worker.deadline.cancel()  # waiting for room is bounded by itself, and no fault of the worker's

        async def grant() -> None:
            reply: Grant | NoRoom = NoRoom(need.job)
            try:
                reply = await task.placing.grant(need, lambda: worker.task is task and not task.answer.done())
            finally:
                if worker.task is task and not self._closed:
                    self._arm_job(worker)
                    self._send(worker, [worker.identity, wire.encode(reply)])

        waiting = asyncio.create_task(grant(), name="coatcheck-room")
        self._grants.add(waiting)
        waiting.add_done_callback(self._grants.discard)
        task.answer.add_done_callback(lambda _: waiting.cancel())  # nobody waits any more: out of the line

    def _answered(self, worker: _Worker, record: FromWorker, frames: list[memoryview]) -> None:
        if isinstance(record, Need):
            self._needs(worker, record)
            return
        task, worker.task = worker.task, None
        worker.deadline.cancel()
        if isinstance(record, WorkerReady) and task is None:
            worker.ready = True
            self._settled.set()
        elif isinstance(record, WorkerReady):
            worker.task = task
            raise WireError("ready in the middle of a job")
        elif task is None or record.job != task.job:
            worker.task = task
            raise WireError("an answer to no job of its own")
        else:
            self._counts.jobs += 1
            try:
                answer = self._answer(task, record, frames)
            except (BadRequest, Overloaded, WorkerFailed) as error:
                if not task.answer.done():
                    task.answer.set_exception(error)
            except WireError:
                worker.task = task
                raise
            else:
                if not task.answer.done():
                    task.answer.set_result(answer)
            task.placing.let_go()
        self._idle.append(worker)
        self._dispatch()

    def _answer(self, task: _Task, record: Processed | Refused | Failed, frames: list[memoryview]) -> Answer:
        if task.placing.refusal is not None:
            raise task.placing.refusal
        if isinstance(record, Refused):
            raise BadRequest(record.message, param=record.param, code=record.code, status=record.status)
        if isinstance(record, Failed):
            raise WorkerFailed(record.message)
        check_frames(record.items, frames)
        if not task.answer.done():
            record = task.placing.check_in(record)
        return record, frames

    # ------------------------------------------------------------------- processes

    async def _keep(self, place: int) -> None:
        """One place of the pool: a worker, and after its death the next."""
        failed = 0
        for life in itertools.count():
            try:
                worker = await self._spawn(place, life)
            except OSError as error:  # no memory or no process number left
                status, failed = error.errno or -1, failed + 1
                log.warning("worker %d cannot be started: %s", place, error)
            else:
                status = await worker.process.wait()
                self._counts.deaths += 1
                log.warning("worker %d ended with status %d %s", place, status, worker.why)
                self._bury(worker)
                failed = 0 if worker.ready else failed + 1
            if failed == START_ATTEMPTS:
                break
            if failed:
                await asyncio.sleep(BACK_OFF_S * 2**failed)
        log.error("worker %d is given up after %d failed starts", place, failed)
        if all(other.done() for other in self._places if other is not asyncio.current_task()):
            self._failure = f"No worker can be started; the last one ended with status {status}"
            self._settled.set()
            self._fail_waiting(self._failure)

    async def _spawn(self, place: int, life: int) -> _Worker:
        identity = f"{place}.{life}"
        arena = self._rooms.arena.address.to_json() if self._rooms is not None else NO_ARENA
        arguments = (self._endpoint.address, identity, to_json(self._config), arena)
        environment = {**os.environ, **ENVIRONMENT, process.PARENT: str(os.getpid())}
        child = await asyncio.create_subprocess_exec(
            *self._command, *arguments, stdin=asyncio.subprocess.PIPE, env=environment
        )
        worker = _Worker(identity.encode(), child, asyncio.get_running_loop().call_later(0, lambda: None))
        self._arm(worker, self._config.worker_start_timeout_s, "did not get ready in time")
        self._workers[worker.identity] = worker
        return worker

    def _arm_job(self, worker: _Worker) -> None:
        self._arm(worker, self._config.job_timeout_s, f"took longer than {self._config.job_timeout_s:g} s")

    def _arm(self, worker: _Worker, seconds: float, why: str) -> None:
        worker.deadline.cancel()
        worker.deadline = asyncio.get_running_loop().call_later(seconds, self._kill, worker, why)

    def _kill(self, worker: _Worker, why: str) -> None:
        worker.why = why
        with suppress(ProcessLookupError):
            worker.process.kill()

    def _bury(self, worker: _Worker) -> None:
        """Forgets a worker whose process has ended; its job fails."""
        worker.deadline.cancel()
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        self._workers.pop(worker.identity, None)
        with suppress(ValueError):
            self._idle.remove(worker)
        task, worker.task = worker.task, None
        if task is not None:
            task.placing.let_go()
        if task is not None and not task.answer.done():
            reason = f"The worker at this request {worker.why or 'died'}; sending it again is safe"
            task.answer.set_exception(WorkerFailed(reason))

    def _fail_waiting(self, reason: str) -> None:
        while self._waiting:
            task = self._waiting.popleft()
            if not task.answer.done():
                task.answer.set_exception(WorkerFailed(reason))
