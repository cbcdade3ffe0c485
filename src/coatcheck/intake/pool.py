"""The pool of workers: jobs in arrival order, one at a time per worker, each bounded in time; the dead are replaced.

Invariants (``tests/intake/test_pool.py``):

* Every job ends exactly once: done, refused, failed or cancelled.
* A job that waits for room in the arena occupies no worker. Its worker forgets it; once there is room it is the next
  job of a worker, which is told where to write as soon as it asks again.
* Reserved room is given back only once no worker can write there: after its answer, or its process's end.
"""

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

from coatcheck import wire
from coatcheck.arena import Arena
from coatcheck.arena.queue import ArenaQueue
from coatcheck.errors import ArenaError, BadRequest, Overloaded, WireError, WorkerFailed
from coatcheck.forkserver import ForkedChild, ForkServer
from coatcheck.intake.config import PoolConfig, WorkerSettings
from coatcheck.intake.placement import BESIDE, Placement, Policy
from coatcheck.intake.records import (
    Done,
    Failed,
    FromWorker,
    Job,
    Later,
    Need,
    Refused,
    ToWorker,
    WorkerReady,
    check_frames,
)
from coatcheck.sockets import PrivateEndpoint

log = logging.getLogger("coatcheck.intake")

COMMAND = (sys.executable, "-m", "coatcheck.intake.worker")
START_ATTEMPTS = 3  # starts in a row that fail before a worker's place, or what forks them, is given up
CLOSE_TIMEOUT_S = 1.0  # for a worker to leave by itself
BACK_OFF_S = 0.2  # doubled with every failed start
# One thread each, no network, no GPU: workers only prepare inputs.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

Answer = tuple[Done, list[memoryview]]
ROUNDS = 3  # times that a job may ask for room: it waits once, and what it wants may differ when it comes again


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
    body: Sequence[wire.Buffer]  # frames, as long as it may have to be sent again
    placement: Placement
    answer: asyncio.Future[Answer]
    rounds: int = 0  # that it has asked for room


@dataclass(eq=False)
class _Worker:
    identity: bytes
    process: ForkedChild
    deadline: asyncio.TimerHandle  # kills it: first bounds the start, then each job
    ready: bool = False
    task: _Task | None = None
    why: str = ""  # why we killed it, if we did


