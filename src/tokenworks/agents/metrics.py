"""Counters that operators scrape. Labels come from the grid file or from closed lists, so their number is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Decision, Delivery, Usage
from tokenworks.engine.fleet import Replica

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """All metrics of one gateway, in a registry of its own. docs/metrics.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "replica", "ending")
        self._requests = Counter("tokenworks_requests", "Requests settled.", labels, registry=self.registry)
        self._tokens = Counter(
            "tokenworks_tokens", "Native tokens by usage bucket.", ("model", "bucket"), registry=self.registry
        )
        self._ttft = Histogram(
            "tokenworks_ttft_seconds", "Arrival to first token.", ("model",), buckets=_TTFT_S, registry=self.registry
        )
        self._total = Histogram(
            "tokenworks_request_seconds", "Arrival to end.", ("model",), buckets=_TOTAL_S, registry=self.registry
        )
        self._refused = Counter(
            "tokenworks_refused", "Requests refused, by error code.", ("code",), registry=self.registry
        )
        self._ready = Gauge(
            "tokenworks_replica_ready", "1 when the replica can serve.", ("replica",), registry=self.registry
        )
        self._running = Gauge("tokenworks_replica_running", "Requests in flight.", ("replica",), registry=self.registry)
        self._restarts = Gauge("tokenworks_replica_restarts", "Restarts so far.", ("replica",), registry=self.registry)
        self._holds = Gauge("tokenworks_open_holds", "Holds not yet settled.", registry=self.registry)
        self._journal = Gauge(
            "tokenworks_journal_bytes", "Bytes in the journal's open segment.", registry=self.registry
        )

    def settled(self, decision: Decision, usage: Usage, delivery: Delivery) -> None:
        """Count one settled request."""
        model = decision.chosen.model
        self._requests.labels(model, decision.chosen.replica, delivery.ending).inc()
        for bucket, count in usage.counts():
            self._tokens.labels(model, bucket).inc(count)
        self._total.labels(model).observe(delivery.total_ns / NS_PER_S)
        if delivery.ttft_ns is not None:
            self._ttft.labels(model).observe(delivery.ttft_ns / NS_PER_S)

    def refused(self, code: str) -> None:
        """Count one request that ended in an error before a hold was settled."""
        self._refused.labels(code).inc()

    def page(self, replicas: Mapping[str, Replica], ready: Iterable[str], open_holds: int, journal_bytes: int) -> bytes:
        """The Prometheus page."""
        names = set(ready)
        for name, replica in replicas.items():
            self._ready.labels(name).set(int(name in names))
            self._running.labels(name).set(replica.running)
            self._restarts.labels(name).set(replica.restarts)
        self._holds.set(open_holds)
        self._journal.set(journal_bytes)
        return generate_latest(self.registry)
