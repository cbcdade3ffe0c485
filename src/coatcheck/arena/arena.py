"""The owner's side of the arena: blocks, leases and quarantine.

A block goes through: *reserved* (a worker may write) -> *committed* -> *leased* by requests -> *quarantined* (no
request wants it any more, but some reader has not said so) -> *cached* (nobody can be reading; kept for equal
content) -> free, when room is needed.

Invariants (stateful property tests in ``tests/arena``; without the quarantine rule one of them fails):

* A block's bytes are given to another payload only while no reader may be reading them: a reader may from the dispatch
  of a request until its acknowledgement, whatever the request's end was. An abort or an error proves nothing.
* Equal digests share one block.
* Every byte is accounted for: reserved + in use + quarantined + cached + free is the whole space.

Used by one thread (the front end's event loop). The memory itself is :mod:`coatcheck.arena.memory`.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from coatcheck.arena.allocator import PAGE, Allocator, pages
from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.arena.memory import NONCE, ArenaAddress, OwnedMemory, first_payload
from coatcheck.errors import ArenaFull, HandleStale, PayloadTooLarge

POISON = 0xA5  # debug: what a freed block is filled with, so that a late reader is noticed


@dataclass(eq=False)
class Block:
    """A payload's place. Made by the arena alone."""

    offset: int  # from the start of the segment
    size: int  # bytes of its range, whole pages
    nonce: int
    nbytes: int = 0  # of the payload, once committed
    digest: bytes = b""  # identity, once committed; empty: shared with nobody
    note: object = None  # what the owner wants to remember of the content
    leases: int = 0
    wanted: int = 0  # leases of requests that have not ended

    def handle(self, shape: tuple[int, ...], dtype: PixelForm) -> Handle:
        """For readers, once the block is committed and leased."""
        return Handle(self.offset, self.nonce, shape, dtype)


@dataclass
class _Lease:
    blocks: list[Block] = field(default_factory=list)
    outstanding: Counter[int] = field(default_factory=Counter)  # dispatches that a reader has not acknowledged
    ended: bool = False


@dataclass(frozen=True)
class ArenaStatistics:
    """A snapshot; bytes in whole pages. ``fragmentation``: share of the free bytes outside the largest free range."""

    size: int
    reserved: int
    in_use: int
    quarantined: int
    cached: int
    free: int
    high_water: int  # most bytes that were reserved, in use or quarantined at once
    fragmentation: float
    reservations: int  # granted since the start
    refusals: int  # not granted for want of room
    hits: int  # times that a payload's content was found there already


