"""The arena's owner, in the tokenizer's process: checks payloads in and takes give-backs, without SGLang.

Invariants (``tests/integrations/sglang``):

* A block is reserved, written, dispatched, and only then named by a ticket; each ticket is one dispatch of its own to
  every rank, so that content that is sent n + 1 times is written once and given back n + 1 times.
* A block that a thread may still be writing to is nobody else's, also when who waited for it has gone.
* The event loop only waits: packing, hashing and copying run on threads, the bulk of it without the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import zmq

from coatcheck.arena import Arena, ArenaStatistics, Block
from coatcheck.errors import WireError
from coatcheck.integrations.sglang.codec import Packed
from coatcheck.integrations.sglang.records import Attached, Hello, Ticket, from_ranks
from coatcheck.messages import Handle
from coatcheck.private_socket import PrivateEndpoint

log = logging.getLogger(__name__)

WRITERS = 2  # threads that hash and copy: as many as SGLang 0.5.23 has for its hashes


class Front:
    """``check_in`` is called on an event loop, ``cancel`` anywhere. ``close`` once nothing is checked in any more."""

    def __init__(self, size: int, ranks: int) -> None:
        """``size``: bytes of the arena, faulted in here, which takes a while. Raises ConfigError."""
        self._ranks = ranks
        self._arena = Arena(size)
        self._lock = threading.Lock()  # around every use of the arena, which knows of no threads
        self._names = map(str, itertools.count())
        self._attached: set[int] = set()
        self._writers = ThreadPoolExecutor(WRITERS, "coatcheck-writer")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        returns = self._context.socket(zmq.PULL)
        self._endpoint = PrivateEndpoint(returns)
        self._thread = threading.Thread(target=self._take_back, args=[returns], name="coatcheck-returns", daemon=True)
        self._thread.start()

    @property
    def hello(self) -> Hello:
        """For every rank."""
        return Hello(self._arena.address.to_json(), self._endpoint.address)

    @property
    def attached(self) -> bool:
        """Every rank has mapped the arena: tickets may go out."""
        return len(self._attached) == self._ranks

    async def check_in(self, pack: Callable[[], Packed], copy: bool) -> Ticket:
        """What ``pack`` makes, on a thread, is in the arena, and dispatched to every rank. ``copy``: as in Ticket.

        Raises ArenaFull or PayloadTooLarge, and what ``pack`` raises; then nothing is held.
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
        return Ticket(request, Handle(block.offset, block.nonce, (packed.nbytes,), "uint8"), copy)

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

    def cancel(self, ticket: Ticket) -> None:
        """The ticket has not gone out, to any rank."""
        for rank in range(self._ranks):
            self._returned(ticket.request, rank)

    def statistics(self) -> ArenaStatistics:
        """A snapshot."""
        with self._lock:
            return self._arena.statistics()

    def close(self) -> None:
        """Ends the threads and frees the memory. Idempotent."""
        self._writers.shutdown()
        self._endpoint.close()
        self._context.term()
        self._thread.join()
        with self._lock:
            self._arena.close()

    def _returned(self, request: str, rank: int) -> None:
        with self._lock:
            if self._arena.acknowledge(request, rank):
                self._arena.end(request)

    def _take_back(self, returns: zmq.Socket[Any]) -> None:
        while True:
            try:
                record = from_ranks(returns.recv())
            except zmq.ContextTerminated:
                returns.close(linger=0)
                return
            except WireError as error:
                log.error("a rank's give-back could not be read: %s", error)
                continue
            if isinstance(record, Attached):
                self._attached.add(record.rank)
            else:
                self._returned(record.request, record.rank)
