"""One-way sockets between processes of a team, a rank that has one, and a stopwatch: what contenders' sides share."""

from __future__ import annotations

import time
from typing import Any

import zmq

from benchmarks.handoff.meter import WAIT_S, Place


class Watch:
    """Runs from its making; ``start`` is on the host's monotonic clock."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def leave_out(self, seconds: float) -> None:
        """So many seconds until now are not to count."""
        self.start += seconds


class Inbox:
    """PULL, bound at a path within the team's private directory."""

    def __init__(self, path: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.PULL)
        self.socket.bind(f"ipc://{path}")

    def wait(self) -> None:
        """Until a message is there. Raises TimeoutError."""
        if not self.socket.poll(round(WAIT_S * 1e3)):
            raise TimeoutError(f"nothing came within {WAIT_S:g} s")

    def receive(self) -> list[zmq.Frame]:
        """The next message, uncopied; one is there."""
        return self.socket.recv_multipart(copy=False)

    def close(self) -> None:
        """What was not read is dropped."""
        self._context.destroy(linger=0)


class Outbox:
    """PUSH, connected to an inbox, which may come later."""

    def __init__(self, path: str) -> None:
        self._context: zmq.Context[zmq.Socket[Any]] = zmq.Context()
        self.socket = self._context.socket(zmq.PUSH)
        self.socket.connect(f"ipc://{path}")

    def close(self) -> None:
        """What was not sent is dropped."""
        self._context.destroy(linger=0)


class InboxRank:
    """A rank's side of which the entry rank alone has an inbox; the others learn by a collective what came.

    ``held``: what keeps the tensor alive until it is released.
    """

    def __init__(self, place: Place) -> None:
        self.requests = Inbox(place.path("requests")) if place.rank == 0 else None
        self.held: list[Any] = []

    def prepare(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        if self.requests is not None:
            self.requests.wait()

    def release(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        self.held.clear()

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        if self.requests is not None:
            self.requests.close()
