"""The one thread that drives the pipeline, and how a mixed batch becomes uniform pipeline calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.sources import LoadedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("ray.serve")

T = TypeVar("T")


class Bucket(NamedTuple):
    """What the images of one pipeline call share.

    Prompts, negative prompts and seeds may differ within it.
    """

    size: int
    steps: int
    guidance: float


@dataclass(frozen=True, slots=True)
class Canvas:
    """One image out of a pipeline call, not yet encoded: `pixels` are (size, size, 3)."""

    pixels: NDArray[np.uint8]
    bucket: Bucket
    seconds: float
    batch: int
    filtered: bool


class Engine:
    """Owns a pipeline. Schedulers keep state per call, so two threads on one pipeline corrupt each other's
    images: here is only one.
    """

    def __init__(self, load: Callable[[], LoadedModel], cpu_threads: int, max_batch_size: int) -> None:
        """Load the model in the driving thread. Raises what `load` raises."""
        self.device_failure: str | None = None
        self.batch_limit = max_batch_size
        self._thread = ThreadPoolExecutor(1, "pipeline", initializer=set_threads, initargs=(cpu_threads,))
        self.model = self._thread.submit(load).result()
        self.warm_up_s = 0.0
        self.warm = False

    def warm_up(self, max_steps: int) -> None:
        """Paint one image at the native size, so that the first request pays for no lazy initialization."""
        started = time.perf_counter()
        probe = ImageRequest("warm-up", seed=0, steps=min(2, max_steps))
        outcome = self.submit([probe]).result()[0]
        if isinstance(outcome, PaintingFailed):
            raise outcome
        self.warm_up_s, self.warm = time.perf_counter() - started, True

    def bucket_of(self, request: ImageRequest) -> Bucket:
        """The request's bucket, with the model's defaults filled in."""
        return Bucket(
            request.size if request.size is not None else self.model.native_size,
            request.steps if request.steps is not None else self.model.default_steps,
            request.guidance if request.guidance is not None else self.model.default_guidance,
        )

    def submit(self, requests: Sequence[ImageRequest]) -> Future[list[Canvas | PaintingFailed]]:
        """Queue a mixed batch for the driving thread. The answers come in the order of the requests."""
        return self._thread.submit(self._paint_mixed, list(requests))

    def close(self) -> None:
        """Let the driving thread finish what it holds and end."""
        self._thread.shutdown()

    def _paint_mixed(self, requests: list[ImageRequest]) -> list[Canvas | PaintingFailed]:
        outcomes: dict[int, Canvas | PaintingFailed] = {}
        for bucket, members in group(requests, self.bucket_of).items():
            for part in chunks(members, self.batch_limit):
                painted = self._paint_or_explain(bucket, [requests[index] for index in part])
                outcomes.update(zip(part, painted, strict=True))
        return [outcomes[index] for index in range(len(requests))]

    def _paint_or_explain(
        self, bucket: Bucket, requests: list[ImageRequest]
    ) -> Sequence[Canvas | PaintingFailed]:
        """One uniform batch. A failure becomes a value, so that it stays within its bucket."""
        import torch

        try:
            return self._paint(bucket, requests)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(requests) == 1:
                return [
                    PaintingFailed(f"out of memory for one image at {bucket.size}x{bucket.size}: {error}")
                ]
            return self._halve(bucket, requests)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if "CUDA error" in str(error):
                self.device_failure = str(error).splitlines()[0]
            logger.exception("pipeline call failed: %s, %d images", bucket, len(requests))
            return [PaintingFailed(f"{type(error).__name__}: {error}") for _ in requests]

    def _halve(self, bucket: Bucket, requests: list[ImageRequest]) -> list[Canvas | PaintingFailed]:
        """After running out of memory: smaller calls, for this batch and all that follow."""
        self.batch_limit = (len(requests) + 1) // 2
        logger.warning(
            "out of memory painting %d images at %d: batches are now of %d",
            len(requests),
            bucket.size,
            self.batch_limit,
        )
        return [
            outcome
            for part in chunks(requests, self.batch_limit)
            for outcome in self._paint_or_explain(bucket, list(part))
        ]

    def _paint(self, bucket: Bucket, requests: list[ImageRequest]) -> list[Canvas]:
        """One pipeline call. Each image has its own CPU generator, so its noise depends on its seed alone and
        not on its neighbours.
        """
        import torch

        started = time.perf_counter()
        with torch.inference_mode():
            output = self.model.pipeline(
                prompt=[request.prompt for request in requests],
                negative_prompt=[request.negative_prompt for request in requests],
                generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
                height=bucket.size,
                width=bucket.size,
                num_inference_steps=bucket.steps,
                guidance_scale=bucket.guidance,
                output_type="np",
            )
        seconds = time.perf_counter() - started
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            Canvas(to_pixels(image), bucket, seconds, len(requests), bool(flag))
            for image, flag in zip(output.images, flags, strict=True)
        ]


def to_pixels(image: Any) -> NDArray[np.uint8]:
    """Floats in 0..1 to bytes.

    Raises ValueError where the pipeline overflowed: that would be a black image.
    """
    import numpy as np

    if not np.isfinite(image).all():
        raise ValueError("the pipeline produced NaN; run it with dtype float32 or bfloat16")
    pixels: NDArray[np.uint8] = (image * 255.0).round().astype(np.uint8)
    return pixels


def set_threads(cpu_threads: int) -> None:
    """torch's thread count for the calling thread (it is per thread with OpenMP); 0 means all cores."""
    import os

    import torch

    torch.set_num_threads(cpu_threads or os.cpu_count() or 1)


def group(requests: Sequence[ImageRequest], key: Callable[[ImageRequest], Bucket]) -> dict[Bucket, list[int]]:
    """Indices of the requests per bucket, buckets in order of first appearance."""
    buckets: dict[Bucket, list[int]] = {}
    for index, request in enumerate(requests):
        buckets.setdefault(key(request), []).append(index)
    return buckets


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive slices of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]
