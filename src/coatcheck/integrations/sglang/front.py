"""The arena's owner, in the tokenizer's process: checks payloads in and hears the ranks, without SGLang.

Invariants (``tests/integrations/sglang``), beside those of :mod:`coatcheck.integrations.sglang.prepare`:

* A block is reserved, written, dispatched, and only then named by a ticket; each ticket is one dispatch of its own to
  every rank, so that content that is sent n + 1 times is written once and given back n + 1 times.
* Whoever waits for the ranks and is cancelled has withdrawn its ticket.
* A block that a thread may still be writing to is nobody else's, also when who waited for it has gone.
* The event loop only waits: packing, hashing and copying run on threads, the bulk of it without the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import zmq

from coatcheck.arena import Arena, ArenaStatistics, Block
from coatcheck.integrations.sglang.codec import Packed
from coatcheck.integrations.sglang.prepare import Announcements
from coatcheck.integrations.sglang.records import Attached, Hello, Ticket, Withdrawn, from_ranks
from coatcheck.messages import Handle, Ready, Returned
from coatcheck.private_socket import PrivateEndpoint
from coatcheck.wire import encode

log = logging.getLogger(__name__)

WRITERS = 2  # threads that hash and copy: as many as SGLang 0.5.23 has for its hashes
READY_TIMEOUT_S = 30.0  # what some rank has not reported by then is refused; as coatcheck's own ranks have it
LOOK_S = 1.0  # between looks for what is overdue


class Refused(Exception):
    """Not every rank has the inputs; the text says why."""


class Front:
    """``check_in`` is called on an event loop, ``withdraw`` anywhere. ``close`` once nothing is checked in any more."""

    def __init__(self, size: int, ranks: int) -> None:
        """``size``: bytes of the arena, faulted in here, which takes a while. Raises ConfigError."""
        self._ranks = ranks
        self._arena = Arena(size)
        self._lock = threading.Lock()  # around the arena, what is announced, and the ways to the ranks
        self._names = map(str, itertools.count())
        self._announcements = Announcements(ranks, READY_TIMEOUT_S, self._tell)
        self._tickets: dict[int, zmq.Socket[bytes]] = {}  # by rank, as they attach
        self._writers = ThreadPoolExecutor(WRITERS, "coatcheck-writer")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0
        self._reports = self._context.socket(zmq.PULL)
        self._reports.rcvhwm = 0  # what ranks report is small, and is not lost
        self._reports.rcvtimeo = round(LOOK_S * 1e3)
        self._endpoint = PrivateEndpoint(self._reports)
        self._thread = threading.Thread(target=self._hear, name="coatcheck-reports", daemon=True)
        self._thread.start()

    @property
    def hello(self) -> Hello:
        """For every rank."""
        return Hello(self._arena.address.to_json(), self._endpoint.address)

    @property
    def attached(self) -> bool:
        """Every rank has mapped the arena: tickets may go out."""
        return len(self._tickets) == self._ranks

    async def check_in(self, pack: Callable[[], Packed], copy: bool) -> Ticket:
        """What ``pack`` makes, on a thread, is in the arena, and every rank has prepared it. ``copy``: as in Ticket.

        The caller sends a claim of it to all ranks, or calls ``withdraw``. Raises ArenaFull or PayloadTooLarge, what
        ``pack`` raises, and Refused; then nothing is held.
        """
        packed = await asyncio.wrap_future(self._writers.submit(pack))
        request = next(self._names)
        with self._lock:
            block = self._arena.find(request, packed.digest)
            empty = self._arena.reserve(packed.nbytes) if block is None else None
        if empty is not None:
            await self._write(empty, packed)
        with self._lock:
            if empty is not None:
                block = self._arena.commit(request, empty, packed.nbytes, packed.digest)
            assert block is not None
            self._arena.dispatch(request, range(self._ranks))
            ticket = Ticket(request, Handle(block.offset, block.nonce, (packed.nbytes,), "uint8"), copy)
            prepared = self._announcements.announce(ticket, time.monotonic())
        try:
            refusal = await asyncio.wrap_future(prepared)
        except BaseException:  # cancelled
            self.withdraw(ticket)
            raise
        if refusal is not None:
            raise Refused(refusal)
        return ticket

    async def _write(self, block: Block, packed: Packed) -> None:
        writing = self._writers.submit(self._fill, block, packed)
        try:
            await asyncio.wrap_future(writing)
        except BaseException:  # cancelled: the thread, once it has begun, writes on
            writing.add_done_callback(lambda _: self._drop(block))
            raise

    def _fill(self, block: Block, packed: Packed) -> None:
        with self._arena.writable(block) as room:
            packed.write(room)

    def _drop(self, block: Block) -> None:
        with self._lock:
            self._arena.cancel(block)

    def withdraw(self, ticket: Ticket) -> None:
        """There will be no claim of it, on any rank."""
        with self._lock:
            self._announcements.withdraw(ticket.request)

    def statistics(self) -> ArenaStatistics:
        """A snapshot."""
        with self._lock:
            return self._arena.statistics()

    def close(self) -> None:
        """Ends the threads and frees the memory. Idempotent."""
        self._writers.shutdown()
        self._endpoint.close()
        self._context.term()  # ends the thread, which closes the sockets
        self._thread.join()
        with self._lock:
            self._arena.close()

    def _tell(self, record: Ticket | Withdrawn) -> None:
        frame = encode(record)
        for socket in self._tickets.values():
            socket.send(frame)

    def _hear(self) -> None:
        while True:
            try:
                record = self._next()
                with self._lock:
                    self._take(record, time.monotonic())
            except zmq.ContextTerminated:
                break
            except Exception:  # or else nobody would hear the next
                log.exception("what a rank said could not be taken")
        with self._lock:
            for socket in (self._reports, *self._tickets.values()):
                socket.close()

    def _next(self) -> Attached | Ready | Returned | None:
        """None: nobody has said anything for a while. Raises WireError."""
        try:
            return from_ranks(self._reports.recv())
        except zmq.Again:
            return None

    def _take(self, record: Attached | Ready | Returned | None, now: float) -> None:
        if isinstance(record, Attached):
            if record.rank not in self._tickets:
                socket = self._context.socket(zmq.PUSH)
                socket.sndhwm = 0  # never blocks
                try:
                    socket.connect(record.tickets)
                except BaseException:
                    socket.close()
                    raise
                self._tickets[record.rank] = socket
        elif isinstance(record, Ready):
            self._announcements.report(record, now)
        elif isinstance(record, Returned):
            if self._arena.acknowledge(record.request, record.rank):
                self._arena.end(record.request)
        else:
            self._announcements.settle(now)
