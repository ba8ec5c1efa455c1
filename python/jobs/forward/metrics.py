"""How many requests go between nodes, and how they fail."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class ForwardMetrics:
    """Label values come from the code, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Counter("jobs_forward_sent", "Requests passed on to the leader, each try", registry=registry)
        self.received = Counter(
            "jobs_forward_received", "Requests of other nodes that this one answered", registry=registry
        )
        self._failures = Counter("jobs_forward_failures", "Tries that failed", ("kind",), registry=registry)
        self.tunnels = Gauge(
            "jobs_forward_tunnels", "Connections of other nodes' workers that end here", registry=registry
        )

    def failed(self, kind: str) -> None:
        """Count a failure of a kind."""
        self._failures.labels(kind).inc()
