"""A rank's metrics on their way to the front end: a thread that sends a snapshot whenever they have changed.

Neither the step loop nor a collective takes part: each rank has its own socket to the front end.
"""

from __future__ import annotations

import logging
import threading

import zmq
from prometheus_client import CollectorRegistry

from coatcheck.engine.records import Family, Sample, Snapshot
from coatcheck.process import set_name
from coatcheck.wire import send

log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # a snapshot of four strategies takes a few milliseconds: benchmarks.micro.recording
CLOSE_S = 2.0
LINGER_MS = 500  # for the last snapshot; the front end may be gone


class Telemetry:
    """The thread. Uses ``socket`` (PUSH, to the front end) alone from now on, and closes it in the end."""

    def __init__(self, rank: int, registry: CollectorRegistry, socket: zmq.Socket[bytes]) -> None:
        self._rank = rank
        self._registry = registry
        self._socket = socket
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"coatcheck-rank{rank}-telemetry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends a last snapshot and ends the thread, in bounded time. Idempotent."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        set_name("coatcheck-metrics")
        sent: Snapshot | None = None
        while True:
            closing = self._closing.wait(INTERVAL_S)
            snapshot = take(self._rank, self._registry)
            if snapshot != sent:
                try:
                    send(self._socket, snapshot)
                    sent = snapshot
                except zmq.Again:
                    log.debug("rank %d: the front end does not read; a snapshot was dropped", self._rank)
            if closing:
                self._socket.close(linger=LINGER_MS)
                return


def take(rank: int, registry: CollectorRegistry) -> Snapshot:
    """All there is in ``registry``, as a record."""
    return Snapshot(
        rank,
        tuple(
            Family(
                metric.name,
                metric.documentation,
                metric.type,
                tuple(
                    Sample(sample.name, tuple(sample.labels.items()), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")  # times of creation: noise
                ),
            )
            for metric in registry.collect()
        ),
    )
