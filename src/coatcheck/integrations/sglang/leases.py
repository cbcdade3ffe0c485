"""A rank's leases: a ticket's blocks are given back when nothing lies over any of them any more, and not before.

Invariants (``tests/integrations/sglang``):

* Whatever is laid over lent bytes (tensors, arrays, slices, views of them) keeps the loan alive. Python's own reference
  counts end it, on whatever thread drops the last one.
* Each ticket with blocks is given back exactly once, whether its bytes were lent or could not be.
* Ending a loan runs inside somebody else's deallocation, often on a scheduler's thread: it only appends to a deque, and
  wakes nobody, which would cost more than all the rest. While anything is lent, a thread looks every 10 ms.
* A copy to a GPU out of lent bytes may outlast them, if the mapping is registered with CUDA. So what is over is given
  back when its fence has passed, which is put up after it was over (:mod:`coatcheck.integrations.sglang.registered`).
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
from coatcheck.integrations.sglang.registered import Fence
from coatcheck.process import set_name

log = logging.getLogger(__name__)

LOOK_S = 0.01  # between looks for what is over
RETRY_S = 1.0  # between tries to put up a fence


class _Loan:
    """A ticket, and how many of its blocks something may still lie over."""

    def __init__(self, ticket: Ticket, left: int) -> None:
        self.ticket, self.left = ticket, left


class Leases:
    """Lends what lies in the arena. ``send`` is called on a thread of its own, with each ticket's request, once.

    ``fence`` is called on that thread, too; None: nothing reads a loan's bytes once it is over. ``begin``: before it.
    """

    def __init__(
        self,
        reader: ArenaReader,
        send: Callable[[str], None],
        fence: Fence | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self._reader, self._send, self._begin = reader, send, begin
        self._fence: Fence = fence or (lambda: lambda: True)
        self._unfenced = list[Ticket]()  # over, and no fence behind them yet
        self._fenced: deque[tuple[Callable[[], bool], list[Ticket]]] = deque()  # in the order of their fences
        self._lent: dict[int, tuple[weakref.ref[Any], _Loan]] = {}  # by the reference's id, which is kept alive here
        self._over: deque[weakref.ref[Any] | _Loan] = deque()
        self._some = threading.Event()  # lent or over
        self._closing = False
        self._thread = threading.Thread(target=self._give_back, name="coatcheck-returns", daemon=True)
        self._thread.start()

    def lend(self, ticket: Ticket) -> list[memoryview]:
        """The blocks' bytes, read-only, lent until the last thing that lies over any of them is gone.

        Raises HandleInvalid or HandleStale; then the ticket is given back.
        """
        if not ticket.handles:
            return []
        try:
            views = [self._reader.view(handle) for handle in ticket.handles]
        except ArenaError:
            self._over.append(_Loan(ticket, 1))
            self._some.set()
            raise
        loan, lent = _Loan(ticket, len(views)), []
        for view in views:
            # An array, because slices of a memoryview refer to what exports the memory, not to the memoryview: so the
            # array is what all of them hold.
            array = np.frombuffer(view, dtype=np.uint8)
            over = weakref.ref(array, self._over.append)
            self._lent[id(over)] = over, loan
            lent.append(array.data)
        self._some.set()
        return lent

    def close(self, timeout_s: float) -> bool:
        """Sends what is over by now, then ends the thread; later ends are not sent. False if it takes longer."""
        self._closing = True
        self._some.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _give_back(self) -> None:
        set_name("coatcheck-returns")
        if self._begin is not None:
            try:
                self._begin()
            except Exception:
                log.exception("CUDA's calls on the thread that gives back may meet a capture of a graph")
        while not self._closing:
            self._some.wait()
            time.sleep(LOOK_S)
            self._some.clear()
            try:
                self._look()
            except Exception:  # or else nothing would be given back any more
                log.exception("what is over could not be given back")
                time.sleep(RETRY_S)
            if self._lent or self._fenced or self._unfenced:
                self._some.set()
        self._look()

    def _look(self) -> None:
        self._unfenced += self._ended()
        if self._unfenced:
            try:
                self._fenced.append((self._fence(), self._unfenced))
            except Exception:  # of the device's: nothing is given back without a fence
                log.exception("no fence could be put up behind what is over; it is tried again")
                time.sleep(RETRY_S)
            else:
                self._unfenced = []
        while self._fenced:
            passed, tickets = self._fenced[0]
            try:
                if not passed():
                    return
            except Exception:  # what a fence cannot tell has not passed: another is put up
                log.exception("a fence behind what is over could not be looked at; another is put up")
                self._unfenced += tickets
                self._fenced.popleft()
                time.sleep(RETRY_S)
                return
            self._fenced.popleft()
            for ticket in tickets:
                self._return(ticket)

    def _ended(self) -> list[Ticket]:
        """Tickets of which the last loan is over."""
        ended = []
        while self._over:
            over = self._over.popleft()
            loan = over if isinstance(over, _Loan) else self._lent.pop(id(over))[1]
            loan.left -= 1
            if loan.left == 0:
                ended.append(loan.ticket)
        return ended

    def _return(self, ticket: Ticket) -> None:
        try:
            for handle in ticket.handles:
                self._reader.check(handle)
        except ArenaError:
            log.error("a block of request %s was another's before this rank gave it back", ticket.request)
        self._send(ticket.request)
