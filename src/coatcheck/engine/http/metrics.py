"""Prometheus metrics of the front end, in a registry of their own. Gauges are read from snapshots at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coatcheck.engine.http.limits import Capacity
from coatcheck.engine.http.rank_link import LinkStatistics
from coatcheck.intake.pool import WorkerStatistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """``registry`` is open to other stages."""

    def __init__(
        self, capacity: Capacity, workers: Callable[[], WorkerStatistics], link: Callable[[], LinkStatistics]
    ) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("coatcheck_requests", "Requests ended", ["outcome", "strategy"], registry=self.registry)
        self.latency = Histogram(
            "coatcheck_request_seconds",
            "First byte to last token",
            ["strategy"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "coatcheck_first_token_seconds",
            "First byte to first token",
            ["strategy"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "coatcheck_inter_token_seconds",
            "Between a request's tokens",
            ["strategy"],
            buckets=(0.001, 0.0025, 0.005, *_SECONDS),
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "coatcheck_prompt_tokens", "Prompt tokens, images included", registry=self.registry
        )
        self.generated_tokens = Counter("coatcheck_generated_tokens", "Tokens generated", registry=self.registry)
        self.fallbacks = Counter(
            "coatcheck_strategy_fallbacks",
            "Requests that another strategy took, theirs being unavailable",
            ["strategy"],
            registry=self.registry,
        )
        self.registry.register(_Snapshots(capacity, workers, link))

    def page(self) -> bytes:
        """What /metrics answers."""
        return generate_latest(self.registry)


class _Snapshots(Collector):
    def __init__(
        self, capacity: Capacity, workers: Callable[[], WorkerStatistics], link: Callable[[], LinkStatistics]
    ) -> None:
        self._capacity = capacity
        self._workers = workers
        self._link = link

    def collect(self) -> Iterable[Metric]:
        workers, link = self._workers(), self._link()
        values = {
            "coatcheck_requests_in_flight": (self._capacity.requests, "Requests in flight"),
            "coatcheck_held_bytes": (self._capacity.held_bytes, "Bodies and payloads that no rank has taken yet"),
            "coatcheck_link_open": (link.open, "Requests at the ranks"),
            "coatcheck_link_queued": (link.queued, "Messages that wait for the entry rank"),
            "coatcheck_workers_ready": (workers.ready, "Workers that are up"),
            "coatcheck_workers_busy": (workers.busy, "Workers at a job"),
            "coatcheck_workers_waiting": (workers.waiting, "Jobs that wait for a worker"),
            "coatcheck_workers_jobs": (workers.jobs, "Jobs answered since the start"),
            "coatcheck_workers_deaths": (workers.deaths, "Workers that died since the start"),
        }
        for name, (value, text) in values.items():
            yield GaugeMetricFamily(name, text, value=value)
