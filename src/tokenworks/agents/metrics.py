"""Counters that operators scrape. Labels come from the grid file or from closed lists, so their number is bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import BUCKETS, Decision, Delivery, Usage
from tokenworks.engine.fleet import Replica

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class _Times:
    """A histogram of durations, cheap to add to."""

    __slots__ = ("_bounds_ns", "_bounds_s", "_counts", "_sum_ns")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._bounds_ns = [round(bound * NS_PER_S) for bound in bounds_s]
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_ns = 0

    def add(self, took_ns: int) -> None:
        self._counts[bisect_left(self._bounds_ns, took_ns)] += 1
        self._sum_ns += took_ns

    def show(self, family: HistogramMetricFamily, model: str) -> None:
        total, buckets = 0, []
        for bound, count in zip((*self._bounds_s, "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        if total:
            family.add_metric([model], buckets, self._sum_ns / NS_PER_S)


class _Settled(Collector):
    """What settled requests add up to. They are counted in plain numbers and turned into metrics when scraped."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.times: dict[str, tuple[_Times, _Times]] = {}

    def add(self, decision: Decision, usage: Usage, delivery: Delivery) -> None:
        model = decision.chosen.model
        key = (model, decision.chosen.replica, delivery.ending)
        self.requests[key] = self.requests.get(key, 0) + 1
        if model not in self.tokens:
            self.tokens[model], self.times[model] = [0] * len(BUCKETS), (_Times(_TTFT_S), _Times(_TOTAL_S))
        tokens, (ttft, total) = self.tokens[model], self.times[model]
        for at, count in usage.by_place():
            tokens[at] += count
        total.add(delivery.total_ns)
        if delivery.ttft_ns is not None:
            ttft.add(delivery.ttft_ns)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tokenworks_requests", "Requests settled.", labels=("model", "replica", "ending")
        )
        for key, count in self.requests.items():
            requests.add_metric(key, count)
        tokens = CounterMetricFamily("tokenworks_tokens", "Native tokens by usage bucket.", labels=("model", "bucket"))
        ttft = HistogramMetricFamily("tokenworks_ttft_seconds", "Arrival to first token.", labels=("model",))
        total = HistogramMetricFamily("tokenworks_request_seconds", "Arrival to end.", labels=("model",))
        for model, counts in self.tokens.items():
            for bucket, count in zip(BUCKETS, counts, strict=True):
                if count:
                    tokens.add_metric((model, bucket), count)
            for times, family in zip(self.times[model], (ttft, total), strict=True):
                times.show(family, model)
        yield from (requests, tokens, ttft, total)


class Metrics:
    """All metrics of one gateway, in a registry of its own. docs/metrics.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._settled = _Settled()
        self.registry.register(self._settled)
        self.settled = self._settled.add
        """Count one settled request."""
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

    @property
    def requests(self) -> int:
        """Settled so far."""
        return sum(self._settled.requests.values())

    def refused(self, code: str) -> None:
        """Count one request that ended in an error before a hold was settled."""
        self._refused.labels(code).inc()

    def page(self, replicas: Mapping[str, Replica], ready: Iterable[str], open_holds: int, journal_bytes: int) -> bytes:
        """The Prometheus page."""
        names = set(ready)
        for name, replica in replicas.items():
            self._ready.labels(name).set(int(name in names))
            self._running.labels(name).set(replica.running - replica.elsewhere)
            self._restarts.labels(name).set(replica.restarts)
        self._holds.set(open_holds)
        self._journal.set(journal_bytes)
        return generate_latest(self.registry)
