"""Prometheus metrics: what the API counts itself, and what the node tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs._native import __version__
from jobs.service import Backend

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class ApiMetrics:
    """Label values come from the table of routes, so their number is bounded."""

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_NodeMetrics(backend))
        ProcessCollector(registry=self.registry)
        Info("jobs_build", "What runs here", registry=self.registry).info({"version": __version__})
        self._requests = Counter("jobs_api_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self._latency = Histogram(
            "jobs_api_request_seconds",
            "Time from a request's head to the end of its answer, streams and long polls left out",
            ("route",),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.connections = Gauge("jobs_api_connections", "Open connections", registry=self.registry)
        self.refused = Counter(
            "jobs_api_connections_refused", "Connections closed at once, being too many", registry=self.registry
        )

        # The library's own way from labels to a counter takes longer than counting.
        self._answered: dict[tuple[str, int], Counter] = {}
        self._took: dict[str, Histogram] = {}

    def answered(self, route: str, status: int) -> None:
        """Count an answer."""
        counter = self._answered.get((route, status))
        if counter is None:
            counter = self._answered[route, status] = self._requests.labels(route, status)
        counter.inc()

    def took(self, route: str, seconds: float) -> None:
        """Count how long an answer took."""
        histogram = self._took.get(route)
        if histogram is None:
            histogram = self._took[route] = self._latency.labels(route)
        histogram.observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class _NodeMetrics(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        for name, (help_text, value) in self._backend.metrics().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, help_text, value=value)
        for name, (help_text, label, values) in self._backend.labelled_metrics().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            found = family(name, help_text, labels=(label,))
            for which, value in values.items():
                found.add_metric((which,), value)
            yield found

    def describe(self) -> Iterator[Metric]:
        return iter(())
