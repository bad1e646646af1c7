"""Prometheus metrics through Ray's metric API, scraped from each node's metrics port.

Ray puts `ray_` before each name, `_total` behind a counter's, and adds the labels deployment, replica and
application. Only inside a Serve replica can these objects be made.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve import metrics

from raynest_pipeline.serving.contract import PaintingFailed
from raynest_pipeline.serving.engine import Canvas

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500]
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class RayFaceMeter:
    """What the HTTP face counts."""

    def __init__(self) -> None:
        self._images = metrics.Counter(
            "raynest_images", description="Images asked for, by what became of them.", tag_keys=("outcome",)
        )
        self._requests = metrics.Histogram(
            "raynest_request_seconds",
            description="Seconds from a request's arrival to the end of its answer.",
            boundaries=SECONDS,
            tag_keys=("path", "status"),
        )

    def image(self, outcome: str) -> None:
        """One image more with this outcome."""
        self._images.inc(tags={"outcome": outcome})

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request to `path`, answered with `status` after so long."""
        self._requests.observe(seconds, tags={"path": path, "status": str(status)})


class RayPainterMeter:
    """What a model replica counts."""

    def __init__(self) -> None:
        self._seconds = metrics.Histogram(
            "raynest_pipeline_seconds", description="Seconds per pipeline call.", boundaries=SECONDS
        )
        self._batch = metrics.Histogram(
            "raynest_batch_size", description="Images per pipeline call.", boundaries=BATCH_SIZES
        )
        self._depth = metrics.Gauge(
            "raynest_queue_depth", description="Images that wait for the device, without those on it."
        )
        self._waits = metrics.Histogram(
            "raynest_queue_wait_seconds",
            description="Seconds that an image waited before the device took it.",
            boundaries=SECONDS,
        )

    def depth(self, images: int) -> None:
        """So many images wait now."""
        self._depth.set(images)

    def waited(self, seconds: float) -> None:
        """An image left the queue for the device after so long."""
        self._waits.observe(seconds)

    def painted(self, outcomes: Sequence[Canvas | PaintingFailed]) -> None:
        """One batch came back; it took several calls where memory ran out."""
        for seconds, images in dict.fromkeys(
            (outcome.seconds, outcome.batch) for outcome in outcomes if isinstance(outcome, Canvas)
        ):
            self._seconds.observe(seconds)
            self._batch.observe(images)
