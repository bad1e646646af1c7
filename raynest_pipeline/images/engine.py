"""The batch engine: prompts in, verified images and a manifest out, exact under any crash.

An image is settled in this order: fetched, verified, written atomically under its content key, recorded
in the manifest. Whatever instant the process dies at, the next run finds one of three things for each
prompt: a record whose file is there (reused), a finished file without a record (adopted), or neither
(made). So it makes exactly what is missing.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace

from raynest_pipeline.errors import BatchError, RemoteError, UnreachableError, Verdict
from raynest_pipeline.images.client import Client, Image
from raynest_pipeline.images.manifest import Manifest, Record, Status
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.offer import ImageRequest, Offer, request_for
from raynest_pipeline.images.outage import Outage, ends_batch, may_be_outage
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.quality import IncompleteImageError, WrongImageError, check_png
from raynest_pipeline.images.result import BatchResult, Failure, Progress, Tally
from raynest_pipeline.images.store import IMAGES, BatchFolder
from raynest_pipeline.images.threads import run_in_thread
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff, Clock, SystemClock

RETRY_BACKOFF = Backoff(first=0.5, factor=2.0, most=10.0, jitter=0.3)
MAX_RETRY_AFTER = 120.0
"""A server that asks for more is asked again after this many seconds."""
UNREACHABLE_SECONDS = 60.0
PROGRESS_SECONDS = 2.0
HOPELESS_IMAGES = 5
"""With this many images per connection failed in a row, none of them the prompt's fault, and not one
made, the endpoint is taken for broken."""

NO_APPLICATION = (404, 405)
"""No prompt changes these."""

OnProgress = Callable[[Progress], None]


def generate(
    prompts: Iterable[Prompt],
    target: HttpTarget,
    store: BatchFolder,
    settings: Batch,
    *,
    model: str = "",
    clock: Clock | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    backoff: Backoff = RETRY_BACKOFF,
    unreachable_after: float = UNREACHABLE_SECONDS,
    progress_every: float = PROGRESS_SECONDS,
) -> BatchResult:
    """Make the images of `prompts` that are not there yet.

    Failed images do not raise: they are in the result and the manifest, and are tried again by the next
    run. Give the result to `result.too_many_failed` to judge it.

    Args:
        prompts: With unique ids; read once, as the work goes.
        target: The endpoint.
        store: The batch's folder.
        settings: Concurrency, timeout, attempts, and the size, steps and guidance of prompts without.
        model: Name of the model, for an endpoint that does not tell (the stock application).
        on_progress: Called in this thread, every `progress_every` seconds and at the end.
        should_stop: Called in this thread five times a second; True ends the batch early.
        backoff: Pauses between attempts at one image.
        unreachable_after: Seconds without a sign of the endpoint after which the batch ends.

    Raises:
        UnreachableError: The endpoint is gone, or makes no image at all.
        AccessError: It does not accept the credentials.
        NotReadyError: It has no /imagine.
        StorageError: The disk is full, or a folder cannot be written.
        RefusedError: Another process is making this batch.
        BatchError: The model changed during the batch.
        BaseException: An interruption of this thread; the batch has been left resumable.
    """
    clock = clock or SystemClock()
    with store.exclusive(), Manifest(store.manifest_path) as manifest:
        run = _Run(
            prompts=iter(prompts),
            total=len(prompts) if isinstance(prompts, Sized) else None,
            target=target,
            store=store,
            manifest=manifest,
            settings=settings,
            model=model,
            clock=clock,
            backoff=backoff,
            unreachable_after=unreachable_after,
        )
        reported = clock.monotonic()

        def on_slice() -> bool:
            nonlocal reported
            if on_progress is not None and clock.monotonic() - reported >= progress_every:
                reported = clock.monotonic()
                on_progress(run.progress())
            return should_stop is not None and should_stop()

        stopped = False
        try:
            run_in_thread(run.work, on_slice=on_slice)
        except concurrent.futures.CancelledError:
            stopped = True
        finally:
            # A look for missing images may still be under way in a helper thread; it ends at this sign.
            run.ended.set()
        if on_progress is not None:
            on_progress(run.progress())
        return run.result(stopped=stopped)


@dataclass(frozen=True)
class _Job:
    """An image to make."""

    prompt: Prompt
    request: ImageRequest
    file: str


class _Run:
    """One run of a batch. Its workers share an event loop; disk work goes to helper threads."""

    def __init__(
        self,
        *,
        prompts: Iterator[Prompt],
        total: int | None,
        target: HttpTarget,
        store: BatchFolder,
        manifest: Manifest,
        settings: Batch,
        model: str,
        clock: Clock,
        backoff: Backoff,
        unreachable_after: float,
    ) -> None:
        self._prompts = prompts
        self._prompts_lock = threading.Lock()
        self._total = total
        self._target = target
        self._store = store
        self._manifest = manifest
        self._settings = settings
        self._model = model
        self._clock = clock
        self._backoff = backoff
        self._unreachable_after = unreachable_after
        self._started = clock.monotonic()
        self._offer = Offer(model=model)
        self._model_told = False
        self._outage: Outage | None = None
        self._tally = Tally()
        self.ended = threading.Event()

    def progress(self) -> Progress:
        """Where the run is."""
        tally = self._tally
        return Progress(
            made=tally.made,
            reused=tally.reused,
            failed=tally.failed,
            total=self._total,
            seconds=self._clock.monotonic() - self._started,
            outage=self._outage.cause if self._outage else "",
        )

    def result(self, *, stopped: bool) -> BatchResult:
        """What it came to."""
        tally = self._tally
        return BatchResult(
            made=tally.made,
            reused=tally.reused,
            failed=tally.failed,
            seconds=self._clock.monotonic() - self._started,
            p50_latency_ms=tally.percentile(0.50),
            p95_latency_ms=tally.percentile(0.95),
            failures=tuple(tally.failures),
            ignored=tuple(sorted(tally.ignored)),
            model=self._offer.model,
            revision=self._offer.revision,
            stopped=stopped,
        )

    async def work(self) -> None:
        """Run the workers until the prompts are used up or one of them raises."""
        count = self._settings.concurrency
        async with Client(self._target, connections=count, timeout=self._settings.timeout_seconds) as client:
            outage = Outage(
                client,
                self._target.base_url,
                clock=self._clock,
                limit=self._unreachable_after,
                backoff=self._backoff,
            )
            self._outage = outage
            offer = await self._describe(client, outage)
            outage.expect(documented=offer.documented)
            self._model_told = bool(offer.model)
            self._offer = offer if offer.model else replace(offer, model=self._model)
            workers = [asyncio.create_task(self._worker(client, outage)) for _ in range(count)]
            try:
                # The first error ends the batch; as itself, not in an exception group.
                await asyncio.gather(*workers)
            finally:
                self.ended.set()
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _describe(self, client: Client, outage: Outage) -> Offer:
        outage.expect(documented=False)
        while True:
            try:
                return await client.describe()
            except RemoteError as error:
                if (end := ends_batch(error, self._target.base_url)) is not None:
                    raise end from None
                await outage.endured(error)

    async def _worker(self, client: Client, outage: Outage) -> None:
        while (job := await asyncio.to_thread(self._next_missing)) is not None:
            await self._make(job, client, outage)

    def _next_missing(self) -> _Job | None:
        """The next prompt whose image is not there; counts those that are. Runs in a helper thread."""
        while not self.ended.is_set():
            with self._prompts_lock:
                prompt = next(self._prompts, None)
            if prompt is None:
                return None
            request = request_for(prompt, self._settings, self._offer)
            job = _Job(prompt, request, f"{IMAGES}/{image_name(prompt.id, request.key)}")
            if not self._is_there(job):
                return job
            self._tally.add_reused(request.ignored)
        return None

    def _is_there(self, job: _Job) -> bool:
        record = self._manifest.latest(job.prompt.id)
        recorded = record is not None and record.key == job.request.key and record.file == job.file
        if recorded and record is not None and record.size_bytes is not None and record.sha256 is not None:
            return self._store.holds(job.file, record.size_bytes, record.sha256)
        data = self._store.read(job.file)
        if data is None:
            return False
        try:
            png = check_png(data, job.request.size)
        except (IncompleteImageError, WrongImageError):
            return False
        found = Image.of(data, png)
        self._manifest.append(self._record(job, "adopted", image=found), to_go=self._to_go())
        return True

    async def _make(self, job: _Job, client: Client, outage: Outage) -> None:
        attempt = 0
        while True:
            attempt += 1
            started = self._clock.monotonic()
            try:
                image = await client.image(job.request)
            except RemoteError as error:
                if (end := ends_batch(error, self._target.base_url)) is not None:
                    raise end from None
                if may_be_outage(error) and await outage.endured(error):
                    attempt -= 1
                    continue
                if error.verdict is Verdict.PERMANENT or attempt >= self._settings.attempts:
                    await asyncio.to_thread(self._settle_failed, job, error, attempt)
                    return
                pause = max(self._backoff.pause(attempt - 1), min(error.retry_after or 0.0, MAX_RETRY_AFTER))
                await asyncio.sleep(pause)
            else:
                latency = (self._clock.monotonic() - started) * 1000
                await asyncio.to_thread(self._settle_made, job, image, attempt, latency)
                return

    def _settle_made(self, job: _Job, image: Image, attempts: int, latency_ms: float) -> None:
        """Store and record, in one go: a cancelled worker still finishes this."""
        told, expected = (image.model, image.revision), (self._offer.model, self._offer.revision)
        if self._model_told and image.model and told != expected:
            raise BatchError(
                f"The endpoint's model changed during the batch, from {self._offer.model!r} "
                f"{self._offer.revision} to {image.model!r} {image.revision}.",
                fix="Run the batch again: it then makes all images with the new model.",
            )
        self._store.write(job.file, image.data, to_go=self._to_go())
        record = self._record(job, "made", image=image, attempts=attempts, latency_ms=round(latency_ms, 1))
        self._manifest.append(record, to_go=self._to_go())
        self._tally.add_made(latency_ms, job.request.ignored)

    def _settle_failed(self, job: _Job, error: RemoteError, attempts: int) -> None:
        reason = f"{error.what} {error.why}".strip()
        self._manifest.append(self._record(job, "failed", attempts=attempts, error=reason))
        fruitless = error.verdict is not Verdict.PERMANENT or error.status in NO_APPLICATION
        self._tally.add_failed(Failure(job.prompt.id, reason, attempts), fruitless=fruitless)
        in_a_row = self._tally.fruitless
        if self._tally.made == 0 and in_a_row >= HOPELESS_IMAGES * self._settings.concurrency:
            raise UnreachableError(
                f"The endpoint {self._target.base_url} answers, but makes no image: "
                f"{in_a_row} in a row failed.",
                why=reason,
                fix="See `raynest status`; then run again: it makes the missing images, these included.",
            )

    def _to_go(self) -> int:
        return max(1, self._total - self.progress().done) if self._total is not None else 1

    def _record(
        self,
        job: _Job,
        status: Status,
        *,
        image: Image | None = None,
        attempts: int = 0,
        latency_ms: float | None = None,
        error: str | None = None,
    ) -> Record:
        request = job.request
        return Record(
            id=job.prompt.id,
            batch=self._store.batch_id,
            status=status,
            key=request.key,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed if image is None or image.seed is None else image.seed,
            size=request.size,
            steps=request.steps,
            guidance=request.guidance,
            model=self._offer.model,
            revision=self._offer.revision,
            made_at=self._clock.now().isoformat(timespec="milliseconds"),
            attempts=attempts,
            latency_ms=latency_ms,
            file=None if image is None else job.file,
            sha256=None if image is None else image.sha256,
            size_bytes=None if image is None else len(image.data),
            width=None if image is None else image.width,
            height=None if image is None else image.height,
            error=error,
            ignored=request.ignored,
            extra=job.prompt.extra,
        )
