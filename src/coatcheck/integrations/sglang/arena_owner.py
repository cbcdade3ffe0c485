"""The arena's owner, in the tokenizer's process: checks inputs in and hears the ranks, without SGLang.

Invariants (``tests/integrations/sglang``), beside those of :mod:`coatcheck.integrations.sglang.prepare`
and :mod:`coatcheck.arena.queue`:

* Room comes first: what finds none has cost nothing but the question.
* A block is reserved, written, dispatched, and only then named by a ticket; each ticket is one dispatch of its own to
  every rank, so that content that is sent n + 1 times is written once and given back n + 1 times.
* Whoever waits for the ranks and is cancelled has withdrawn its ticket.
* A block that a thread may still be writing to is nobody else's, also when who waited for it has gone.
* The event loop only waits: hashing, packing and copying run on threads, the bulk of it without the interpreter's lock.
* Silence of a rank costs a request at most ``READY_TIMEOUT_S``, and all further ones nothing, until it answers.
* The arena does not outlive its ranks: when one of them has ended, all of it is freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import zmq

from coatcheck.arena import Arena, ArenaStatistics
from coatcheck.arena.handle import Handle
from coatcheck.arena.queue import ArenaQueue, Reservation, Want
from coatcheck.delivery.records import Ready, Returned
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.pool import WorkerPool
from coatcheck.integrations.sglang.breaker import Breaker, Silence
from coatcheck.integrations.sglang.codec import Digests, flat
from coatcheck.integrations.sglang.compact import Stored, handles
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.prepare import Announcements
from coatcheck.integrations.sglang.processes import Processes
from coatcheck.integrations.sglang.records import (
    Alive,
    Attached,
    Failed,
    Goodbye,
    Hello,
    Probe,
    Ticket,
    Withdrawn,
    from_ranks,
)
from coatcheck.sockets import PrivateEndpoint, pull, push
from coatcheck.wire import encode, received

log = logging.getLogger(__name__)

WRITERS = 2  # threads that hash and copy: as many as SGLang 0.5.23 has for its hashes
READY_TIMEOUT_S = 5.0  # of a rank's report: preparing takes a millisecond, beside whatever its scheduler does
GOODBYE_MS = 500  # at most, until the last that ranks are told is on its way
LOOK_S = 0.5  # between looks for what is overdue, at least

WAITS = 1000  # that are kept, if nobody reads them
_WAITED_S = 0.001  # below it a request did not wait for room, but for its turn on the event loop
_OPEN = "coatcheck carries nothing for now, and requests take SGLang's own way, until every rank answers"


class Refused(Exception):
    """SGLang's own code could not take the inputs, on some rank; the text says why."""


class Trouble(Exception):
    """Ours, not the request's: SGLang's own way may serve it."""


@dataclass(frozen=True)
class RankAddress:
    """A rank, as it tells when it is ready."""

    tickets: str  # where it takes them
    pid: int


class Parcel(Protocol):
    """A request's inputs, to be checked in."""

    @property
    def blocks(self) -> Sequence[torch.Tensor]:
        """The tensors that get a block each."""
        ...

    @property
    def unhashed(self) -> int:
        """Bytes that every rank would hash, by SGLang's own way."""
        ...

    def check(self) -> None:
        """Raises Unpackable if ``body`` would. On a thread, before anything is hashed or copied."""
        ...

    def body(self) -> bytes:
        """All the rest, packed. On a thread. Raises Unpackable."""
        ...


