"""Metrics of other processes, for the front end's registry: what the ranks say of themselves, and CPU time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from coatcheck.arena import Arena
from coatcheck.arena.metrics import BYTES, COUNTERS, GAUGES, PREFIX, STATES
from coatcheck.arena.queue import ArenaQueue
from coatcheck.engine.records import Snapshot


class RankSnapshots(Collector):
    """The newest snapshot of each rank; every sample gets the label ``rank``."""

    def __init__(self, snapshots: Callable[[], Iterable[Snapshot]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterable[Metric]:
        """One metric per name, with the samples of all ranks."""
        metrics: dict[str, Metric] = {}
        for snapshot in self._snapshots():
            for family in snapshot.families:
                metric = metrics.setdefault(family.name, Metric(family.name, family.text, family.kind))
                for sample in family.samples:
                    metric.add_sample(sample.name, {"rank": str(snapshot.rank), **dict(sample.labels)}, sample.value)
        return metrics.values()


class ArenaMetrics(Collector):
    """The arena and the line in front of it."""

    def __init__(self, arena: Arena, queue: ArenaQueue) -> None:
        self._arena, self._queue = arena, queue

    def collect(self) -> Iterable[Metric]:
        """Gauges and counters from one snapshot."""
        arena, line = self._arena.statistics(), self._queue.statistics()
        by_state = GaugeMetricFamily(*BYTES, labels=["state"])
        for state in STATES:
            by_state.add_metric([state], getattr(arena, state))
        yield by_state
        for name, (field, text) in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=getattr(arena, field))
        for name, (field, text) in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, text, value=getattr(arena, field))
        yield GaugeMetricFamily(f"{PREFIX}waiting", "Requests that wait for room", value=line.waiting)
        yield CounterMetricFamily(f"{PREFIX}waits", "Requests that had to wait for room", value=line.waited)
        text = "Requests that waited for room in vain"
        yield CounterMetricFamily(f"{PREFIX}turned_away", text, value=line.turned_away)


class CpuSeconds(Collector):
    """CPU time of every process of the server, read from the system. One that has ended is left out."""

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """One counter, by process."""
        counter = CounterMetricFamily("coatcheck_cpu_seconds", "CPU time, user and system", labels=["process"])
        for name, pid in self._pids().items():
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                if metric.name == "process_cpu_seconds":
                    counter.add_metric([name], metric.samples[0].value)
        return [counter]
