"""The line in front of the arena: who waits for room, and which request holds what.

Invariants:

* First come, first served: nobody overtakes, so a large payload is not starved by small ones.
* A request gets room for all its payloads or for none: two that hold a part each cannot wait for each other.
* Waiting is bounded by ``wait_s``.
* Content that is there already needs no room; it is leased in the moment in which the rest is reserved, not before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from coatcheck.arena import Arena, ArenaStatistics, Block
from coatcheck.arena.allocator import pages
from coatcheck.arena.handle import Handle, nbytes
from coatcheck.engine.records import Arrived
from coatcheck.errors import ArenaFull, BadRequest, Overloaded, WireError
from coatcheck.intake.records import Item, Place, Stored, Want
from coatcheck.wire import Buffer


@dataclass(frozen=True)
class RoomStatistics:
    """A snapshot."""

    arena: ArenaStatistics
    waiting: int  # requests in line now
    waited: int  # that had to wait, since the start
    turned_away: int  # that waited in vain


@dataclass(frozen=True)
class Room:
    """For one payload: a reserved block, or one that has its content already and is leased to the request."""

    block: Block
    stored: bool

    @property
    def place(self) -> Place | Stored:
        """What the worker is told."""
        if not self.stored:
            return Place(self.block.offset, self.block.nonce)
        assert isinstance(self.block.note, Item)
        return Stored(self.block.note)


@dataclass(eq=False)
class _Waiting:
    request: str
    wants: Sequence[Want]
    rooms: asyncio.Future[list[Room]]


class Rooms:
    """Used within one event loop. ``arena``'s owner closes it."""

    def __init__(self, arena: Arena, wait_s: float) -> None:
        self.arena = arena
        self._wait_s = wait_s
        self._line: deque[_Waiting] = deque()
        self._serving = False
        self._waited = self._turned_away = 0
        arena.on_room(self._serve)

    async def reserve(self, request: str, wants: Sequence[Want]) -> list[Room]:
        """Room for each payload, in order. Whoever gets it checks in or cancels.

        Raises BadRequest (413) if they could never fit together, Overloaded if there is no room in time.
        """
        size = sum(want.nbytes for want in wants)
        if self._missing(wants) > self.arena.capacity:
            raise BadRequest(
                f"The request's payloads have {size} bytes; this server's arena has {self.arena.capacity}",
                param="messages",
                code="payload_too_large",
                status=413,
            )
        waiting = _Waiting(request, wants, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._serve()
        if not waiting.rooms.done():
            self._waited += 1
        try:
            await asyncio.wait([waiting.rooms], timeout=self._wait_s)
        except asyncio.CancelledError:
            self._leave(waiting)
            raise
        if waiting.rooms.done():
            return waiting.rooms.result()
        self._leave(waiting)
        self._turned_away += 1
        raise Overloaded(f"The arena had no room for {size} bytes within {self._wait_s:g} s")

    def _missing(self, wants: Iterable[Want]) -> int:
        """Bytes in whole pages, of content that is not there."""
        return sum(pages(want.nbytes) for want in wants if not self.arena.holds(want.digest))

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.rooms.done():
            self.cancel(waiting.request, waiting.rooms.result())
        else:
            self._line.remove(waiting)
            self._serve()

    def _serve(self) -> None:
        """Serves the line from its head as far as there is room."""
        if self._serving:  # called by what we cancel
            return
        self._serving = True
        try:
            while self._line:
                rooms = self._take(self._line[0])
                if rooms is None:
                    return
                self._line.popleft().rooms.set_result(rooms)
        finally:
            self._serving = False

    def _take(self, waiting: _Waiting) -> list[Room] | None:
        if self._missing(waiting.wants) > self.arena.available:
            return None
        known = [self.arena.find(waiting.request, want.digest) for want in waiting.wants]  # first: so none is evicted
        rooms = [Room(block, True) if block is not None else None for block in known]
        try:
            for at, want in enumerate(waiting.wants):
                rooms[at] = rooms[at] or Room(self.arena.reserve(want.nbytes), False)
        except ArenaFull:
            self.cancel(waiting.request, [room for room in rooms if room is not None])
            return None
        return [room for room in rooms if room is not None]

    def cancel(self, request: str, rooms: Iterable[Room]) -> None:
        """Gives room back, once nobody can write to it any more and before the request is dispatched."""
        for room in rooms:
            if room.stored:
                self.arena.unlease(request, room.block)
            else:
                self.arena.cancel(room.block)

    def check_in(self, request: str, items: Sequence[Item], rooms: Sequence[Room]) -> tuple[Item, ...]:
        """Payloads are complete: commits the blocks and leases them to the request. Returns items with their handles.

        Equal content is stored once, so a handle may point elsewhere than where its payload was written. Raises
        WireError, all room still taken, if the items are not what it was taken for.
        """
        if len(items) != len(rooms):
            raise WireError(f"{len(items)} items, and room for {len(rooms)}")
        for item, room in zip(items, rooms, strict=True):
            handle = item.pixels
            if not isinstance(handle, Handle) or (handle.offset, handle.nonce) != (room.block.offset, room.block.nonce):
                raise WireError("the items are not in the blocks that were reserved for them")
            if nbytes(handle) > room.block.size:
                raise WireError("an item is larger than the block that was reserved for it")
        return tuple(self._check_in(request, item, room) for item, room in zip(items, rooms, strict=True))

    def _check_in(self, request: str, item: Item, room: Room) -> Item:
        assert isinstance(item.pixels, Handle)
        if room.stored:
            return item
        block = self.arena.commit(request, room.block, nbytes(item.pixels), item.digest, item)
        stored = Handle(block.offset, block.nonce, item.pixels.shape, item.pixels.dtype)
        return msgspec.structs.replace(item, pixels=stored)

    async def put(self, arrived: Arrived, frames: Sequence[Buffer]) -> tuple[Arrived, list[Buffer]]:
        """The same request, its payloads copied into the arena and leased to it. Raises as ``reserve``."""
        views = [memoryview(frame).cast("B") for frame in frames]
        wants = [Want(len(view), item.digest) for item, view in zip(arrived.items, views, strict=True)]
        rooms = await self.reserve(arrived.request, wants)
        items = []
        for item, room, view in zip(arrived.items, rooms, views, strict=True):
            if not room.stored:
                with self.arena.writable(room.block) as place:
                    place[: len(view)] = view
            pixels = Handle(room.block.offset, room.block.nonce, item.pixels.shape, item.pixels.dtype)
            items.append(msgspec.structs.replace(item, pixels=pixels))
        return msgspec.structs.replace(arrived, items=self.check_in(arrived.request, items, rooms)), []

    def dispatch(self, arrived: Arrived, ranks: int) -> None:
        """The request goes out to the ranks now: each will give its blocks back once (see RankLink)."""
        if any(isinstance(item.pixels, Handle) for item in arrived.items):
            self.arena.dispatch(arrived.request, range(ranks))

    def returned(self, request: str, rank: int) -> None:
        """The rank has given the request's blocks back. Its need ends with the last rank, if the client waits or not.

        A request is dispatched once and a rank gives back once, after the prefill or the request's earlier end.
        """
        if self.arena.acknowledge(request, rank):
            self.arena.end(request)

    @contextmanager
    def held(self, request: str) -> Iterator[None]:
        """What the request leases inside is let go afterwards, once every rank has given it back."""
        try:
            yield
        finally:
            self.arena.end(request)

    def statistics(self) -> RoomStatistics:
        """A snapshot."""
        return RoomStatistics(self.arena.statistics(), len(self._line), self._waited, self._turned_away)
