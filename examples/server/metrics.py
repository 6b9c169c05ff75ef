"""What the server tells Prometheus, and its own page, of itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from anytimeify.runtime import Adaptive

__all__ = ["Metrics"]

_BUCKETS = (0.02, 0.05, *(share / 10 for share in range(1, 11)), 1.25, 1.5, 2.0, 5.0)  # of the limit


class Metrics:
    """Counters of one server. The buckets of latencies are shares of the limit, so that who was answered in time is
    counted exactly."""

    def __init__(self, adaptive: Adaptive) -> None:
        self.registry = CollectorRegistry()
        limit = adaptive.slo_ms / 1e3
        self.responses = Counter("anytime_responses", "Responses by status", ["status"], registry=self.registry)
        self.answers = Counter("anytime_answers", "Answers by level", ["level", "name"], registry=self.registry)
        self.latency = Histogram(
            "anytime_latency_seconds",
            "From the head of a request until its answer",
            registry=self.registry,
            buckets=[share * limit for share in _BUCKETS],
        )
        self.in_flight = Gauge("anytime_in_flight", "Requests that are being answered", registry=self.registry)
        Gauge("anytime_slo_seconds", "The limit for answers", registry=self.registry).set(limit)
        for level in adaptive.runner.levels:
            self.answers.labels(level.index, level.name)
        self.registry.register(_Levels(adaptive))

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)


class _Levels(Collector):
    """Latencies as the runner has measured them, when they are asked for."""

    def __init__(self, adaptive: Adaptive) -> None:
        self.adaptive = adaptive

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["level", "name", "batch", "quantile"]
        times = GaugeMetricFamily("anytime_level_seconds", "Measured run time of a level", labels=labels)
        macs = GaugeMetricFamily("anytime_level_macs", "Multiply-accumulates of one sample", labels=labels[:2])
        for level in self.adaptive.runner.levels:
            called = [str(level.index), level.name]
            macs.add_metric(called, level.macs)
            for batch, latency in level.latencies.items():
                times.add_metric([*called, str(batch), "0.5"], latency.median_ms / 1e3)
                times.add_metric([*called, str(batch), "0.99"], latency.p99_ms / 1e3)
        yield times
        yield macs