class Arena:
    """Owns ``size`` bytes for payloads. ``close`` frees the memory once no other process maps it."""

    def __init__(self, size: int, *, poison: bool = False) -> None:
        """``size``: bytes, rounded up to pages. Raises ConfigError if the system cannot give them now."""
        whole = pages(size)
        table = first_payload(whole)
        while (needed := first_payload(whole + table)) > table:
            table = needed
        self._memory = OwnedMemory(whole + table)
        self._first = first_payload(whole + table)
        self._allocator = Allocator(whole + table - self._first)
        self._nonces = self._memory.view[: self._first].cast("Q")
        self._poison = poison
        self._blocks: dict[int, Block] = {}  # by offset, all that are not free
        self._by_digest: dict[bytes, Block] = {}
        self._cached: OrderedDict[int, Block] = OrderedDict()  # by offset, the longest unused first
        self._leases: dict[str, _Lease] = {}  # by request
        self._bytes = Counter[str]()
        self._high_water = 0
        self._counts = Counter[str]()
        self._freed: list[Callable[[], None]] = []
        self._closed = False

    @property
    def address(self) -> ArenaAddress:
        """For other processes of this user and host."""
        return self._memory.address

    @property
    def capacity(self) -> int:
        """Bytes of the largest payload that fits an empty arena."""
        return self._allocator.size

    @property
    def available(self) -> int:
        """Bytes that are free, or hold only what nobody needs now; how they lie is another matter."""
        return self._allocator.free_bytes + self._bytes["cached"]

    def on_room(self, call: Callable[[], None]) -> None:
        """``call`` is called whenever blocks may have become free."""
        self._freed.append(call)

    # ------------------------------------------------------------------ blocks

    def reserve(self, max_bytes: int) -> Block:
        """A block that a worker may write to, until ``commit`` or ``cancel``. Cached content makes room.

        Raises PayloadTooLarge if it could never fit, ArenaFull if it does not fit now.
        """
        if pages(max_bytes) > self._allocator.size:
            raise PayloadTooLarge(f"the payload has {max_bytes} bytes, the whole arena {self._allocator.size}")
        start = self._allocator.take(max_bytes)
        while start is None and self._cached and pages(max_bytes) <= self.available:
            self._free(next(iter(self._cached.values())))
            start = self._allocator.take(max_bytes)
        if start is None:
            self._counts["refusals"] += 1
            raise ArenaFull(f"no room for {max_bytes} bytes: {self._allocator.free_bytes} of {self.capacity} are free")
        block = Block(self._first + start, pages(max_bytes), secrets.randbits(64) | 1)
        self._blocks[block.offset] = block
        self._nonces[block.offset // PAGE] = block.nonce
        self._counts["reservations"] += 1
        self._account("reserved", block.size)
        return block

    def writable(self, block: Block) -> memoryview:
        """The block's bytes, for the owner to write before ``commit``. Release it afterwards."""
        return self._memory.view[block.offset : block.offset + block.size]

    def read(self, handle: Handle) -> NDArray[np.uint8]:
        """The payload's bytes, for the owner, as long as somebody holds them; not to be written to.

        Raises HandleStale if the block is another payload's by now.
        """
        block = self._blocks.get(handle.offset)
        if block is None or block.nonce != handle.nonce or nbytes(handle) > block.size:
            raise HandleStale(f"no payload of {nbytes(handle)} bytes at {handle.offset}")
        values = np.frombuffer(self._memory.view[handle.offset : handle.offset + nbytes(handle)], np.uint8)
        values.setflags(write=False)
        return values

    def cancel(self, block: Block) -> None:
        """Gives a reserved block back, once nobody can write to it any more: a worker that died has been reaped."""
        self._account("reserved", -block.size)
        self._release(block)

    def commit(self, request: str, block: Block, nbytes: int, digest: bytes = b"", note: object = None) -> Block:
        """The payload is complete: ``nbytes`` of the reservation are kept, the rest is freed; ``note`` is kept with it.

        Returns the block that holds this content, leased to ``request``: another one if equal content came first.
        """
        if nbytes > block.size:
            raise ValueError(f"{nbytes} bytes were written into a block of {block.size}")
        known = self.known(digest)
        if known is not None:
            self.count_hits(1)  # it came while this one was written
            self.lease(request, [known])  # first: what is cancelled may make somebody reserve, and evict
            self.cancel(block)
            return known
        self._allocator.trim(block.offset - self._first, nbytes)
        self._account("reserved", -block.size)
        block.size, block.nbytes, block.digest, block.note = pages(nbytes), nbytes, digest, note
        self._account("cached", block.size)
        self._cached[block.offset] = block
        if digest:
            self._by_digest[digest] = block
        self.lease(request, [block])
        self._room()
        return block

    def put(self, request: str, payload: memoryview, digest: bytes = b"") -> Block:
        """Reserves, copies, commits: one copy. ``payload``: contiguous bytes. Raises as ``reserve``."""
        data = payload.cast("B")
        block = self.reserve(len(data))
        self._memory.view[block.offset : block.offset + len(data)] = data
        return self.commit(request, block, len(data), digest)

    def known(self, digest: bytes) -> Block | None:
        """The block of that content, not leased to anybody by this; None if it is not there."""
        return self._by_digest.get(digest) if digest else None

    def find(self, request: str, digest: bytes) -> Block | None:
        """The block of that content, leased to ``request``; None if it is not there."""
        found = self.known(digest)
        if found is not None:
            self.lease(request, [found])
            self.count_hits(1)
        return found

    def count_hits(self, count: int) -> None:
        """So many payloads were found here that would have been written otherwise."""
        self._counts["hits"] += count

    # ------------------------------------------------------------------ leases

    def lease(self, request: str, blocks: Iterable[Block]) -> None:
        """The request needs these blocks until it ends and every reader it is dispatched to has acknowledged."""
        lease = self._leases.setdefault(request, _Lease())
        for block in blocks:
            self._change(block, leases=1, wanted=0 if lease.ended else 1)
            lease.blocks.append(block)

    def share(self, holder: str, request: str) -> None:
        """Another request needs the blocks of one that has not ended. Raises KeyError if it has."""
        held = self._leases[holder]
        if held.ended:
            raise KeyError(holder)
        self.lease(request, list(held.blocks))

    def dispatch(self, request: str, readers: Iterable[int]) -> None:
        """From now on these readers may read the request's blocks, until each has acknowledged as often."""
        self._leases[request].outstanding.update(readers)

    def acknowledge(self, request: str, reader: int) -> bool:
        """The reader will not read for one dispatch of this request any more. Unknown requests: ignored.

        True if no reader may be reading for it now: an owner who will not dispatch it again can ``end`` it.
        """
        lease = self._leases.get(request)
        if lease is None:
            return False
        lease.outstanding[reader] -= 1
        if lease.outstanding[reader] <= 0:
            del lease.outstanding[reader]
        self._settle(request, lease)
        return not lease.outstanding

    def returned(self, request: str, reader: int | None) -> None:
        """As ``acknowledge``, for a request that is dispatched no more: it ends with its last reader.

        ``reader`` None: the request never went out, so no reader has read or will read its blocks.
        """
        if reader is None:
            self._undispatched(request)
        elif self.acknowledge(request, reader):
            self.end(request)

    def _undispatched(self, request: str) -> None:
        lease = self._leases.get(request)
        if lease is not None:
            lease.outstanding.clear()
            self._settle(request, lease)
            self.end(request)

    def end(self, request: str) -> None:
        """Nobody wants the request's result any more. Unknown or ended: nothing happens."""
        lease = self._leases.get(request)
        if lease is None or lease.ended:
            return
        lease.ended = True
        for block in lease.blocks:
            self._change(block, wanted=-1)
        self._settle(request, lease)

    def reader_gone(self, reader: int) -> None:
        """The reader's process has been reaped: it acknowledges everything."""
        for request, lease in list(self._leases.items()):
            del lease.outstanding[reader]
            self._settle(request, lease)

    def _settle(self, request: str, lease: _Lease) -> None:
        if not lease.ended or lease.outstanding:
            return
        del self._leases[request]
        for block in lease.blocks:
            self._change(block, leases=-1)
            if block.leases == 0 and not block.digest:
                self._free(block)
        self._room()

    # ------------------------------------------------------------------ accounts

    def statistics(self) -> ArenaStatistics:
        """A snapshot."""
        free = self._allocator.free_bytes
        return ArenaStatistics(
            size=self._allocator.size,
            reserved=self._bytes["reserved"],
            in_use=self._bytes["in_use"],
            quarantined=self._bytes["quarantined"],
            cached=self._bytes["cached"],
            free=free,
            high_water=self._high_water,
            fragmentation=1 - self._allocator.largest / free if free else 0.0,
            reservations=self._counts["reservations"],
            refusals=self._counts["refusals"],
            hits=self._counts["hits"],
        )

    @staticmethod
    def _state(block: Block) -> str:
        if block.leases == 0:
            return "cached"
        return "in_use" if block.wanted else "quarantined"

    def _change(self, block: Block, leases: int = 0, wanted: int = 0) -> None:
        self._account(self._state(block), -block.size)
        if block.leases == 0:
            self._cached.pop(block.offset, None)
        block.leases += leases
        block.wanted += wanted
        if block.leases == 0:
            self._cached[block.offset] = block
        self._account(self._state(block), block.size)

    def _account(self, state: str, nbytes: int) -> None:
        self._bytes[state] += nbytes
        held = self._bytes["reserved"] + self._bytes["in_use"] + self._bytes["quarantined"]
        self._high_water = max(self._high_water, held)

    def _free(self, block: Block) -> None:
        """A cached block's end."""
        self._account("cached", -block.size)
        del self._cached[block.offset]
        if block.digest:
            del self._by_digest[block.digest]
        self._release(block)

    def _release(self, block: Block) -> None:
        del self._blocks[block.offset]
        if self._closed:  # what ends late has nothing left to free
            return
        self._nonces[block.offset // PAGE] = 0
        if self._poison:
            self._memory.view[block.offset : block.offset + block.size] = bytes([POISON]) * block.size
        self._allocator.free(block.offset - self._first)
        self._room()

    def _room(self) -> None:
        for call in self._freed:
            call()

    def close(self) -> None:
        """Idempotent. What requests still hold may be ended and acknowledged afterwards."""
        self._closed = True
        self._nonces.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


assert NONCE == 8  # one "Q" of the table of nonces
