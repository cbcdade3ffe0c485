"""The line for room in the arena: requests get room in the order in which they ask, and may wait for a while.

Invariants (``tests/arena/test_queue.py``):

* A request gets room for all of its payloads, or for none. Content that is there already needs none: it is leased to
  the request in the moment in which the rest is reserved.
* Nobody overtakes who waits, so a large request is not starved by small ones.
* Waiting is bounded. Whoever stops waiting, for whatever reason, holds nothing, unless the room came first.
* What can never fit is refused at once, so that it does not hold up the line.
* Nothing is decoded, hashed or written for a request that has no room.
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
from coatcheck.wire import Record


class Want(Record, frozen=True):
    """Room for one payload."""

    nbytes: int  # at most
    digest: bytes = b""  # the content's, if it is known by now, so that content that is there needs no room


@dataclass(eq=False)
class Reservation:
    """A block for a want. ``filled``: its content is there, and leased to the request; else it is to be written."""

    block: Block
    filled: bool


@dataclass(eq=False)
class _Waiter:
    request: str
    wants: Sequence[Want]
    wake: Callable[[], object]
    got: list[Reservation] | None = field(default=None)  # None: no room yet


@dataclass(frozen=True)
class QueueStatistics:
    """A snapshot."""

    waiting: int  # requests in line now
    waited: int  # that had to wait, since the start
    turned_away: int  # that waited in vain


class ArenaQueue:
    """Reserves in the arena.

    ``lock`` guards arena and queue where several threads use them: it is held in all calls, but for ``reserve`` and
    ``reserve_now``, which take it themselves. An owner that is one thread passes a lock of its own.
    """

    def __init__(self, arena: Arena, lock: threading.Lock) -> None:
        self._arena, self.lock = arena, lock
        self._waited = self._turned_away = 0
        self._line: deque[_Waiter] = deque()
        self._serving = False
        self._closed = False
        arena.on_room(self._serve)

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    def statistics(self) -> QueueStatistics:
        """A snapshot."""
        return QueueStatistics(len(self._line), self._waited, self._turned_away)

    async def reserve(self, request: str, wants: Sequence[Want], patience_s: float) -> list[Reservation]:
        """A reservation for each want, in order. Whoever gets them commits the blocks, or calls ``cancel``.

        Waits at most ``patience_s``. Raises ArenaFull if there is no room until then, PayloadTooLarge if there never
        is; then, and if it is cancelled, nothing is held.
        """
        loop = asyncio.get_running_loop()
        awake = asyncio.Event()
        waiter = _Waiter(request, wants, lambda: loop.call_soon_threadsafe(awake.set))
        with self.lock:
            if self._at_once(waiter):
                assert waiter.got is not None
                return waiter.got
            if patience_s <= 0:
                raise ArenaFull("The arena has no room now")
            self._line.append(waiter)
            self._waited += 1
        try:
            await asyncio.wait_for(awake.wait(), patience_s)
        except TimeoutError:
            pass
        except BaseException:  # cancelled
            with self.lock:
                self._leave(waiter)
                self.cancel(request, waiter.got or ())
            raise
        with self.lock:
            self._leave(waiter)
            self._turned_away += waiter.got is None
        if waiter.got is None:
            size = sum(want.nbytes for want in wants)
            raise ArenaFull(f"The arena had no room for {size} bytes within {patience_s:g} s")
        return waiter.got

    def reserve_now(self, request: str, wants: Sequence[Want]) -> list[Reservation] | None:
        """As ``reserve``, but None if there is no room now, or somebody waits for it."""
        waiter = _Waiter(request, wants, lambda: None)
        with self.lock:
            return waiter.got if self._at_once(waiter) else None

    def _at_once(self, waiter: _Waiter) -> bool:
        """Raises PayloadTooLarge, and ArenaFull once it is closed."""
        if self._closed:
            raise ArenaFull("The arena is closed")
        if not waiter.wants:
            waiter.got = []
            return True
        if not self._line and self._try(waiter):
            return True
        if sum(pages(want.nbytes) for want in waiter.wants) > self._arena.capacity:
            raise self._too_large(waiter.wants)
        return False

    def cancel(self, request: str, got: Sequence[Reservation]) -> None:
        """Gives back what a request has that was not dispatched, once nobody can write to the blocks any more."""
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
        got: list[Reservation] = []
        try:
            # What is there is leased first, so that nothing reserved beside it pushes it out.
            known = [self._arena.known(want.digest) if shared else None for want in waiter.wants]
            self._arena.lease(waiter.request, [block for block in known if block is not None])
            missing = [want for want, block in zip(waiter.wants, known, strict=True) if block is None]
            if max((pages(want.nbytes) for want in missing), default=0) > self._arena.capacity:
                raise self._too_large(waiter.wants)
            if not self._may_fit(missing):  # then nothing is pushed out for it
                raise ArenaFull("The arena has no room now")
            for want, block in zip(waiter.wants, known, strict=True):
                got.append(Reservation(block or self._arena.reserve(want.nbytes), filled=block is not None))
        except (ArenaFull, PayloadTooLarge) as error:
            self.cancel(waiter.request, got)
            if isinstance(error, PayloadTooLarge):
                raise
            return False
        self._arena.count_hits(len(known) - len(missing))
        waiter.got = got
        return True

    def _too_large(self, wants: Sequence[Want]) -> PayloadTooLarge:
        size = sum(want.nbytes for want in wants)
        return PayloadTooLarge(f"The request's payloads have {size} bytes; the arena has {self._arena.capacity}")

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
                    self.cancel(served.request, served.got or ())
        finally:
            self._serving = False
