"""A rank's side of the delivery: inputs are prepared beside the decision, and handed over when it has been made.

Invariants (``tests/delivery``):

* A rank never decides. A request is expected from its arrival; its inputs are kept once they are prepared, by whatever
  thread did that; they leave when the request is claimed or dropped.
* Inputs that come after the end are dropped at once, so nothing is left once every request has ended.
* A request is prepared at most once. What goes wrong is that request's failure, unless the group itself is broken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from coatcheck.errors import CoatcheckError, RankLost, RanksDisagree

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a request could not be prepared. It refers to nothing, unlike an exception, whose frames hold the inputs."""

    kind: type[Exception]
    text: str

    def __str__(self) -> str:
        return f"{self.kind.__name__}: {self.text}" if self.text else self.kind.__name__


class Preparer(Generic[T]):
    """Inputs by request, between arrival and claim. Safe to use from several threads."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._prepared: dict[str, tuple[T, float] | None] = {}  # by request: inputs, and since when they are there

    def expect(self, request: str) -> None:
        """The request has arrived."""
        with self._lock:
            self._prepared[request] = None

    def wanted(self, request: str) -> bool:
        """False once the request was claimed or dropped: nobody waits for its inputs."""
        with self._lock:
            return request in self._prepared

    def prepare(self, request: str, make: Callable[[], T]) -> Failure | None:
        """Makes the inputs and keeps them. What went wrong with this request, or None: the caller reports it.

        Raises RankLost and RanksDisagree, which are no failure of this request: the group is broken.
        """
        try:
            made = make()
        except (RankLost, RanksDisagree):
            raise
        except Exception as error:
            failure = Failure(type(error), str(error))
            log.warning(
                "rank %d could not prepare request %s: %s",
                self._rank,
                request,
                failure,
                exc_info=None if isinstance(error, CoatcheckError) else error,  # what we expect says enough
            )
            return failure
        with self._lock:
            if request in self._prepared:
                self._prepared[request] = made, time.monotonic()
        return None

    def claim(self, request: str) -> tuple[T, float]:
        """Hands the inputs over, and says for how many seconds they have been there.

        Raises RanksDisagree if there are none: this rank never reported the request ready.
        """
        with self._lock:
            prepared = self._prepared.pop(request, None)
        if prepared is None:
            raise RanksDisagree(f"rank {self._rank} was told to admit request {request}, for which it has no inputs")
        made, since = prepared
        return made, time.monotonic() - since

    def drop(self, request: str) -> None:
        """The request ended before it was claimed. Unknown: it was claimed."""
        with self._lock:
            self._prepared.pop(request, None)

    def __len__(self) -> int:
        """Requests that were neither claimed nor dropped."""
        return len(self._prepared)
