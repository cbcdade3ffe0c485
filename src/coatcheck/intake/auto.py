"""Where payloads go under ``auto``; how ranks then prepare them decides coatcheck.engine.ranks.auto."""

from __future__ import annotations

from collections.abc import Collection

from coatcheck.arena.allocator import pages
from coatcheck.engine.strategies.table import AUTO, NEED_ARENA, carrier_named


def rides_inside(payloads: Collection[int], inside_bytes: int | None, arena_bytes: int) -> bool:
    """True if a request's payloads, of so many bytes each, ride beside it; False if they go into the arena.

    ``inside_bytes`` is what the ranks told (see AutoRule), None if no handle may come to them.
    What could never fit into an arena of ``arena_bytes`` rides too: it is served as by an engine without arena, within
    the bounds that hold for all payloads. What does not fit now waits for room.
    """
    return inside_bytes is None or sum(payloads) <= inside_bytes or sum(map(pages, payloads)) > arena_bytes


def by_handle(strategy: str, payloads: Collection[int], inside_bytes: int | None, arena_bytes: int) -> bool:
    """True if such payloads of a request go into the arena under that strategy, whoever fills it."""
    if strategy == AUTO:
        return not rides_inside(payloads, inside_bytes, arena_bytes)
    return carrier_named(strategy) in NEED_ARENA
