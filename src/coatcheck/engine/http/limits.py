"""How many requests are in flight, and how many bytes of them are held: past either limit a new one is turned away."""

from __future__ import annotations

import asyncio
from types import TracebackType

from coatcheck.errors import Overloaded


class InFlight:
    """One request, counted from entering by ``with`` to leaving it."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._held = 0

    def hold(self, nbytes: int) -> None:
        """This request now holds ``nbytes`` in all. Raises Overloaded, changing nothing, if that is too much."""
        self._capacity.change(nbytes - self._held)
        self._held = nbytes

    def __enter__(self) -> InFlight:
        self._capacity.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hold(0)
        self._capacity.leave()


class Capacity:
    """Counts requests from their first byte to their last."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.requests = 0
        self.held_bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._empty = asyncio.Event()
        self._empty.set()

    def request(self) -> InFlight:
        """To enter by ``with``; entering raises Overloaded at the limit."""
        return InFlight(self)

    def enter(self) -> None:
        if self.requests >= self._max_requests:
            raise Overloaded(f"{self.requests} requests are under way, as many as this server takes at once")
        self.requests += 1
        self._empty.clear()

    def leave(self) -> None:
        self.requests -= 1
        if self.requests == 0:
            self._empty.set()

    def change(self, nbytes: int) -> None:
        if nbytes > 0 and self.held_bytes + nbytes > self._max_bytes:
            raise Overloaded("The requests under way hold as much memory as this server gives them")
        self.held_bytes += nbytes

    async def empty(self, timeout_s: float) -> bool:
        """Waits until nobody is left. False after that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
