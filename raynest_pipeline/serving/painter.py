"""The model deployment: collects requests into batches, paints them on one thread, encodes them on others."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.serve import metrics

from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.encode import encode
from raynest_pipeline.serving.engine import Canvas, Engine
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import LoadedModel, load_model


class Painter:
    """One replica: one pipeline on one device. Its constructor returns when the model is loaded and warm."""

    def __init__(self, options: ServingOptions) -> None:
        """Raises ModelUnavailable, whose last line names the model and the alternatives."""
        self._engine = Engine(lambda: load_model(options), options.cpu_threads, options.max_batch_size)
        if options.warm_up:
            self._engine.warm_up(options.max_steps)
        self._capacity = options.replica_capacity
        self._in_work = 0
        # Serve fills a batch and drops from it the requests whose callers went away.
        self._paint_batch = serve.batch(
            max_batch_size=options.max_batch_size, batch_wait_timeout_s=options.batch_wait_s
        )(self._paint_requests)
        self._images = metrics.Counter("raynest_images", description="Images painted.", tag_keys=("outcome",))
        self._seconds = metrics.Histogram(
            "raynest_pipeline_seconds",
            description="Seconds per pipeline call.",
            boundaries=[0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100],
        )

    async def _paint_requests(self, requests: list[ImageRequest]) -> list[Canvas | PaintingFailed]:
        return await asyncio.wrap_future(self._engine.submit(requests))

    async def paint(self, request: ImageRequest) -> Painting | PainterBusy | PaintingFailed:
        """Paint one image, in whatever batch comes together.

        Refusals are returned, not raised: Serve would log a traceback for each.
        """
        if self._in_work >= self._capacity:
            self._images.inc(tags={"outcome": "refused"})
            return PainterBusy(f"the queue is full: {self._in_work} images are in work or waiting")
        self._in_work += 1
        try:
            outcome: Canvas | PaintingFailed = await self._paint_batch(request)
            if isinstance(outcome, PaintingFailed):
                self._images.inc(tags={"outcome": "failed"})
                return outcome
            painting = await asyncio.to_thread(finish, request, outcome, self._engine.model)
        finally:
            self._in_work -= 1
        self._images.inc(tags={"outcome": "painted"})
        self._seconds.observe(outcome.seconds)
        return painting

    async def facts(self) -> PainterFacts:
        """What this replica runs, for /health."""
        model = self._engine.model
        return PainterFacts(
            model=model.name,
            revision=model.revision,
            device=model.device,
            device_note=model.device_note,
            dtype=model.dtype,
            warm=self._engine.warm,
            warm_up_s=round(self._engine.warm_up_s, 3),
            load_s=round(model.load_s, 3),
            native_size=model.native_size,
            default_steps=model.default_steps,
            default_guidance=model.default_guidance,
            max_batch_size=self._engine.batch_limit,
        )

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: a CUDA context that has failed once never recovers."""
        if self._engine.device_failure:
            raise RuntimeError(f"the device failed: {self._engine.device_failure}")


def finish(request: ImageRequest, canvas: Canvas, model: LoadedModel) -> Painting:
    """Encode a canvas with the values that made it, so that the file alone tells how to make it again."""
    bucket = canvas.bucket
    metadata = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": str(request.seed),
        "steps": str(bucket.steps),
        "guidance": f"{bucket.guidance:g}",
        "size": f"{bucket.size}x{bucket.size}",
        "model": model.name,
        "revision": model.revision,
        "software": "raynest",
    }
    return Painting(
        data=encode(canvas.pixels, request.format, metadata),
        format=request.format,
        seed=request.seed,
        size=bucket.size,
        steps=bucket.steps,
        guidance=bucket.guidance,
        model=model.name,
        revision=model.revision,
        device=model.device,
        seconds=round(canvas.seconds, 4),
        batch=canvas.batch,
        filtered=canvas.filtered,
    )


def painter_deployment(options: ServingOptions) -> Any:
    """The Serve deployment of Painter, sized by `options`."""
    return serve.deployment(
        Painter,
        name="Painter",
        num_replicas=options.replicas,
        # Above the replica's own bound: the router's retries on a full replica starve the batches, and
        # /health
        # would wait behind the queue.
        max_ongoing_requests=options.replica_capacity + 16,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=20,
    )
