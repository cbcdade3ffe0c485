"""A rank's leases: a block is given back when nothing lies over it any more, and not before.

Invariants (``tests/integrations/sglang``):

* Whatever is laid over lent bytes (tensors, arrays, slices, views of them) keeps the loan alive. Python's own reference
  counts end it, on whatever thread drops the last one.
* Each ticket is given back exactly once, whether its bytes were lent or could not be.
* Ending a loan runs inside somebody else's deallocation, so it only puts a name into a queue; a thread sends it.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable

import numpy as np

from coatcheck.arena import ArenaReader
from coatcheck.errors import ArenaError
from coatcheck.integrations.sglang.records import Ticket
from coatcheck.process import set_name

log = logging.getLogger(__name__)


class Leases:
    """Lends what lies in the arena. ``send`` is called on a thread of its own, with each ticket's request, once."""

    def __init__(self, reader: ArenaReader, send: Callable[[str], None]) -> None:
        self._reader, self._send = reader, send
        self._over: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()  # its put may interrupt itself
        self._thread = threading.Thread(target=self._give_back, name="coatcheck-returns", daemon=True)
        self._thread.start()

    def lend(self, ticket: Ticket) -> memoryview:
        """The block's bytes, read-only, lent until the last thing that lies over them is gone.

        Raises HandleInvalid or HandleStale; then the ticket is given back.
        """
        try:
            view = self._reader.view(ticket.handle)
        except ArenaError:
            self._over.put(ticket)
            raise
        # An array, because slices of a memoryview refer to what exports the memory, not to the memoryview: so the
        # array is what all of them hold.
        loan = np.frombuffer(view, dtype=np.uint8)
        weakref.finalize(loan, self._over.put, ticket).atexit = False
        return loan.data

    def close(self, timeout_s: float) -> bool:
        """Sends what is over by now, then ends the thread; later ends are not sent. False if it takes longer."""
        self._over.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _give_back(self) -> None:
        set_name("coatcheck-returns")
        while (ticket := self._over.get()) is not None:
            try:
                self._reader.check(ticket.handle)
            except ArenaError:
                log.error("the block of request %s was another's before this rank gave it back", ticket.request)
            self._send(ticket.request)