class ArenaOwner:
    """``check_in`` is called on an event loop, everything else anywhere."""

    def __init__(self, size: int, ranks: Sequence[RankAddress], pace: Pace, *, poison: bool = False) -> None:
        """``size``: bytes of the arena, faulted in here, which takes about a second a GiB. Raises ConfigError.

        ``poison``: as :class:`coatcheck.arena.Arena` has it.
        """
        self.pace = pace
        self.waits = deque[float](maxlen=WAITS)  # seconds, of requests that waited for room; who reads, removes
        self._ranks = len(ranks)
        self._arena = Arena(size, poison=poison)
        self._digests = Digests()
        self._breaker = Breaker(self._ranks)
        self._silence = Silence(self._ranks, READY_TIMEOUT_S)
        self._lock = threading.Lock()  # around the arena, the breaker, what is announced, and the ways to the ranks
        self._queue = ArenaQueue(self._arena, self._lock)
        self._before_end = list[Callable[[], None]]()
        self._over = deque[str]()  # holders that nobody refers to any more; appended to in deallocations
        self._names = map(str, itertools.count())
        self._announcements = Announcements(self._ranks, READY_TIMEOUT_S, self._tell)
        self._missing = set(range(self._ranks))  # ranks that have not attached
        self._heard = threading.Event()  # every rank has said whether it attached, or nothing more will be heard
        self.problem = ""  # why not all have attached
        self._closing = self._rank_ended = False
        self.closed = threading.Event()
        self._writers = ThreadPoolExecutor(WRITERS, "coatcheck-writer")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0
        with contextlib.ExitStack() as undo:  # what has been taken, if something is not to be had: a socket, a thread
            undo.callback(self._arena.close)
            undo.callback(self._context.destroy, 0)
            self._reports = pull(self._context)
            self._endpoint = PrivateEndpoint(self._reports)
            undo.callback(self._endpoint.close)
            self._processes = Processes(rank.pid for rank in ranks)
            undo.callback(self._processes.close)
            self._tickets = [push(self._context, rank.tickets) for rank in ranks]
            with self._lock:
                self._tell(Hello(self._arena.address, self._endpoint.address))
            self._thread = threading.Thread(target=self._hear, name="coatcheck-reports", daemon=True)
            self._thread.start()
            undo.pop_all()

    def wait_attached(self, timeout_s: float) -> str:
        """Empty once every rank has mapped the arena; else why not."""
        if not self._heard.wait(timeout_s):
            return f"rank {', '.join(map(str, sorted(self._missing)))} did not map the arena within {timeout_s:g} s"
        return self.problem

    @property
    def carries(self) -> bool:
        """Tickets may go out."""
        return not self._missing and not self._breaker.open and not self._closing

    @property
    def standing_aside(self) -> bool:
        """The breaker is open."""
        return self._breaker.open

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return self._queue.waiting

    @property
    def capacity(self) -> int:
        """Bytes of the arena."""
        return self._arena.capacity

    def worker_pool(self, config: PoolConfig, handler: str, handler_config: str) -> WorkerPool:
        """Of workers that write into this arena. It is to be closed before the owner."""
        return WorkerPool(config, handler, handler_config, arena=self._arena, queue=self._queue)

    def before_end(self, call: Callable[[], None]) -> None:
        """``call`` is called once, on a thread, before the arena is closed. It must not take long."""
        self._before_end.append(call)

    def new_holder(self) -> str:
        """A name under which a worker's images are kept."""
        with self._lock:
            return next(self._names)

    def end(self, holder: str) -> None:
        """Nobody needs what it keeps."""
        with self._lock:
            self._arena.end(holder)

    async def check_in_stored(self, images: Sequence[Stored], body: Callable[[], bytes]) -> Ticket:
        """As ``check_in``, of images that workers have written here already. ``body`` is called on a thread.

        Raises Unpackable, Refused and Trouble; then nothing more is held than before.
        """
        holders = [image.holding for image in images]
        with self._lock:
            self._must_carry()
            self._end_over()
            request = next(self._names)
            try:
                for holding in dict.fromkeys(holders):
                    if not isinstance(holding, ArenaHolding) or holding.owner is not self:
                        raise Trouble("an image of another arena")
                    self._arena.share(holding.holder, request)
            except (KeyError, Trouble) as error:
                self._arena.end(request)
                raise Trouble(f"an image is not in the arena any more: {error}") from error
        start = time.monotonic()
        try:
            packed = await asyncio.wrap_future(self._writers.submit(body))
        except BaseException as error:  # cancelled, closed meanwhile, or not packable
            with self._lock:
                self._arena.end(request)
            if isinstance(error, RuntimeError):
                raise Trouble(str(error)) from error
            raise
        return await self._announced(request, handles(images), packed, start)

    async def check_in(self, parcel: Parcel) -> Ticket:
        """The inputs are in the arena, and every rank has prepared them.

        Waits for room as long as ``pace`` allows. The caller sends a claim of the ticket to all ranks, or calls
        ``withdraw``. Raises ArenaFull or PayloadTooLarge, Unpackable, Refused and Trouble; then nothing is held.
        """
        nbytes = sum(block.nbytes for block in parcel.blocks)
        wants = [Want(one.nbytes, self._digests.known(one) or b"") for one in parcel.blocks]
        with self._lock:
            self._must_carry()
            self._end_over()
            request = next(self._names)
        asked = time.monotonic()
        got = await self._queue.reserve(request, wants, self.pace.patience_s(nbytes, parcel.unhashed))
        start = time.monotonic()
        if start - asked > _WAITED_S:
            self.waits.append(start - asked)
        try:
            storing = self._writers.submit(self._store, request, parcel, got)
        except RuntimeError as error:  # closed meanwhile
            with self._lock:
                self._queue.cancel(request, got)
            raise Trouble(str(error)) from error
        try:
            written, body = await asyncio.wrap_future(storing)
        except asyncio.CancelledError:  # the thread, once it has begun, writes on
            storing.add_done_callback(lambda done: self._stored_for_nobody(request, got, done))
            raise
        ticket = await self._announced(request, written, body, start)
        self.pace.carried(nbytes, time.monotonic() - start)
        return ticket

    async def _announced(self, request: str, written: tuple[Handle, ...], body: bytes, start: float) -> Ticket:
        """Every rank has prepared it. Else nothing is held."""
        with self._lock:
            try:
                self._must_carry()  # a rank may have fallen silent meanwhile
            except Trouble:
                self._arena.end(request)
                raise
            if written:
                self._arena.dispatch(request, range(self._ranks))
            ticket, now = Ticket(request, body, written), time.monotonic()
            prepared = self._announcements.announce(ticket, now)
            self._silence.told(request, now)
        try:
            outcome = await asyncio.wrap_future(prepared)
        except asyncio.CancelledError:
            self.withdraw(ticket)
            raise
        with self._lock:
            if outcome.end == "ready":
                self._breaker.carried()
            elif outcome.end == "failed" and self._breaker.failed(time.monotonic()):
                log.warning("%s. %s", outcome.why, _OPEN)
        if outcome.end == "refused":
            raise Refused(outcome.why)
        if outcome.end != "ready":
            raise Trouble(outcome.why)
        return ticket

    def _must_carry(self) -> None:
        """Raises Trouble unless tickets may go out. Under the lock."""
        if not self.carries:
            raise Trouble("the ranks have ended" if self._closing else "not every rank answers")

    # ------------------------------------------------------------------ on a writer's thread

    def _store(self, request: str, parcel: Parcel, places: list[Reservation]) -> tuple[tuple[Handle, ...], bytes]:
        """If it fails, nothing is held."""
        try:
            parcel.check()
            for tensor, place in zip(parcel.blocks, places, strict=True):
                if not place.filled:
                    self._fill(request, tensor, place)
            blocks = [place.block for place in places]
            return tuple(block.handle((block.nbytes,), "uint8") for block in blocks), parcel.body()
        except BaseException:
            with self._lock:
                self._queue.cancel(request, places)
            raise

    def _fill(self, request: str, tensor: torch.Tensor, place: Reservation) -> None:
        row = flat(tensor)
        digest = self._digests.of(tensor, row)
        with self._lock:
            known = self._arena.find(request, digest)
            if known is not None:
                empty, place.block, place.filled = place.block, known, True
                self._arena.cancel(empty)
                return
        with self._arena.writable(place.block) as room:
            np.copyto(np.frombuffer(room, np.uint8, row.nbytes), row)  # without the interpreter's lock
        with self._lock:
            place.filled = True
            place.block = self._arena.commit(request, place.block, row.nbytes, digest)

    def _stored_for_nobody(self, request: str, places: list[Reservation], done: Future[Any]) -> None:
        with self._lock:
            if done.cancelled():  # it had not begun
                self._queue.cancel(request, places)
            elif done.exception() is None:
                self._arena.end(request)

    # ------------------------------------------------------------------ anywhere

    def copy_of(self, handle: Handle) -> torch.Tensor:
        """The values of a block that somebody holds, uint8, of the handle's shape. Raises Trouble once it is closed."""
        with self._lock:
            if self._closing:
                raise Trouble("the ranks have ended")
            values = self._arena.read(handle)
        return torch.from_numpy(values.reshape(handle.shape).copy())  # whoever asks holds it

    def over(self, holder: str) -> None:
        """As ``end``, from within a deallocation, whatever locks its thread holds: it is ended a little later."""
        self._over.append(holder)

    def _end_over(self) -> None:
        """Under the lock."""
        while self._over:
            self._arena.end(self._over.popleft())

    def withdraw(self, ticket: Ticket) -> None:
        """There will be no claim of it, on any rank."""
        with self._lock:
            self._announcements.withdraw(ticket.request)

    def statistics(self) -> ArenaStatistics:
        """A snapshot."""
        with self._lock:
            return self._arena.statistics()

    def close(self) -> None:
        """Ends the threads and frees the memory, in a second at most. Idempotent."""
        self._closing = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ------------------------------------------------------------------ what goes to the ranks, under the lock

    def _tell(self, record: Hello | Ticket | Withdrawn | Probe) -> None:
        if self._closing:
            return
        frame = encode(record)
        for socket in self._tickets:
            socket.send(frame)

    # ------------------------------------------------------------------ the thread that hears them

    def _hear(self) -> None:
        poller = zmq.Poller()
        poller.register(self._reports, zmq.POLLIN)
        self._processes.register(poller)
        while not self._closing:
            try:
                heard = dict(poller.poll(round(LOOK_S * 1e3)))
                if self._processes.ended(heard):
                    self._rank_ended = True
                    break
                for record, _ in received(self._reports, from_ranks):
                    with self._lock:
                        self._take(record, time.monotonic())
                with self._lock:
                    self._look(time.monotonic())
            except Exception:  # or else nobody would hear the next
                log.exception("what a rank said could not be taken")
                time.sleep(LOOK_S)
        self._end()

    def _end(self) -> None:
        self._closing = True
        for call in self._before_end:
            try:
                call()
            except Exception:
                log.exception("something that writes into the arena could not be ended")
        with self._lock:
            self._queue.close()
            self._announcements.give_up("the ranks have ended")
        self.problem = self.problem or "a rank has ended"
        self._heard.set()
        self._writers.shutdown()
        self._processes.close()
        self._endpoint.close()
        with self._lock:
            self._reports.close()
            for socket in self._tickets:
                if not self._rank_ended:  # else all end, and a thread that is woken in an ending process breaks it
                    socket.send(encode(Goodbye()))
                socket.close(linger=0 if self._rank_ended else GOODBYE_MS)
            try:
                self._arena.close()
            except BufferError:  # somebody keeps an error, and with it a view: then the memory is gone when that is
                log.exception("the arena could not be freed")
        self._context.term()
        self.closed.set()

    def _take(self, record: Attached | Ready | Failed | Returned | Alive, now: float) -> None:
        if isinstance(record, Attached):
            self._missing.discard(record.rank)
            if record.problem:
                self.problem = f"rank {record.rank}: {record.problem}"
            if not self._missing or record.problem:
                self._heard.set()
        elif isinstance(record, (Ready, Failed)):
            self._silence.heard(record.request, record.rank)
            self._announcements.report(record, now)
        elif isinstance(record, Returned):
            self._arena.returned(record.request, record.rank)
        elif isinstance(record, Alive):
            self._breaker.answered(record.rank, record.number)

    def _look(self, now: float) -> None:
        """Gives up what is overdue; opens and closes the breaker."""
        self._end_over()
        self._announcements.settle(now)
        silent = self._silence.overdue(now)
        if silent:
            self._silence.forget()
            why = f"no report from rank {', '.join(map(str, sorted(silent)))} within {READY_TIMEOUT_S:g} s"
            if self._breaker.late(now):
                log.warning("%s. %s", why, _OPEN)
            self._announcements.give_up(why)
        number = self._breaker.probe(now)
        if number is not None:
            self._tell(Probe(number))
        if self._breaker.close_if_well(now):
            log.info("every rank has answered: coatcheck carries again")


class ArenaHolding:
    """Keeps what a holder has in the arena, until nothing refers to it any more. See :class:`.compact.Holding`."""

    def __init__(self, owner: ArenaOwner, holder: str) -> None:
        self.owner, self.holder = owner, holder
        weakref.finalize(self, owner.over, holder).atexit = False

    def read(self, handle: Handle) -> torch.Tensor:
        """Raises Trouble if the arena is closed."""
        return self.owner.copy_of(handle)
