"""Which tokens of the KV pool belong to which request. Only the entry rank allocates; plans carry the result.

Invariants: regions never overlap, lie within the pool, and once all are free the pool is one free region again.
"""

from __future__ import annotations

from bisect import insort


class Regions:
    """First fit over the free list, with coalescing. Sizes and positions are in tokens."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)]  # (start, count), by start, never adjacent
        self._used: dict[str, tuple[int, int]] = {}

    def reserve(self, owner: str, count: int) -> int | None:
        """Start of a region of ``count`` tokens for ``owner``, or None if there is no room now."""
        if owner in self._used or count < 1:
            raise ValueError(f"{owner} has a region already, or {count} is no size")
        for index, (start, free) in enumerate(self._free):
            if free >= count:
                self._free[index : index + 1] = [(start + count, free - count)] if free > count else []
                self._used[owner] = (start, count)
                return start
        return None

    def release(self, owner: str) -> None:
        """Gives the owner's region back; an owner without one: nothing happens."""
        region = self._used.pop(owner, None)
        if region is None:
            return
        insort(self._free, region)
        merged: list[tuple[int, int]] = []
        for start, count in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + count)
            else:
                merged.append((start, count))
        self._free = merged

    @property
    def free(self) -> int:
        """Tokens that belong to nobody."""
        return sum(count for _, count in self._free)
