"""What the plugin measures of itself, in SGLang's own ``/metrics``; named as our engine's where it is the same.

SGLang has prometheus_client's multiprocess mode: every process writes to files of its own, which whoever is asked for
``/metrics`` adds up. prometheus_client takes or leaves that mode when it is first imported, by a variable that SGLang
sets after it has loaded its plugins. So it is imported here when metrics are made and wanted, and not before.

Writing one observation takes 4 us: a scheduler's thread leaves that to another, which writes once a second.

Costs: ``python -m benchmarks.micro.plugin_recording``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from coatcheck.arena.metrics import BYTES, COUNTERS, GAUGES, PREFIX, STATES
from coatcheck.process import set_name
from coatcheck.stopwatch import SECONDS

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram

    from coatcheck.arena import ArenaStatistics

STRATEGY = "handle-background"  # what the plugin does, in our engine's words
WRITE_S = 1.0  # between writes of what is not written at once
LAG_S = 0.1  # between looks at how late the event loop is
# How a request with inputs went.
Way = Literal[
    "carried", "not in the share", "not attached", "session", "no room", "not packable", "trouble", "breaker open"
]  # fmt: skip


# How the inputs of a request were made, in mode whole: by workers, or by SGLang, and why.
Taken = Literal[
    "whole",
    "not in the share",
    "breaker open",
    "starting",
    "busy",
    "media",
    "prompt",
    "settings",
    "session",
    "refused",
    "no room",
    "trouble",
]


class NoFrontMetrics:
    """The tokenizer's, where metrics are off."""

    on = False

    def went(self, way: Way) -> None:
        """A request with inputs was sent on."""

    def taken(self, how: Taken) -> None:
        """A request's inputs are to be made."""

    def arena(self, statistics: ArenaStatistics, waiting: int, aside: bool) -> None:
        """A snapshot, to be shown until the next; ``waiting``: for room; ``aside``: the breaker is open."""

    def waited(self, seconds: float) -> None:
        """A request waited so long for room, and had it or not."""

    def lag(self, seconds: float) -> None:
        """The event loop came so late to what was due."""


class FrontMetrics(NoFrontMetrics):
    """The tokenizer's. To be made after SGLang has prepared for metrics.

    ``registry``: None for SGLang, which reads the files; a second server of one process may use the names again.
    """

    on = True

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        requests = Counter(
            "coatcheck_sglang_requests", "Requests with inputs, by their way", ["way"], registry=registry
        )
        self._requests = {way: requests.labels(way) for way in get_args(Way)}  # from 0 on, so that rates are right
        taken = Counter(
            "coatcheck_sglang_processed",
            "Requests with media in mode whole, by who processed them: workers (whole), or SGLang, and why",
            ["how"],
            registry=registry,
        )
        self._taken = {how: taken.labels(how) for how in get_args(Taken)}
        self._bytes = Gauge(*BYTES, ["state"], registry=registry, multiprocess_mode="mostrecent")
        self._gauges = {
            field: Gauge(PREFIX + name, text, registry=registry, multiprocess_mode="mostrecent")
            for name, (field, text) in GAUGES.items()
        }
        self._counters = {
            field: Counter(PREFIX + name, text, registry=registry) for name, (field, text) in COUNTERS.items()
        }
        self._waiting, self._breaker = (
            Gauge(f"coatcheck_sglang_{name}", text, registry=registry, multiprocess_mode="mostrecent")
            for name, text in (
                ("room_waiting", "Requests that wait for room in the arena"),
                ("breaker_open", "1: nothing is carried until every rank answers"),
            )
        )
        self._room_wait, self._lag = (
            Histogram(f"coatcheck_{name}", text, buckets=SECONDS, registry=registry)
            for name, text in (
                ("sglang_room_wait_seconds", "Waiting for room in the arena, of the requests that waited"),
                ("event_loop_lag_seconds", f"How late the tokenizer's event loop is, looked at every {LAG_S:g} s"),
            )
        )
        self._shown: ArenaStatistics | None = None

    def went(self, way: Way) -> None:
        """Counts it."""
        self._requests[way].inc()

    def taken(self, how: Taken) -> None:
        """Counts it."""
        self._taken[how].inc()

    def arena(self, statistics: ArenaStatistics, waiting: int, aside: bool) -> None:
        """Writes what is new since the last."""
        self._waiting.set(waiting)
        self._breaker.set(aside)
        shown = self._shown
        if statistics == shown:
            return
        for state in STATES:
            self._bytes.labels(state).set(getattr(statistics, state))
        for field, gauge in self._gauges.items():
            gauge.set(getattr(statistics, field))
        for field, counter in self._counters.items():
            counter.inc(getattr(statistics, field) - (getattr(shown, field) if shown else 0))
        self._shown = statistics

    def waited(self, seconds: float) -> None:
        """Observed as it is."""
        self._room_wait.observe(seconds)

    def lag(self, seconds: float) -> None:
        """Observed as it is."""
        self._lag.observe(seconds)


