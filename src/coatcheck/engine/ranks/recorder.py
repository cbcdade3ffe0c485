"""What a rank measures of itself, always: histograms, and a trace where asked for.

*Stall* is the time that the scheduler's thread spends on one request's inputs, waits included:

* ``receive`` (entry rank): taking the request's message in;
* ``broadcast``: the plan's second collective, which carries payloads; shared by several requests, it is split among
  them by bytes;
* ``deliver``: all that an inline strategy does, with any collective of its own;
* ``admit``: handing the inputs to the runner;
* ``return``: giving handles back, once the pixels are used.

So the stalls of all requests add up to the scheduler's time lost to inputs. What the lane does is no stall; what it
costs the scheduler through the interpreter lock shows in the time of steps and between tokens.

Recording costs under 1 % of a step: ``python -m benchmarks.micro.recording``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from coatcheck.arena.handle import nbytes
from coatcheck.engine.ranks.trace import Phase, Span, Thread, Trace
from coatcheck.engine.records import Arrived
from coatcheck.engine.strategies.base import Strategy
from coatcheck.engine.strategies.table import carrier_named
from coatcheck.engine.strategies.timing import Timing
from coatcheck.intake.records import tensors
from coatcheck.stopwatch import SECONDS, Spent

BYTES = (1e3, 1e4, 1e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8)


@dataclass
class _Account:
    strategy: str
    wall: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True)
class _Count(Collector):
    name: str
    text: str
    value: Callable[[], float]

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self.name, self.text, value=self.value())


class Recorder:
    """One rank's. ``delivered``, ``gauge`` and ``count`` are for any thread, the rest for the scheduler's."""

    def __init__(self, trace: Trace | None = None) -> None:
        self.registry = CollectorRegistry()
        self._trace = trace
        self._accounts: dict[str, _Account] = {}  # of requests that have not ended
        self._stall = self._histogram("stall_seconds", "Scheduler's thread, by request: wall", ["strategy"])
        self._stall_cpu = self._histogram("stall_cpu_seconds", "Scheduler's thread, by request: CPU", ["strategy"])
        by_carrier = ["carrier", "collective"]
        self._broadcast = self._histogram("broadcast_seconds", "Broadcasts of inputs, by request", by_carrier)
        self._bytes = self._histogram("broadcast_bytes", "Broadcasts of inputs, by request", by_carrier, BYTES)
        self._materialize = self._histogram("materialize_seconds", "Arrived to inputs, by request", ["strategy"])
        self._wait = self._histogram("admission_wait_seconds", "Ready on this rank to admitted", ["strategy"])
        self._auto = Counter("coatcheck_auto", "Requests by what auto chose", ["strategy"], registry=self.registry)
        self._step = self._histogram("step_seconds", "Executing one plan")

    def _histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return Histogram(f"coatcheck_{name}", text, labels, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A value to be read, from any thread, whenever metrics are."""
        Gauge(f"coatcheck_{name}", text, registry=self.registry).set_function(value)

    def count(self, name: str, text: str, value: Callable[[], float]) -> None:
        """As ``gauge``, of a value that only grows; ``_total`` is added to the name."""
        self.registry.register(_Count(f"coatcheck_{name}", text, value))

    # ------------------------------------------------------------------ the scheduler's thread

    def received(self, arrived: Arrived, spent: Spent) -> None:
        """The entry rank took a request in."""
        self._stalled(arrived, "receive", spent)

    def chose(self, strategy: str) -> None:
        """The entry rank decided what a request that asked for ``auto`` gets."""
        self._auto.labels(strategy).inc()

    def broadcast(self, arrivals: Sequence[Arrived], spent: Spent) -> None:
        """A plan's second collective brought these arrivals."""
        sizes = [sum(map(nbytes, tensors(arrived.items))) for arrived in arrivals]
        whole = sum(sizes)
        for arrived, size in zip(arrivals, sizes, strict=True):
            if whole and not size:
                continue  # text beside images: nothing of it was in there
            part = spent.part(size / whole if whole else 1 / len(sizes))
            self._stalled(arrived, "broadcast", part, size)
            self._broadcasted(arrived, "plan", part, size)

    def admitted(self, request: str, strategy: str, waited_s: float, spent: Spent) -> None:
        """The runner has the request's inputs, ``waited_s`` after they were there."""
        self._wait.labels(strategy).observe(waited_s)
        self._account(request, strategy, spent)
        self._span(request, strategy, "admit", "scheduler", spent)

    def returned(self, request: str, spent: Spent) -> None:
        """The request's handles were given back."""
        account = self._accounts.get(request)
        if account is not None:
            self._account(request, account.strategy, spent)
            self._span(request, account.strategy, "return", "scheduler", spent)

    def ended(self, request: str) -> None:
        """The request has ended: its stall is whole. Twice or unheard of: nothing happens."""
        account = self._accounts.pop(request, None)
        if account is not None:
            self._stall.labels(account.strategy).observe(account.wall)
            self._stall_cpu.labels(account.strategy).observe(account.cpu)

    def verified(self, request: str, digest: str) -> None:
        """The entry rank knows that all ranks consumed the same inputs."""
        if self._trace is not None:
            self._trace.write(Span(request, "", "verify", "scheduler", time.monotonic(), 0.0, 0.0, 0, digest))

    def step(self, spent: Spent) -> None:
        """A plan was executed."""
        self._step.observe(spent.wall)

    # ------------------------------------------------------------------ either thread

    def delivered(
        self, arrived: Arrived, strategy: Strategy, spent: Spent, materializing: Spent | None, carried: int
    ) -> None:
        """The strategy has done its part, well or not.

        ``materializing``: the part of it that this rank spent on materializing, None if it did not; ``carried``:
        bytes that the strategy's own collective brought.
        """
        thread: Thread = "scheduler" if strategy.timing is Timing.INLINE else "lane"
        if thread == "scheduler":
            self._stalled(arrived, "deliver", spent)
        else:
            self._span(arrived.request, arrived.strategy, "deliver", thread, spent)
        if materializing is not None:
            self._materialize.labels(arrived.strategy).observe(materializing.wall)
            self._span(arrived.request, arrived.strategy, "materialize", thread, materializing)
        if strategy.carrier.collective(arrived):
            made = materializing or Spent(spent.start, 0.0, 0.0)
            rest = Spent(made.start + made.wall, spent.wall - made.wall, spent.cpu - made.cpu)
            self._broadcasted(arrived, "exchange", rest, carried)
            self._span(arrived.request, arrived.strategy, "exchange", thread, rest, carried)

    # ------------------------------------------------------------------ inside

    def _stalled(self, arrived: Arrived, phase: Phase, spent: Spent, size: int = 0) -> None:
        self._account(arrived.request, arrived.strategy, spent)
        self._span(arrived.request, arrived.strategy, phase, "scheduler", spent, size)

    def _account(self, request: str, strategy: str, spent: Spent) -> None:
        account = self._accounts.setdefault(request, _Account(strategy))
        account.strategy = strategy  # received as auto, it is known by what was chosen
        account.wall += spent.wall
        account.cpu += spent.cpu

    def _broadcasted(self, arrived: Arrived, collective: str, spent: Spent, size: int) -> None:
        carrier = carrier_named(arrived.strategy)
        self._broadcast.labels(carrier, collective).observe(spent.wall)
        self._bytes.labels(carrier, collective).observe(size)

    def _span(self, request: str, strategy: str, phase: Phase, thread: Thread, spent: Spent, size: int = 0) -> None:
        if self._trace is not None:
            span = Span(request, strategy, phase, thread, spent.start, spent.wall * 1e3, spent.cpu * 1e3, size)
            self._trace.write(span)