@dataclass
class _Counts:
    jobs: int = 0
    deaths: int = 0
    starts: int = 0  # of what forks workers, since a worker was ready
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class WorkerPool:
    """Runs ``config.workers`` workers. Use within one event loop; ``start`` first, ``close`` last."""

    def __init__(
        self,
        config: PoolConfig,
        handler: str,
        handler_config: str,
        *,
        arena: Arena | None = None,
        queue: ArenaQueue | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """``handler``: "module:Class", a :class:`coatcheck.intake.worker.Handler`, made of ``handler_config``.

        ``arena`` and ``queue``, both or none: where payloads go if ``process`` is told so.
        """
        self._config = config
        self._handler = (handler, handler_config)
        self._arena, self._queue = arena, queue
        self._reserving: set[asyncio.Task[None]] = set()
        self._command = tuple(command)
        self._workers: dict[bytes, _Worker] = {}
        self._idle: deque[_Worker] = deque()
        self._waiting: deque[_Task] = deque()
        self._places: list[asyncio.Task[None]] = []
        self._fork_server: ForkServer | None = None
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

    async def process(self, *body: wire.Buffer, policy: Policy = BESIDE) -> Answer:
        """One job through a worker, which gets the frames ``body``; the caller must not change them afterwards.

        With a holder in ``policy`` the caller ends the holder in any case.

        Raises BadRequest (the job is at fault), Overloaded (too many wait), ArenaFull or PayloadTooLarge, WorkerFailed
        (the worker failed, died or took longer than ``job_timeout_s``). Cancelling takes a waiting job out of the
        queue; one at a worker runs on unheard.
        """
        if self._failure is not None or self._closed:
            raise WorkerFailed(self._failure or "The workers are shut down")
        if len(self._waiting) + len(self._reserving) >= self._config.max_waiting:
            raise Overloaded("Too many requests wait for a worker")
        placement = Placement(policy, self._arena, self._queue)
        task = _Task(next(self._counts.numbers), body, placement, asyncio.get_running_loop().create_future())
        self._waiting.append(task)
        self._dispatch()
        try:
            return await task.answer
        finally:
            self._leave(task)

    def _leave(self, task: _Task) -> None:
        """Nobody waits for the job any more. One that no worker has holds nothing from here on."""
        with suppress(ValueError):
            self._waiting.remove(task)
        if not any(worker.task is task for worker in self._workers.values()):
            task.placement.close()

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
        tasks = [self._receiver, *self._places, *self._reserving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in list(self._workers.values()):
            worker.deadline.cancel()
            worker.process.close_input()
        ends = [asyncio.create_task(worker.process.wait()) for worker in self._workers.values()]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_TIMEOUT_S)
        for worker in list(self._workers.values()):
            self._kill(worker, "shut down")
        await asyncio.gather(*ends)
        for worker in list(self._workers.values()):
            self._bury(worker)
        if self._fork_server is not None:
            await self._fork_server.close()
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
            self._arm(worker, self._config.job_timeout_s, f"took longer than {self._config.job_timeout_s:g} s")
            policy = task.placement.policy
            self._send(worker, Job(task.job, policy.form, bool(policy.holder)), *task.body)
            if not policy.holder:
                task.body = ()  # ZeroMQ holds it now

    def _send(self, worker: _Worker, record: ToWorker, *frames: wire.Buffer) -> None:
        message = [worker.identity, wire.encode(record), *frames]
        sent = asyncio.ensure_future(self._socket.send_multipart(message, copy=not frames))
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
                self._heard(worker, decode(record), frames)
            except WireError as error:
                self._kill(worker, f"sent what we do not understand: {error}")
            except Exception:  # one bad record must not silence all workers
                log.exception("what a worker said could not be handled")
                self._kill(worker, "said what could not be handled")

    def _heard(self, worker: _Worker, record: FromWorker, frames: list[memoryview]) -> None:
        """Raises WireError if the record is out of turn."""
        task = worker.task
        match record:
            case WorkerReady() if task is None and not worker.ready:
                worker.ready = True
                self._counts.starts = 0
                self._settled.set()
                self._free(worker)
            case Need() if task is not None and record.job == task.job:
                self._need(worker, task, record)
            case Done() | Refused() | Failed() if task is not None and record.job == task.job:
                self._end(task, record, frames)
                self._counts.jobs += 1
                self._free(worker)
            case _:
                raise WireError(f"{type(record).__name__} out of turn")

    def _free(self, worker: _Worker) -> None:
        """The worker is ready for the next job."""
        worker.deadline.cancel()
        worker.task = None
        self._idle.append(worker)
        self._dispatch()

    def _end(self, task: _Task, record: Done | Refused | Failed, frames: list[memoryview]) -> None:
        """The worker's last word on the job. Raises WireError, nothing changed, if it cannot be."""
        error: Exception | None = None
        if isinstance(record, Refused):
            error = BadRequest(record.message, param=record.param, code=record.code)
        elif isinstance(record, Failed):
            error = WorkerFailed(record.message)
        else:
            check_frames(record.items, frames)
            if not task.answer.done():
                task.answer.set_result((task.placement.commit(record), frames))
        if error is not None and not task.answer.done():
            task.answer.set_exception(error)
        task.placement.close()

    # ------------------------------------------------------------------- room in the arena

    def _need(self, worker: _Worker, task: _Task, need: Need) -> None:
        """Grants what is there; else the worker is free, and the job waits for room by itself."""
        try:
            grant = task.placement.grant(need) if not task.answer.done() else None
        except ArenaError as error:
            grant = None
            task.answer.set_exception(error)
        if grant is not None:
            task.body = ()  # it is not sent again
            self._send(worker, grant)
            return
        self._send(worker, Later(need.job))
        if not task.answer.done():
            reserving = asyncio.create_task(self._reserve(task, need), name="coatcheck-room")
            self._reserving.add(reserving)
            reserving.add_done_callback(self._reserving.discard)
            task.answer.add_done_callback(lambda _: reserving.cancel())  # nobody waits any more: out of the line
        else:
            task.placement.close()
        self._free(worker)

    async def _reserve(self, task: _Task, need: Need) -> None:
        """Waits for room; then the job is the next for a worker."""
        task.rounds += 1
        try:
            if task.rounds > ROUNDS:
                raise WorkerFailed("What the request's URLs lead to changes all the time")
            await task.placement.reserve(need.wants, self._config.arena_wait_s)
        except (ArenaError, WorkerFailed) as error:
            if not task.answer.done():
                task.answer.set_exception(error)
            return
        except asyncio.CancelledError:
            if not task.answer.done():
                task.answer.set_exception(WorkerFailed("The workers are shut down"))
            raise
        if self._failure is not None and not task.answer.done():
            task.answer.set_exception(WorkerFailed(self._failure))
        if task.answer.done():
            task.placement.close()
            return
        self._waiting.appendleft(task)
        self._dispatch()

    # ------------------------------------------------------------------- processes

    async def _keep(self, place: int) -> None:
        """One place of the pool: a worker, and after its death the next."""
        failed = 0
        for life in itertools.count():
            try:
                worker = await self._spawn(place, life)
            except OSError as error:  # TimeoutError is one, too
                why, failed = str(error), failed + 1
                log.warning("worker %d cannot be started: %s", place, why)
            else:
                await worker.process.wait()
                self._counts.deaths += 1
                why = f"it {worker.why or 'ended'}"
                log.warning("worker %d, process %d: %s", place, worker.process.pid, why)
                self._bury(worker)
                failed = 0 if worker.ready else failed + 1
            if failed == START_ATTEMPTS:
                break
            if failed:
                await asyncio.sleep(BACK_OFF_S * 2**failed)
        log.error("worker %d is given up after %d failed starts", place, failed)
        if all(other.done() for other in self._places if other is not asyncio.current_task()):
            self._failure = f"No worker can be started: {why}"
            self._settled.set()
            self._fail_waiting(self._failure)

    async def _spawn(self, place: int, life: int) -> _Worker:
        """Raises OSError."""
        identity, server = f"{place}.{life}", self._forking()
        try:
            async with asyncio.timeout(self._config.worker_start_timeout_s):
                child = await server.fork(identity)
        except TimeoutError:
            server.kill()
            raise TimeoutError("it did not get ready in time") from None
        worker = _Worker(identity.encode(), child, asyncio.get_running_loop().call_later(0, lambda: None))
        self._arm(worker, self._config.worker_start_timeout_s, "did not get ready in time")
        self._workers[worker.identity] = worker
        return worker

    def _forking(self) -> ForkServer:
        """What forks workers, started anew if it has ended. Raises OSError."""
        last = self._fork_server
        if last is not None and last.status() is None:
            return last
        if last is not None and self._counts.starts == START_ATTEMPTS:
            raise ChildProcessError(f"the process that forks workers ended with status {last.status()}")
        if last is not None:
            last.kill()
        self._counts.starts += 1
        arena = self._arena.address if self._arena is not None else None
        settings = WorkerSettings(self._endpoint.address, arena, *self._handler)
        self._fork_server = ForkServer([*self._command, wire.to_argument(settings)], {**os.environ, **ENVIRONMENT})
        return self._fork_server

    def _arm(self, worker: _Worker, seconds: float, why: str) -> None:
        worker.deadline.cancel()
        worker.deadline = asyncio.get_running_loop().call_later(seconds, self._kill, worker, why)

    def _kill(self, worker: _Worker, why: str) -> None:
        worker.why = why
        worker.process.kill()

    def _bury(self, worker: _Worker) -> None:
        """Forgets a worker whose process has ended; its job fails."""
        worker.deadline.cancel()
        worker.process.close_input()
        self._workers.pop(worker.identity, None)
        with suppress(ValueError):
            self._idle.remove(worker)
        task, worker.task = worker.task, None
        if task is not None:
            task.placement.close()
        if task is not None and not task.answer.done():
            reason = f"The worker at this request {worker.why or 'died'}; sending it again is safe"
            task.answer.set_exception(WorkerFailed(reason))

    def _fail_waiting(self, reason: str) -> None:
        while self._waiting:
            task = self._waiting.popleft()
            if not task.answer.done():
                task.answer.set_exception(WorkerFailed(reason))