class NoRankMetrics:
    """A rank's, where metrics are off."""

    def start(self) -> None:
        """The plugin's part of ``recv_requests`` begins."""

    def claimed(self, requests: Sequence[tuple[float, float]]) -> None:
        """It ends, and hands on these requests.

        Of each: seconds since its inputs were ready on this rank, and CPU seconds that the helper thread spent on them.
        """

    def materialized(self, seconds: float) -> None:
        """Inputs were made. On the thread beside the scheduler's."""


class RankMetrics(NoRankMetrics):
    """A rank's. To be made after SGLang has prepared for metrics; ``registry`` as in FrontMetrics.

    A request's *stall* is the plugin's part of the ``recv_requests`` that hands it on, on the scheduler's thread, and
    the CPU time of the helper thread that prepared it: so long, at most, the scheduler's thread has waited for the
    interpreter's lock meanwhile. What SGLang's own part takes is not in it. Requests that are handed on at once have
    an equal share of the first part, so that all stalls add up to at least the scheduler's time lost.
    """

    def __init__(self, rank: int, registry: CollectorRegistry | None = None) -> None:
        from prometheus_client import Histogram

        def histogram(name: str, text: str) -> Histogram:
            labels = {"strategy": STRATEGY, "rank": str(rank)}
            made = Histogram(f"coatcheck_{name}", text, labels, buckets=SECONDS, registry=registry)
            return made.labels(**labels)

        self._stall = histogram("stall_seconds", "Scheduler's thread, by request: wall, with waits for the helper")
        self._stall_cpu = histogram("stall_cpu_seconds", "Scheduler's thread, by request: CPU")
        self._materialize = histogram("materialize_seconds", "Arrived to inputs, by request")
        self._wait = histogram("admission_wait_seconds", "Ready on this rank to claimed")
        self._began = 0.0, 0.0
        self._unwritten: deque[tuple[float, float, float]] = deque()  # stalls, wall and CPU, and the wait

    def start(self) -> None:
        """The clocks run."""
        self._began = time.monotonic(), time.thread_time()

    def claimed(self, requests: Sequence[tuple[float, float]]) -> None:
        """They stand."""
        if requests:
            wall, cpu = self._began
            wall_share = (time.monotonic() - wall) / len(requests)
            cpu_share = (time.thread_time() - cpu) / len(requests)
            self._unwritten.extend((wall_share + helper, cpu_share, waited) for waited, helper in requests)

    def materialized(self, seconds: float) -> None:
        """Observed as it is."""
        self._materialize.observe(seconds)

    def write(self) -> None:
        """What the scheduler's thread has left to be written. On one thread, any."""
        while self._unwritten:
            wall, cpu, waited_s = self._unwritten.popleft()
            self._stall.observe(wall)
            self._stall_cpu.observe(cpu)
            self._wait.observe(waited_s)


def rank_metrics(wanted: bool, rank: int) -> NoRankMetrics:
    """With a thread that writes them until the process ends."""
    if not wanted:
        return NoRankMetrics()
    metrics = RankMetrics(rank)
    threading.Thread(target=_keep_writing, args=[metrics], name="coatcheck-metrics", daemon=True).start()
    return metrics


def _keep_writing(metrics: RankMetrics) -> None:
    set_name("coatcheck-metrics")
    while True:
        metrics.write()
        time.sleep(WRITE_S)
