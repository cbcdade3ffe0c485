"""The names under which programs show what an arena says of itself; how they export it is theirs.

With the prefix ``coatcheck_arena_``, which is also that of the bytes by state. Each name is a field of ArenaStatistics.
"""

from __future__ import annotations

BYTES = "coatcheck_arena_bytes", "Bytes of the arena by state"  # a gauge with the label ``state``
STATES = "reserved", "in_use", "quarantined", "cached", "free"
GAUGES = {
    "high_water_bytes": ("high_water", "Most bytes reserved, in use or quarantined at once"),
    "fragmentation": ("fragmentation", "Share of the free bytes outside the largest free range"),
}
COUNTERS = {
    "reservations": ("reservations", "Blocks reserved"),
    "refusals": ("refusals", "Blocks not reserved, for want of room at that moment"),
    "hits": ("hits", "Payloads whose content was there already"),
}
PREFIX = "coatcheck_arena_"
