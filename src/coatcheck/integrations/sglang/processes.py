"""When processes of this host end, whoever's children they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping

import zmq


class Processes:
    """Descriptors that can be read once their process has ended (pidfd_open(2), Linux 5.3).

    Where the system gives none (an old kernel, a container's filter), an end is not noticed.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._gone = False
        self._fds = list[int]()
        for pid in pids:
            try:
                self._fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                self._gone = True
            except OSError:
                continue

    def register(self, poller: zmq.Poller) -> None:
        """``poller`` tells ``ended`` then."""
        for fd in self._fds:
            poller.register(fd, zmq.POLLIN)

    def ended(self, events: Mapping[object, int]) -> bool:
        """One of them has."""
        return self._gone or any(fd in events for fd in self._fds)

    def close(self) -> None:
        """Idempotent."""
        while self._fds:
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())
