"""The one thread that drives the pipeline, and how a mixed batch becomes uniform pipeline calls."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.cores import set_threads, spin_briefly, thread_counts, usable_cores
from raynest_pipeline.serving.sources import LoadedModel
from raynest_pipeline.serving.speed import Stance, shapes_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("ray.serve")


TRIES = 3
"""Single images painted with each thread count when warming up; the quickest one counts."""
PLENTY_S = 1.0
"""A single image that takes longer, at two steps, is work enough for all threads, and too long to try."""


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


@dataclass(frozen=True, slots=True)
class Work:
    """What the pipeline has done since it was warm."""

    calls: int = 0
    images: int = 0
    padding: int = 0
    """Images that only filled a batch up to an allowed size, and were thrown away."""
    busy_s: float = 0.0
    """Seconds within pipeline calls; its growth over the time passed is how full the device is kept."""


class Engine:
    """Owns a pipeline. Schedulers keep state per call, so two threads on one pipeline corrupt each other's
    images: here is only one.
    """

    def __init__(self, load: Callable[[], LoadedModel], cpu_threads: int, max_batch_size: int) -> None:
        """Load the model in the driving thread. Raises what `load` raises."""
        self.device_failure: str | None = None
        self.cpu_threads = cpu_threads or usable_cores()
        self.cpu_threads_alone = self.cpu_threads
        """torch threads for a call of a single image of at most the native size: as many as were fastest when
        warming up.
        """
        spin_briefly()
        self.max_batch_size = max_batch_size
        self._limits: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1, "pipeline", set_threads, (self.cpu_threads,))
        self.model = self._thread.submit(load).result()
        self.warm_up_s = 0.0
        self.warm = False
        self.work = Work()
        self._stance: Stance = "default"

    def warm_up(self, max_steps: int) -> None:
        """Paint every allowed shape, or one image at the native size, so that the first request pays for no
        compilation and no lazy initialization.

        Raises PaintingFailed, also when a compiled shape would be compiled again at its second use.
        """
        started = time.perf_counter()
        shapes = shapes_of(self.model.speed) or [(self.model.native_size, 1)]
        stances: tuple[Stance, ...] = ("default", "fail_on_recompile")
        for stance in stances[: 1 if self.model.speed.compile == "off" else 2]:
            self._stance = stance
            for size, batch in shapes:
                self._probe(size, batch, min(2, max_steps))
        self._stance = "eager_on_recompile"
        if self.model.device == "cpu":
            self.cpu_threads_alone = self._fastest_alone(min(2, max_steps))
        self.work = Work()
        self.warm_up_s, self.warm = time.perf_counter() - started, True

    def bucket_of(self, request: ImageRequest) -> Bucket:
        """The request's bucket, with the model's defaults filled in."""
        return Bucket(
            request.size if request.size is not None else self.model.native_size,
            request.steps if request.steps is not None else self.model.default_steps,
            request.guidance if request.guidance is not None else self.model.default_guidance,
        )

    def batch_limit(self, size: int) -> int:
        """The most images of one call at this edge in pixels: fewer than the options allow once memory has
        run out at it.
        """
        return self._limits.get(size, self.max_batch_size)

    @property
    def batch_limits(self) -> dict[str, int]:
        """Edge in pixels -> batch_limit, where memory has run out; the keys are text, as JSON's are."""
        return {str(size): limit for size, limit in sorted(self._limits.items())}

    def submit(self, requests: Sequence[ImageRequest]) -> Future[list[Canvas | PaintingFailed]]:
        """Queue a mixed batch for the driving thread. The answers come in the order of the requests."""
        return self._thread.submit(self._paint_mixed, list(requests))

    def speed_facts(self) -> dict[str, Any]:
        """What is on, and what came of it: the choices, and the work done since the engine is warm."""
        work = replace(self.work, busy_s=round(self.work.busy_s, 3))
        threads = {"cpu_threads": self.cpu_threads, "cpu_threads_alone": self.cpu_threads_alone}
        return {**asdict(self.model.speed), **threads, **asdict(work)}

    def close(self) -> None:
        """Let the driving thread finish what it holds and end."""
        self._thread.shutdown()

    def _probe(self, size: int, batch: int, steps: int) -> None:
        """Paint one shape. One that memory has no room for is left out: load will halve it, too."""
        if batch > self.batch_limit(size):
            return
        requests = [ImageRequest("warm-up", seed=seed, size=size, steps=steps) for seed in range(batch)]
        for outcome in self.submit(requests).result():
            if isinstance(outcome, PaintingFailed):
                raise outcome

    def _fastest_alone(self, steps: int) -> int:
        """The thread count that paints one image soonest: a small image is too little work for many threads,
        which then wait for each other at every operation.
        """
        counts = thread_counts(self.cpu_threads)
        speed = self.model.speed
        # What torch.compile has compiled is for one thread count.
        fixed = speed.compile != "off" or speed.part(self.model.native_size, 1, 1) != (1, 1)
        if len(counts) == 1 or fixed:
            return self.cpu_threads
        soonest: dict[int, float] = {}
        for threads in reversed(counts):
            self.cpu_threads_alone = threads
            for _ in range(TRIES):
                before = self.work.busy_s
                self._probe(self.model.native_size, 1, steps)
                took = self.work.busy_s - before
                soonest[threads] = min(took, soonest.get(threads, took))
                if took > PLENTY_S:
                    return min(soonest, key=soonest.__getitem__)
        return min(soonest, key=soonest.__getitem__)

    def _paint_mixed(self, requests: list[ImageRequest]) -> list[Canvas | PaintingFailed]:
        outcomes: dict[int, Canvas | PaintingFailed] = {}
        for bucket, members in group(requests, self.bucket_of).items():
            painted = self._paint_bucket(bucket, [requests[index] for index in members])
            outcomes.update(zip(members, painted, strict=True))
        return [outcomes[index] for index in range(len(requests))]

    def _paint_bucket(
        self, bucket: Bucket, requests: Sequence[ImageRequest]
    ) -> list[Canvas | PaintingFailed]:
        """As many calls as the limit and the allowed shapes ask for; both may change in between."""
        outcomes: list[Canvas | PaintingFailed] = []
        while len(outcomes) < len(requests):
            left = requests[len(outcomes) :]
            limit = self.batch_limit(bucket.size)
            taken, padded = self.model.speed.part(bucket.size, len(left), limit)
            outcomes += self._paint_or_explain(bucket, left[:taken], padded)
        return outcomes

    def _paint_or_explain(
        self, bucket: Bucket, requests: Sequence[ImageRequest], padded: int
    ) -> Sequence[Canvas | PaintingFailed]:
        """One uniform batch, none of it when it did not fit. A failure becomes a value, so that it stays
        within its bucket.
        """
        try:
            return self._paint(bucket, requests, padded)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            # First: CUDA itself and cuBLAS say "CUDA error" for it as well, and the device goes on.
            if ran_out_of_memory(error):
                return self._halve(bucket, padded, error)
            if "CUDA error" in str(error):
                self.device_failure = str(error).splitlines()[0]
            logger.exception("pipeline call failed: %s, %d images", bucket, len(requests))
            return [PaintingFailed(f"{type(error).__name__}: {error}") for _ in requests]

    def _halve(self, bucket: Bucket, padded: int, error: Exception) -> list[Canvas | PaintingFailed]:
        """After running out of memory: smaller calls of this size, for this batch and all that follow. Other
        sizes keep their limits.
        """
        import torch

        torch.cuda.empty_cache()
        size = bucket.size
        if padded == 1:
            return [PaintingFailed(f"out of memory for one image at {size}x{size}: {error}")]
        limit = (padded + 1) // 2
        # A new one: another thread reads it for /health and for the next batch.
        self._limits = {**self._limits, size: limit}
        logger.warning(
            "out of memory painting %d images at %d: batches of this size are now of %d", padded, size, limit
        )
        return []

    def _paint(
        self, bucket: Bucket, requests: Sequence[ImageRequest], padded: int
    ) -> Sequence[Canvas | PaintingFailed]:
        """One pipeline call. Each image has its own CPU generator, so its noise depends on its seed alone and
        not on its neighbours; what fills the batch up repeats its last image.
        """
        import torch

        if self.model.device == "cpu":
            alone = padded == 1 and bucket.size <= self.model.native_size
            set_threads(self.cpu_threads_alone if alone else self.cpu_threads)
        started = time.perf_counter()
        real = len(requests)
        filled = [*requests, *[requests[-1]] * (padded - real)]
        with torch.inference_mode(), self.model.speed.stance(self._stance):
            output = self.model.pipeline(
                prompt=[request.prompt for request in filled],
                negative_prompt=[request.negative_prompt for request in filled],
                generator=[torch.Generator("cpu").manual_seed(request.seed) for request in filled],
                height=bucket.size,
                width=bucket.size,
                num_inference_steps=bucket.steps,
                guidance_scale=bucket.guidance,
                output_type="pt",
            )
            finite, pixels = develop(output.images[:real])
        seconds = time.perf_counter() - started
        done = self.work
        self.work = replace(
            done,
            calls=done.calls + 1,
            images=done.images + real,
            padding=done.padding + padded - real,
            busy_s=done.busy_s + seconds,
        )
        flags = list(getattr(output, "nsfw_content_detected", None) or [False] * padded)[:real]
        return [
            Canvas(image, bucket, seconds, real, bool(flag)) if whole else PaintingFailed(NOT_A_NUMBER)
            for image, whole, flag in zip(pixels, finite, flags, strict=True)
        ]


_NO_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory", re.IGNORECASE)
"""Of torch.OutOfMemoryError and CUDA itself; of cuBLAS and cuDNN; of torch's allocator on the CPU."""


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a failed call may well succeed with fewer images."""
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


NOT_A_NUMBER = "the pipeline produced NaN; run it with dtype float32 or bfloat16"


def develop(images: Any) -> tuple[list[bool], NDArray[np.uint8]]:
    """Floats in 0..1, (n, 3, size, size), to which of them are images at all, and bytes (n, size, size, 3).

    Done on the device, which then sends a quarter of the bytes; what has overflowed would be a black image.
    """
    import torch

    finite = torch.isfinite(images).flatten(1).all(1)
    pixels = (images.float().nan_to_num() * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return finite.tolist(), pixels.cpu().numpy()


def group(requests: Sequence[ImageRequest], key: Callable[[ImageRequest], Bucket]) -> dict[Bucket, list[int]]:
    """Indices of the requests per bucket, buckets in order of first appearance."""
    buckets: dict[Bucket, list[int]] = {}
    for index, request in enumerate(requests):
        buckets.setdefault(key(request), []).append(index)
    return buckets
