"""The line in front of the arena: who waits for room, and which request holds what.

Invariants:

* First come, first served: nobody overtakes, so a large payload is not starved by small ones.
* A request gets room for all its payloads or for none: two that hold a part each cannot wait for each other.
* Waiting is bounded by ``wait_s``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from coatcheck.arena import Arena, ArenaStatistics, Block
from coatcheck.errors import ArenaFull, BadRequest, Overloaded, WireError
from coatcheck.messages import Arrived, Handle, Item
from coatcheck.wire import Buffer, nbytes


@dataclass(frozen=True)
class RoomStatistics:
    """A snapshot."""

    arena: ArenaStatistics
    waiting: int  # requests in line now
    waited: int  # that had to wait, since the start
    turned_away: int  # that waited in vain


@dataclass(eq=False)
class _Waiting:
    sizes: Sequence[int]
    blocks: asyncio.Future[list[Block]]


class Rooms:
    """Used within one event loop. ``arena``'s owner closes it."""

    def __init__(self, arena: Arena, wait_s: float) -> None:
        self.arena = arena
        self._wait_s = wait_s
        self._line: deque[_Waiting] = deque()
        self._serving = False
        self._waited = self._turned_away = 0
        arena.on_room(self._serve)

    async def reserve(self, sizes: Sequence[int]) -> list[Block]:
        """A block for each payload (bytes), in order. Whoever gets them commits or cancels each.

        Raises BadRequest (413) if they could never fit together, Overloaded if there is no room in time.
        """
        if sum(sizes) > self.arena.capacity:
            raise BadRequest(
                f"The request's payloads have {sum(sizes)} bytes; this server's arena has {self.arena.capacity}",
                param="messages",
                code="payload_too_large",
                status=413,
            )
        waiting = _Waiting(sizes, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._serve()
        if not waiting.blocks.done():
            self._waited += 1
        try:
            await asyncio.wait([waiting.blocks], timeout=self._wait_s)
        except asyncio.CancelledError:
            self._leave(waiting)
            raise
        if waiting.blocks.done():
            return waiting.blocks.result()
        self._leave(waiting)
        self._turned_away += 1
        raise Overloaded(f"The arena had no room for {sum(sizes)} bytes within {self._wait_s:g} s")

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.blocks.done():
            for block in waiting.blocks.result():
                self.arena.cancel(block)
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
                blocks = self._take(self._line[0].sizes)
                if blocks is None:
                    return
                self._line.popleft().blocks.set_result(blocks)
        finally:
            self._serving = False

    def _take(self, sizes: Iterable[int]) -> list[Block] | None:
        blocks: list[Block] = []
        try:
            for size in sizes:
                blocks.append(self.arena.reserve(size))
        except ArenaFull:
            for block in blocks:
                self.arena.cancel(block)
            return None
        return blocks

    def cancel(self, blocks: Iterable[Block]) -> None:
        """Gives reserved blocks back, once nobody can write to them any more."""
        for block in blocks:
            self.arena.cancel(block)

    def check_in(self, request: str, items: Sequence[Item], blocks: Sequence[Block]) -> tuple[Item, ...]:
        """Payloads are complete: commits the blocks and leases them to the request. Returns items with their handles.

        Equal content is stored once, so a handle may point elsewhere than where its payload was written. Raises
        WireError, the blocks still reserved, if the items are not what the blocks were reserved for.
        """
        handles = [item.pixels for item in items if isinstance(item.pixels, Handle)]
        places = [(block.offset, block.nonce) for block in blocks]
        if len(handles) != len(items) or [(handle.offset, handle.nonce) for handle in handles] != places:
            raise WireError("the items are not in the blocks that were reserved for them")
        if any(nbytes(handle) > block.size for handle, block in zip(handles, blocks, strict=True)):
            raise WireError("an item is larger than the block that was reserved for it")
        made = []
        for item, handle, reserved in zip(items, handles, blocks, strict=True):
            block = self.arena.commit(request, reserved, nbytes(handle), item.digest)
            stored = Handle(block.offset, block.nonce, handle.shape, handle.dtype)
            made.append(msgspec.structs.replace(item, pixels=stored))
        return tuple(made)

    async def put(self, arrived: Arrived, frames: Sequence[Buffer]) -> tuple[Arrived, list[Buffer]]:
        """The same request, its payloads copied into the arena and leased to it. Raises as ``reserve``."""
        views = [memoryview(frame).cast("B") for frame in frames]
        blocks = await self.reserve([len(view) for view in views])
        items = []
        for item, block, view in zip(arrived.items, blocks, views, strict=True):
            with self.arena.writable(block) as place:
                place[: len(view)] = view
            pixels = Handle(block.offset, block.nonce, item.pixels.shape, item.pixels.dtype)
            items.append(msgspec.structs.replace(item, pixels=pixels))
        return msgspec.structs.replace(arrived, items=self.check_in(arrived.request, items, blocks)), []

    def dispatch(self, arrived: Arrived, ranks: int) -> None:
        """The request goes out to the ranks now: each will give its blocks back once (see RankLink)."""
        if any(isinstance(item.pixels, Handle) for item in arrived.items):
            self.arena.dispatch(arrived.request, range(ranks))

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
