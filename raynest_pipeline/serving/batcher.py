"""Requests wait here until the pipeline is free, and only then become a batch.

Ray Serve's own `@serve.batch` closes the next batch while the pipeline still works on the last one, and knows
no buckets: under load it hands over half-filled and mixed batches. Here a batch is closed at the last moment,
and all of it goes into one pipeline call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.engine import Bucket, Canvas

Outcome = Canvas | PaintingFailed

LONGEST_WAIT = 5
"""A batch that goes on growing waits at most so many times `wait_s`."""


class QueueMeter(Protocol):
    """Who is told of the queue."""

    def depth(self, images: int) -> None:
        """So many images wait now."""
        ...

    def waited(self, seconds: float) -> None:
        """An image left the queue for the device after so long."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """A request, what it may share a call with, and where its outcome goes."""

    request: ImageRequest
    bucket: Bucket
    outcome: asyncio.Future[Outcome]
    arrived: float


class Batcher:
    """First come, first served: the oldest request's bucket is next, its mates may overtake others."""

    def __init__(
        self,
        run: Callable[[list[ImageRequest]], Awaitable[Sequence[Outcome]]],
        bucket_of: Callable[[ImageRequest], Bucket],
        limit: Callable[[Bucket], int],
        meter: QueueMeter,
        *,
        wait_s: float,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        run: Paints one batch; it is called again only when it has returned.
        bucket_of: What may share a call.
        limit: The most images of a batch of this bucket, asked for each.
        meter: Told of the queue.
        wait_s: A batch that is not full starts when nobody has come for so long.
        deadline_s: What has waited longer is not painted any more.
        clock: Monotonic seconds.
        """
        self._run = run
        self._bucket_of = bucket_of
        self._limit = limit
        self._meter = meter
        self._wait_s = wait_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._jobs: list[Job] = []
        self._stirred = 0.0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Images in the queue, without those on the device."""
        return len(self._jobs)

    async def paint(self, request: ImageRequest) -> Outcome:
        """Wait for a batch and its outcome. Cancelling it takes the request out of the queue.

        Raises TimeoutError when the deadline passed in the queue.
        """
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        job = Job(request, self._bucket_of(request), outcome, self._clock())
        self._jobs.append(job)
        self._stir()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await outcome
        finally:
            if job in self._jobs:
                self._jobs.remove(job)
                self._stir()

    def _stir(self) -> None:
        self._stirred = self._clock()
        self._changed.set()
        self._meter.depth(len(self._jobs))

    async def _work(self) -> None:
        """Batch after batch, until nothing waits."""
        while batch := await self._take():
            (outcomes,) = await asyncio.gather(
                self._run([job.request for job in batch]), return_exceptions=True
            )
            # The callers come back when they have their images: the next batch waits for them, too.
            self._stirred = self._clock()
            if isinstance(outcomes, BaseException):
                for job in batch:
                    settle(job, outcomes)
            else:
                for job, outcome in zip(batch, outcomes, strict=True):
                    settle(job, outcome)

    async def _take(self) -> list[Job]:
        """The next batch: full, or as full as it has become when nobody comes any more."""
        since = self._clock()
        while True:
            self._drop_the_lost()
            if not self._jobs:
                return []
            bucket = self._jobs[0].bucket
            limit = self._limit(bucket)
            mates = [job for job in self._jobs if job.bucket == bucket][:limit]
            quiet = min(self._stirred + self._wait_s, since + LONGEST_WAIT * self._wait_s) - self._clock()
            if len(mates) == limit or quiet <= 0:
                break
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(quiet):
                    await self._changed.wait()
        self._jobs = [job for job in self._jobs if job not in mates]
        self._meter.depth(len(self._jobs))
        for job in mates:
            self._meter.waited(self._clock() - job.arrived)
        return mates

    def _drop_the_lost(self) -> None:
        """Whose deadline passed, and who was cancelled in this very turn of the loop and has not left yet."""
        oldest = self._clock() - self._deadline_s
        for job in self._jobs:
            if job.arrived < oldest:
                settle(job, TimeoutError("the deadline passed in the queue"))
        self._jobs = [job for job in self._jobs if not job.outcome.done()]


def settle(job: Job, outcome: Outcome | BaseException) -> None:
    """Give the caller, if it is still there, what became of its request. A PaintingFailed is a value."""
    if job.outcome.done():
        return
    if isinstance(outcome, BaseException) and not isinstance(outcome, PaintingFailed):
        job.outcome.set_exception(outcome)
    else:
        job.outcome.set_result(outcome)
