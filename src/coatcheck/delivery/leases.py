"""A rank's leases: a request's blocks are given back when nothing lies over any of them any more, and not before.

A program that knows itself when that is calls ``give_back``; :class:`Leases` finds it out by Python's reference counts.

Invariants (``tests/delivery``):

* Whatever is laid over lent bytes (tensors, arrays, slices, views of them) keeps the loan alive. Python's own reference
  counts end it, on whatever thread drops the last one.
* Each request with blocks is given back exactly once, whether its bytes were lent or could not be.
* Ending a loan runs inside somebody else's deallocation, often on a scheduler's thread: it only appends to a deque, and
  wakes nobody, which would cost more than all the rest. While anything is lent, a thread looks every 10 ms.
* A copy to a GPU out of lent bytes may outlast them, if the mapping is registered with CUDA. So what is over is given
  back when its fence has passed, which is put up after it was over (:mod:`coatcheck.delivery.upload`).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coatcheck.arena import ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Returned
from coatcheck.errors import ArenaError
from coatcheck.process import set_name

log = logging.getLogger(__name__)

LOOK_S = 0.01  # between looks for what is over
RETRY_S = 1.0  # between tries to put up a fence


Fence = Callable[[], Callable[[], bool]]
"""Called when a loan is over; what it returns says whether all that may still read the loan's bytes has passed."""


def give_back(
    request: str, rank: int, handles: Sequence[Handle], reader: ArenaReader | None, send: Callable[[Returned], None]
) -> None:
    """This rank will never again read what the request's handles point at. To be called once for a request.

    A handle whose block has another's content by now is logged: unless the request failed for it, that is a defect of
    the arena's owner.
    """
    for handle in handles:
        try:
            if reader is not None:
                reader.check(handle)
        except ArenaError as error:
            log.error("rank %d: request %s is over, and a block was another's before: %s", rank, request, error)
    send(Returned(request, rank))


class _Loan:
    """A request's handles, and how many of their blocks something may still lie over."""

    def __init__(self, request: str, handles: Sequence[Handle], left: int) -> None:
        self.request, self.handles, self.left = request, handles, left


class Leases:
    """Lends what lies in the arena. ``send`` is called on a thread of its own, once for each request.

    ``fence`` is called on that thread, too; None: nothing reads a loan's bytes once it is over. ``begin``: before it.
    """

    def __init__(
        self,
        reader: ArenaReader,
        rank: int,
        send: Callable[[Returned], None],
        fence: Fence | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self._reader, self._rank, self._send, self._begin = reader, rank, send, begin
        self._fence: Fence = fence or (lambda: lambda: True)
        self._unfenced = list[_Loan]()  # over, and no fence behind them yet
        self._fenced: deque[tuple[Callable[[], bool], list[_Loan]]] = deque()  # in the order of their fences
        self._lent: dict[int, tuple[weakref.ref[Any], _Loan]] = {}  # by the reference's id, which is kept alive here
        self._over: deque[weakref.ref[Any] | _Loan] = deque()
        self._some = threading.Event()  # lent or over
        self._closing = False
        self._thread = threading.Thread(target=self._give_back, name="coatcheck-returns", daemon=True)
        self._thread.start()

    def lend(self, request: str, handles: Sequence[Handle]) -> list[memoryview]:
        """The blocks' bytes, read-only, lent until the last thing that lies over any of them is gone.

        Raises HandleInvalid or HandleStale; then the request is given back.
        """
        if not handles:
            return []
        try:
            views = [self._reader.view(handle) for handle in handles]
        except ArenaError:
            self._over.append(_Loan(request, handles, 1))
            self._some.set()
            raise
        loan, lent = _Loan(request, handles, len(views)), []
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
            passed, loans = self._fenced[0]
            try:
                if not passed():
                    return
            except Exception:  # what a fence cannot tell has not passed: another is put up
                log.exception("a fence behind what is over could not be looked at; another is put up")
                self._unfenced += loans
                self._fenced.popleft()
                time.sleep(RETRY_S)
                return
            self._fenced.popleft()
            for loan in loans:
                give_back(loan.request, self._rank, loan.handles, self._reader, self._send)

    def _ended(self) -> list[_Loan]:
        """Requests of which the last loan is over."""
        ended = []
        while self._over:
            over = self._over.popleft()
            loan = over if isinstance(over, _Loan) else self._lent.pop(id(over))[1]
            loan.left -= 1
            if loan.left == 0:
                ended.append(loan)
        return ended
