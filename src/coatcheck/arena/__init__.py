"""The arena: shared memory that holds payloads, owned and allocated by one process. Usable on its own.

::

    with Arena(256 << 20) as arena:                      # the front end
        block = arena.put("request", memoryview(pixels), digest)    # or reserve, write in place, commit
        arena.dispatch("request", readers=[0, 1])        # before the handle goes out
        ...
        arena.acknowledge("request", 0)                  # each reader, when it will not read any more
        arena.end("request")

    reader = ArenaReader(arena.address)                  # each rank: maps once, read-only
    view = reader.view(handle)                           # no copy
"""

from coatcheck.arena.arena import Arena, ArenaStatistics, Block
from coatcheck.arena.memory import ArenaAddress, AttachedMemory
from coatcheck.arena.reader import ArenaReader

__all__ = ["Arena", "ArenaAddress", "ArenaReader", "ArenaStatistics", "AttachedMemory", "Block"]
