"""A rank's leases: a block is given back when nothing lies over it any more, and not before.

Invariants (``tests/integrations/sglang``):

* Whatever is laid over lent bytes (tensors, arrays, slices, views of them) keeps the loan alive. Python's own reference
  counts end it, on whatever thread drops the last one.
* Each ticket is given back exactly once, whether its bytes were lent or could not be.
* Ending a loan runs inside somebody else's deallocation, often on a scheduler's thread: it only appends to a deque, and
  wakes nobody, which would cost more than all the rest. While anything is lent, a thread looks every 10 ms.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from coatcheck.arena import ArenaReader
from coatcheck.errors import ArenaError
from coatcheck.integrations.sglang.records import Ticket
from coatcheck.process import set_name

log = logging.getLogger(__name__)

LOOK_S = 0.01  # between looks for what is over


class Leases:
    """Lends what lies in the arena. ``send`` is called on a thread of its own, with each ticket's request, once."""

    def __init__(self, reader: ArenaReader, send: Callable[[str], None]) -> None:
        self._reader, self._send = reader, send
        self._lent: dict[int, tuple[weakref.ref[Any], Ticket]] = {}  # by the reference's id, which is kept alive here
        self._over: deque[weakref.ref[Any] | Ticket] = deque()
        self._some = threading.Event()  # lent or over
        self._closing = False
        self._thread = threading.Thread(target=self._give_back, name="coatcheck-returns", daemon=True)
        self._thread.start()

    def lend(self, ticket: Ticket) -> memoryview:
        """The block's bytes, read-only, lent until the last thing that lies over them is gone.

        Raises HandleInvalid or HandleStale; then the ticket is given back.
        """
        try:
            view = self._reader.view(ticket.handle)
        except ArenaError:
            self._over.append(ticket)
            self._some.set()
            raise
        # An array, because slices of a memoryview refer to what exports the memory, not to the memoryview: so the
        # array is what all of them hold.
        loan = np.frombuffer(view, dtype=np.uint8)
        over = weakref.ref(loan, self._over.append)
        self._lent[id(over)] = over, ticket
        self._some.set()
        return loan.data

    def close(self, timeout_s: float) -> bool:
        """Sends what is over by now, then ends the thread; later ends are not sent. False if it takes longer."""
        self._closing = True
        self._some.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _give_back(self) -> None:
        set_name("coatcheck-returns")
        while not self._closing:
            self._some.wait()
            time.sleep(LOOK_S)
            self._some.clear()
            self._look()
            if self._lent:
                self._some.set()
        self._look()

    def _look(self) -> None:
        while self._over:
            over = self._over.popleft()
            ticket = over if isinstance(over, Ticket) else self._lent.pop(id(over))[1]
            try:
                self._reader.check(ticket.handle)
            except ArenaError:
                log.error("the block of request %s was another's before this rank gave it back", ticket.request)
            self._send(ticket.request)
