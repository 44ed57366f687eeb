"""Counters and a histogram for Prometheus: one registry per receiver, and no label that an outsider can choose."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one receiver, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.started_at = time.time()
        """Unix seconds."""
        self.events = self._counter("events", "Events, by type", "type")
        self.callbacks = self._counter("callbacks", "Callbacks, by outcome", "outcome")
        self.queries = self._counter("queries", "Queries to Kling, by outcome", "outcome")
        self.creates = self._counter("creates", "Creates sent by the receiver, by outcome", "outcome")
        self.downloads = self._counter("downloads", "Download attempts of result files, by outcome", "outcome")
        self.deliveries = self._counter("deliveries", "Delivery attempts to hooks, by outcome", "outcome")
        self.invalid_jobs = self._counter("invalid_jobs", "Jobs that this version cannot run, by kind", "kind")
        self.commit_seconds = Histogram(
            "kling_callback_seconds",
            "Seconds from the last byte of a callback to its commit",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=self._registry,
        )

    def _counter(self, name: str, documentation: str, label: str) -> Counter:
        return Counter(f"kling_{name}", documentation, [label], registry=self._registry)

    def callbacks_by_outcome(self) -> dict[str, int]:
        """How many callbacks this process has answered since `started_at`, by outcome: `accepted`, or why not."""
        samples = [sample for metric in self.callbacks.collect() for sample in metric.samples]
        return {
            sample.labels["outcome"]: int(sample.value) for sample in samples if sample.name == "kling_callbacks_total"
        }

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
