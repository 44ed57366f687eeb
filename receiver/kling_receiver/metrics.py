"""Counters and gauges for Prometheus; one registry per receiver, no labels that an outsider can choose."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What the receiver counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.events = self._counter("events", "What happened, by the type of the event", "type")
        self.callbacks = self._counter("callbacks", "Callbacks by what became of them", "outcome")
        self.questions = self._counter("questions", "Questions asked to Kling", "outcome")
        self.downloads = self._counter("downloads", "Attempts to fetch a result file", "outcome")
        self.deliveries = self._counter("deliveries", "Attempts to deliver an event to a hook", "outcome")
        self.commit_seconds = Histogram(
            "kling_callback_seconds",
            "From a callback's last byte to its commit",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=self._registry,
        )

    def _counter(self, name: str, meaning: str, label: str) -> Counter:
        return Counter(f"kling_{name}", meaning, [label], registry=self._registry)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)
