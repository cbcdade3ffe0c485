"""Room in the arena for requests, in a line: who finds none may wait for a while.

Invariants (``tests/integrations/sglang/test_room.py``):

* A request gets room for all of its blocks, or for none. Content that is there already needs none.
* Nobody overtakes who waits, so a large request is not starved by small ones.
* Whoever stops waiting, for whatever reason, holds nothing, unless the room came first: then it is had.
* Nothing here waits by itself, and nothing is packed or hashed: a request that gets no room has cost microseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coatcheck.arena import Arena, Block
from coatcheck.arena.allocator import pages
from coatcheck.errors import ArenaFull, PayloadTooLarge


@dataclass(frozen=True)
class Want:
    """One block: so many bytes, and the content's digest if it is known by now, else empty."""

    nbytes: int
    digest: bytes = b""


@dataclass(eq=False)
class Place:
    """A block for a want: ``filled`` if its content is there, and is leased to the request; else reserved."""

    block: Block
    filled: bool


@dataclass(eq=False)
class _Waiter:
    request: str
    wants: Sequence[Want]
    wake: Callable[[], object]
    got: list[Place] | None = field(default=None)  # None: no room yet


class Room:
    """Reserves in the arena. All calls under ``lock``, which is the arena's, but ``take``, which takes it itself."""

    def __init__(self, arena: Arena, lock: threading.Lock) -> None:
        self._arena, self._lock = arena, lock
        self._line: deque[_Waiter] = deque()
        self._serving = False
        self._closed = False
        arena.on_room(self._serve)

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    async def take(self, request: str, wants: Sequence[Want], patience_s: float) -> list[Place]:
        """A place for each want.

        Waits at most ``patience_s``. Raises ArenaFull if there is no room until then, PayloadTooLarge if there never
        is; then, and if it is cancelled, nothing is held.
        """
        loop = asyncio.get_running_loop()
        awake = asyncio.Event()
        waiter = _Waiter(request, wants, lambda: loop.call_soon_threadsafe(awake.set))
        with self._lock:
            if self._closed:
                raise ArenaFull("no room any more")
            if not wants:
                return []
            if not self._line and self._try(waiter):
                assert waiter.got is not None
                return waiter.got
            if patience_s <= 0:
                raise ArenaFull("no room now")
            if sum(want.nbytes for want in wants) > self._arena.capacity:
                raise PayloadTooLarge("more than the whole arena")
            self._line.append(waiter)
        try:
            await asyncio.wait_for(awake.wait(), patience_s)
        except TimeoutError:
            pass
        except BaseException:  # cancelled
            with self._lock:
                self._leave(waiter)
                self.give_up(request, waiter.got or ())
            raise
        with self._lock:
            self._leave(waiter)
        if waiter.got is None:
            raise ArenaFull(f"no room within {patience_s * 1e3:.0f} ms")
        return waiter.got

    def give_up(self, request: str, got: Sequence[Place]) -> None:
        """Of a request that was not dispatched: reserved blocks nobody writes to, and what was leased to it."""
        for place in got:
            if not place.filled:
                self._arena.cancel(place.block)
        self._arena.end(request)

    def close(self) -> None:
        """There is no room any more: who waits is told so now. To be called before the arena is closed."""
        self._closed = True
        while self._line:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                self._line.popleft().wake()

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._line:
            self._line.remove(waiter)
            self._serve()  # the next may be smaller

    def _try(self, waiter: _Waiter) -> bool:
        """All or nothing. Raises PayloadTooLarge."""
        if self._reserve(waiter, shared=True):
            return True
        # What nobody needs now may lie in the way, as content that is wanted here, or in pieces between what was just
        # reserved. Or else a request could wait before an arena that nobody uses.
        return self._may_fit(waiter.wants) and any(self._reserve(waiter, shared=False) for _ in range(2))

    def _may_fit(self, wants: Sequence[Want]) -> bool:
        return sum(pages(want.nbytes) for want in wants) <= self._arena.available

    def _reserve(self, waiter: _Waiter, shared: bool) -> bool:
        """``shared``: content that is there needs no room."""
        got: list[Place] = []
        try:
            # What is there is leased first, so that nothing reserved beside it pushes it out.
            known = [
                self._arena.find(waiter.request, want.digest) if shared and want.digest else None
                for want in waiter.wants
            ]
            missing = [want for want, block in zip(waiter.wants, known, strict=True) if block is None]
            if max((pages(want.nbytes) for want in missing), default=0) > self._arena.capacity:
                raise PayloadTooLarge("more than the whole arena")
            if not self._may_fit(missing):  # then nothing is pushed out for it
                raise ArenaFull("no room now")
            for want, block in zip(waiter.wants, known, strict=True):
                got.append(Place(block or self._arena.reserve(want.nbytes), filled=block is not None))
        except (ArenaFull, PayloadTooLarge) as error:
            self.give_up(waiter.request, got)
            if isinstance(error, PayloadTooLarge):
                raise
            return False
        waiter.got = got
        return True

    def _serve(self) -> None:
        """Room may have become free."""
        if self._serving:  # what is given up in here frees room, too
            return
        self._serving = True
        try:
            while self._line:
                try:
                    if not self._try(self._line[0]):
                        return
                except PayloadTooLarge:  # it waits to the end
                    return
                served = self._line.popleft()
                try:
                    served.wake()
                except RuntimeError:  # its event loop is closed
                    self.give_up(served.request, served.got or ())
        finally:
            self._serving = False
