"""The model deployment: collects requests into batches, paints them on one thread, encodes them on others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray import serve

from raynest_pipeline.serving.batcher import Batcher
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
    in_full,
)
from raynest_pipeline.serving.encode import encode
from raynest_pipeline.serving.engine import Canvas, Engine
from raynest_pipeline.serving.meters import RayPainterMeter
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import LoadedModel, load_model

STUCK_S = 60.0
"""A batch in work for so much more than twice the deadline has no caller left: the device hangs."""

Answer = Painting | PainterBusy | PainterUnavailable | PaintingFailed | TimeoutError
"""What a replica answers; HandleBackend raises the errors among them."""


class Painter:
    """One replica: one pipeline on one device. Its constructor returns when the model is loaded and warm."""

    def __init__(self, options: ServingOptions, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ModelUnavailable, whose last line names the model and the alternatives."""
        self._engine = Engine(lambda: load_model(options), options.cpu_threads, options.max_batch_size)
        if options.warm_up:
            self._engine.warm_up(options.max_steps)
        self._capacity = options.replica_capacity
        self._in_work = 0
        self._clock = clock
        self._batch_began: float | None = None
        self._longest_s = 2 * options.deadline_s + STUCK_S
        self._replica = serve.get_replica_context().replica_tag
        self._images_painted = 0
        self._meter = RayPainterMeter()
        self._batcher = Batcher(
            self._paint_requests,
            self._engine.bucket_of,
            lambda bucket: self._engine.batch_limit(bucket.size),
            self._meter,
            wait_s=options.batch_wait_s,
            deadline_s=options.deadline_s,
        )

    async def _paint_requests(self, requests: list[ImageRequest]) -> list[Canvas | PaintingFailed]:
        self._images_painted += len(requests)
        self._batch_began = self._clock()
        try:
            outcomes = await asyncio.wrap_future(self._engine.submit(requests))
        finally:
            self._batch_began = None
        self._meter.painted(outcomes)
        return outcomes

    @property
    def _failure(self) -> str | None:
        """Why the device paints no more: what it said, or that it says nothing."""
        if self._engine.device_failure or self._batch_began is None:
            return self._engine.device_failure
        busy_s = self._clock() - self._batch_began
        return f"a batch has been in work for {busy_s:.0f} s" if busy_s > self._longest_s else None

    async def paint(self, request: ImageRequest) -> Answer:
        """Paint one image, in whatever batch comes together.

        Refusals are returned, not raised: Serve would log a traceback for each.
        """
        if failure := self._failure:
            return PainterUnavailable(f"the device failed: {failure}")
        if self._in_work >= self._capacity:
            return PainterBusy(f"the queue is full: {self._in_work} images are in work or waiting")
        self._in_work += 1
        try:
            outcome = await self._batcher.paint(request)
            if isinstance(outcome, Canvas):
                return await asyncio.to_thread(finish, request, outcome, self._engine.model, self._replica)
        except TimeoutError as error:
            return error
        finally:
            self._in_work -= 1
        if failure := self._failure:
            # The request is good: another replica, or the one that replaces this, will paint it.
            return PainterUnavailable(f"the device failed: {failure}")
        return outcome

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
            max_batch_size=self._engine.max_batch_size,
            batch_limits=self._engine.batch_limits,
            replica=self._replica,
            waiting=self._batcher.waiting,
            images_painted=self._images_painted,
            speed=self._engine.speed_facts(),
            device_failure=self._failure,
        )

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: a CUDA context that has failed once never recovers."""
        if failure := self._failure:
            raise RuntimeError(f"the device failed: {failure}")


def finish(request: ImageRequest, canvas: Canvas, model: LoadedModel, replica: str = "") -> Painting:
    """Encode a canvas with the values that made it, so that the file alone tells how to make it again."""
    bucket, made_with = canvas.bucket, model.speed.recorded()
    metadata = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": str(request.seed),
        "steps": str(bucket.steps),
        "guidance": in_full(bucket.guidance),
        "size": f"{bucket.size}x{bucket.size}",
        "model": model.name,
        "revision": model.revision,
        **made_with,
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
        made_with=made_with,
        replica=replica,
    )


def painter_deployment(options: ServingOptions) -> Any:
    """The Serve deployment of Painter, sized by `options`."""
    return serve.deployment(
        Painter,
        name="Painter",
        # Above the replica's own bound: the router's retries on a full replica starve the batches, and
        # /health would wait behind the queue.
        max_ongoing_requests=options.replica_capacity + 16,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # Serve replaces a replica after three failed checks; one whose device has failed refuses at once, and
        # with its short queue it draws the requests of the others until then.
        health_check_period_s=3,
        graceful_shutdown_timeout_s=20,
        **scale(options),
    )


def scale(options: ServingOptions) -> dict[str, Any]:
    """How many replicas: a fixed number, or Serve's choice between two.

    A replica is busy with a batch on the device; what waits beside it on average asks for another replica.
    Waiting for two full batches would be too late: clients that adapt stop there, since more requests make a
    replica that is busy no faster.
    """
    if options.max_replicas is None:
        return {"num_replicas": options.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.fewest_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.max_batch_size,
        }
    }
