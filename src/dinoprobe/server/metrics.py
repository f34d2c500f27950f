"""What the service counts, in Prometheus' words. Each app has a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from dinoprobe.prediction import Prediction

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 3, 4, 8, 16, 32, 64, 128)


@final
class Metrics:
    """Times are in seconds, of one image each but for `request`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decode = self._seconds("decode", "From bytes to what the encoder takes")
        self.queue = self._seconds("queue", "From decoded to taken into a batch")
        self.encode = self._seconds("encode", "A batch through encoder and head, of each image")
        self.request = self._seconds("request", "From the head of a request to its answer")
        self.batch = Histogram(
            "dinoprobe_batch_images", "Images in a batch", registry=self.registry, buckets=_IMAGES
        )
        self.pending = Gauge(
            "dinoprobe_queue_depth", "Images admitted and not answered", registry=self.registry
        )
        self.buffered = Gauge(
            "dinoprobe_buffered_bytes", "Bodies that are held now", registry=self.registry
        )
        self.stuck = Gauge(
            "dinoprobe_stuck_decoders", "Threads that hang on an image", registry=self.registry
        )
        self.lost = self._counter("lost_decoders", "Threads that were given up")
        self.responses = self._counter("responses", "Requests by path and status", "path", "status")
        self.predictions = self._counter("predictions", "Answers by class", "label")
        self.flags = self._counter("flags", "Answers that abstained, or images unlike", "flag")
        self.failures = self._counter("failures", "Requests and images by reason", "reason")

    def _seconds(self, name: str, text: str) -> Histogram:
        full = f"dinoprobe_{name}_seconds"
        return Histogram(full, text, registry=self.registry, buckets=_SECONDS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"dinoprobe_{name}", text, labels, registry=self.registry)

    def answered(self, prediction: Prediction) -> None:
        """Count one answer."""
        if prediction.label is not None:
            self.predictions.labels(prediction.label).inc()
        for flag in ("abstained", "novel"):
            if getattr(prediction, flag):
                self.flags.labels(flag).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
