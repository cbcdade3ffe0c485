"""Which range of the arena belongs to whom: best fit, neighbours joined again (docs/decisions/best-fit.md).

Invariants (property-tested in ``tests/arena``):

* Ranges handed out never overlap, lie inside the space, and start at multiples of ``PAGE``.
* Every page belongs to exactly one range, handed out or free; two free ranges never touch.
* Once everything is freed there is one free range: the whole space.

Only bookkeeping: this module touches no memory. Not safe to use from several threads.
"""

from __future__ import annotations

import bisect

PAGE = 4096  # bytes; payloads start at page boundaries, so that they can be registered with a GPU one by one


def pages(nbytes: int) -> int:
    """``nbytes`` rounded up to whole pages, in bytes; at least one page."""
    return max(PAGE, -(-nbytes // PAGE) * PAGE)


class Allocator:
    """Hands out ranges of ``size`` bytes, a multiple of PAGE."""

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE:
            raise ValueError(f"{size} bytes are no positive multiple of {PAGE}")
        self.size = size
        self.free_bytes = size
        self._free: dict[int, int] = {0: size}  # start: size
        self._ends: dict[int, int] = {size: 0}  # end: start, of free ranges
        self._by_size: list[tuple[int, int]] = [(size, 0)]  # (size, start) of free ranges, sorted
        self._taken: dict[int, int] = {}  # start: size

    def take(self, nbytes: int) -> int | None:
        """The start of a range of at least ``nbytes``, from the smallest free range that fits; None if none does."""
        size = pages(nbytes)
        at = bisect.bisect_left(self._by_size, (size, 0))
        if at == len(self._by_size):
            return None
        whole, start = self._by_size[at]
        self._remove(start)
        if whole > size:
            self._add(start + size, whole - size)
        self._taken[start] = size
        self.free_bytes -= size
        return start

    def trim(self, start: int, nbytes: int) -> None:
        """Keeps the first ``nbytes`` of a range that was handed out, and frees the rest."""
        whole, size = self._taken[start], pages(nbytes)
        if size > whole:
            raise ValueError(f"the range at {start} has {whole} bytes, it cannot be trimmed to {nbytes}")
        self._taken[start] = size
        if size < whole:
            self._join(start + size, whole - size)

    def free(self, start: int) -> int:
        """Gives a range back; returns its bytes. Raises KeyError if none that is handed out starts there."""
        size = self._taken.pop(start)
        self._join(start, size)
        return size

    @property
    def largest(self) -> int:
        """Bytes of the largest free range."""
        return self._by_size[-1][0] if self._by_size else 0

    def taken(self) -> dict[int, int]:
        """Ranges handed out: start and bytes. A copy."""
        return dict(self._taken)

    def free_ranges(self) -> dict[int, int]:
        """Free ranges: start and bytes. A copy."""
        return dict(self._free)

    def _join(self, start: int, size: int) -> None:
        """A new free range, made one with its free neighbours."""
        self.free_bytes += size
        after = start + size
        if after in self._free:
            size += self._remove(after)
        if start in self._ends:
            before = self._ends[start]
            size += self._remove(before)
            start = before
        self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        self._free[start] = size
        self._ends[start + size] = start
        bisect.insort(self._by_size, (size, start))

    def _remove(self, start: int) -> int:
        size = self._free.pop(start)
        del self._ends[start + size]
        del self._by_size[bisect.bisect_left(self._by_size, (size, start))]
        return size
