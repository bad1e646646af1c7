"""The batch engine: prompts in, verified images and a manifest out, exact under any crash.

An image is settled in this order: fetched, verified, written atomically under its content key, recorded
in the manifest. Whatever instant the process dies at, the next run finds one of three things for each
prompt: a record whose file is there (reused), a finished file without a record (adopted), or neither
(made). So it makes exactly what is missing.
"""

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, replace

from raynest_pipeline.errors import BatchError, RemoteError, UnreachableError, Verdict
from raynest_pipeline.images.batch_store import IMAGES, BatchStore
from raynest_pipeline.images.client import Client, Image, image_of
from raynest_pipeline.images.dispatch import Dispatcher
from raynest_pipeline.images.flight import Arrival, Job
from raynest_pipeline.images.manifest import Manifest, Record, Status
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.offer import Offer, request_for
from raynest_pipeline.images.outage import Outage, ends_batch
from raynest_pipeline.images.pace import Pace
from raynest_pipeline.images.present import Present
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.rate import RecentRate
from raynest_pipeline.images.result import BatchResult, Failure, HourlyPrice, Progress, Tally, cost_of
from raynest_pipeline.images.threads import run_in_thread
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff, Clock, SystemClock

RETRY_BACKOFF = Backoff(first=0.5, factor=2.0, most=10.0, jitter=0.3)
UNREACHABLE_SECONDS = 60.0
PROGRESS_SECONDS = 2.0
TAKE_SECONDS = 0.2
"""How long the search for missing images goes on before those found are sent for."""
START = 4
"""Images in flight at the start, at an endpoint that does not say how many it paints at a time."""
HOPELESS_IMAGES = 5
"""With so many times START images failed in a row, none of them the prompt's fault, and not one made, the
endpoint is taken for broken."""

NO_APPLICATION = (404, 405)
"""No prompt changes these."""

OnProgress = Callable[[Progress], None]


def generate(
    prompts: Iterable[Prompt],
    target: HttpTarget,
    store: BatchStore,
    settings: Batch,
    *,
    model: str = "",
    clock: Clock | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    backoff: Backoff = RETRY_BACKOFF,
    unreachable_after: float = UNREACHABLE_SECONDS,
    progress_every: float = PROGRESS_SECONDS,
    price: HourlyPrice | None = None,
    on_begin: Callable[[], None] | None = None,
    on_end: Callable[[Manifest], None] | None = None,
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
        progress_every: Seconds between two calls of `on_progress`.
        price: Of the cluster; None: no cost is told.
        on_begin: Called in this thread when the batch is held, before anything is asked for.
        on_end: Called in this thread when nothing is left to do, with the batch still held.

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
    with contextlib.ExitStack() as held:
        held.enter_context(store.exclusive())
        if on_begin is not None:
            on_begin()
        manifest = held.enter_context(store.open_manifest())
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
            price=price,
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
        if on_end is not None:
            on_end(manifest)
        return run.result(stopped=stopped)


class _Run:
    """One run of a batch: gives a dispatcher its jobs, and stores and records what comes (`flight.Work`)."""

    def __init__(
        self,
        *,
        prompts: Iterator[Prompt],
        total: int | None,
        target: HttpTarget,
        store: BatchStore,
        manifest: Manifest,
        settings: Batch,
        model: str,
        clock: Clock,
        backoff: Backoff,
        unreachable_after: float,
        price: HourlyPrice | None,
    ) -> None:
        self._prompts = prompts
        self._total = total
        self._target = target
        self._store = store
        self._manifest = manifest
        self._present = Present(store, manifest, verify=settings.verify)
        self._settings = settings
        self._model = model
        self._clock = clock
        self._backoff = backoff
        self._unreachable_after = unreachable_after
        self._price = price
        self._started = clock.monotonic()
        self._offer = Offer(model=model)
        self._model_told = False
        self._outage: Outage | None = None
        self._pace: Pace | None = None
        self._tally = Tally()
        self._recent = RecentRate()
        self._recent.update(self._started, 0)
        self.ended = threading.Event()

    def progress(self) -> Progress:
        """Where the run is. Called by one thread only."""
        tally, now = self._tally, self._clock.monotonic()
        return Progress(
            made=tally.made,
            reused=tally.reused,
            failed=tally.failed,
            total=self._total,
            seconds=now - self._started,
            outage=self._outage.cause if self._outage else "",
            recent=self._recent.update(now, tally.made),
            in_flight=self._pace.in_flight if self._pace else 0,
            concurrency=self._pace.limit if self._pace else 0,
            cost=cost_of(self._price, now - self._started),
            currency=self._price.currency if self._price else "",
        )

    def result(self, *, stopped: bool) -> BatchResult:
        """What it came to."""
        tally, seconds = self._tally, self._clock.monotonic() - self._started
        return BatchResult(
            made=tally.made,
            reused=tally.reused,
            failed=tally.failed,
            seconds=seconds,
            p50_latency_ms=tally.percentile(0.50),
            p95_latency_ms=tally.percentile(0.95),
            failures=tuple(tally.failures),
            ignored=tuple(sorted(tally.ignored)),
            model=self._offer.model,
            revision=self._offer.revision,
            stopped=stopped,
            cost=cost_of(self._price, seconds),
            currency=self._price.currency if self._price else "",
        )

    async def work(self) -> None:
        """Make what is missing, until the prompts are used up or something ends the batch."""
        settings = self._settings
        async with Client(
            self._target, connections=settings.concurrency, timeout=settings.timeout_seconds
        ) as client:
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
            # One batch in work and one that waits is what keeps a batching endpoint busy.
            start = 2 * offer.at_once or START
            self._pace = Pace(most=settings.concurrency, start=start, timeout=settings.timeout_seconds)
            dispatcher = Dispatcher(
                client,
                self,
                outage,
                settings,
                self._pace,
                items=offer.items,
                wary=not offer.items and not offer.at_once,
                url=self._target.base_url,
                clock=self._clock,
                backoff=self._backoff,
            )
            try:
                await dispatcher.run()
            finally:
                self.ended.set()

    async def _describe(self, client: Client, outage: Outage) -> Offer:
        outage.expect(documented=False)
        while True:
            try:
                return await client.describe()
            except RemoteError as error:
                if (end := ends_batch(error, self._target.base_url)) is not None:
                    raise end from None
                await outage.endured(error)

    def take(self, most: int) -> tuple[list[Job], bool]:
        """The next jobs whose images are not there; counts those that are. Not for long at a time."""
        jobs: list[Job] = []
        until = self._clock.monotonic() + TAKE_SECONDS
        while len(jobs) < most and not self.ended.is_set():
            prompt = next(self._prompts, None)
            if prompt is None:
                return jobs, True
            request = request_for(prompt, self._settings, self._offer)
            job = Job(prompt, request, f"{IMAGES}/{image_name(prompt.id, request.key)}")
            if self._is_there(job):
                self._tally.add_reused(request.ignored)
            else:
                jobs.append(job)
            if self._clock.monotonic() >= until:
                break
        return jobs, False

    def _is_there(self, job: Job) -> bool:
        key = job.request.key
        if self._present.has(job.prompt.id, key, job.file):
            return True
        found = self._present.adopt(key, job.file, job.request.size)
        if found is None:
            return False
        record = replace(self._record(job, "adopted"), **asdict(found))
        self._manifest.append(record, to_go=self._to_go())
        return True

    def settle(self, arrivals: Sequence[Arrival]) -> list[RemoteError | None]:
        """Check, store and record; a cancelled dispatcher still lets it finish what it began."""
        outcomes: list[RemoteError | None] = []
        for arrival in arrivals:
            try:
                image = image_of(arrival.job.request, arrival.answer, self._target.url("/imagine"))
            except RemoteError as error:
                outcomes.append(error)
            else:
                self._settle_made(arrival.job, image, arrival.attempts, arrival.latency_ms)
                outcomes.append(None)
        return outcomes

    def _settle_made(self, job: Job, image: Image, attempts: int, latency_ms: float) -> None:
        """Store and record, in one go: a cancelled worker still finishes this."""
        told, expected = (image.model, image.revision), (self._offer.model, self._offer.revision)
        if self._model_told and image.model and told != expected:
            raise BatchError(
                f"The endpoint's model changed during the batch, from {self._offer.model!r} "
                f"{self._offer.revision} to {image.model!r} {image.revision}.",
                fix="Run the batch again: it then makes all images with the new model.",
            )
        stamp = self._store.write(job.file, image.data, to_go=self._to_go())
        record = self._record(job, "made", image=image, attempts=attempts, latency_ms=round(latency_ms, 1))
        self._manifest.append(replace(record, stamp=stamp, worker=image.worker), to_go=self._to_go())
        self._tally.add_made(latency_ms, job.request.ignored)

    def fail(self, job: Job, error: RemoteError, attempts: int) -> None:
        """Record and count it.

        Raises:
            UnreachableError: Nothing but failures so far, none of them a prompt's fault.
        """
        reason = f"{error.what} {error.why}".strip()
        self._manifest.append(self._record(job, "failed", attempts=attempts, error=reason))
        fruitless = error.verdict is not Verdict.PERMANENT or error.status in NO_APPLICATION
        self._tally.add_failed(Failure(job.prompt.id, reason, attempts), fruitless=fruitless)
        in_a_row = self._tally.fruitless
        if self._tally.made == 0 and in_a_row >= HOPELESS_IMAGES * min(START, self._settings.concurrency):
            raise UnreachableError(
                f"The endpoint {self._target.base_url} answers, but makes no image: "
                f"{in_a_row} in a row failed.",
                why=reason,
                fix="See `raynest status`; then run again: it makes the missing images, these included.",
            )

    def _to_go(self) -> int:
        return max(1, self._total - self._tally.done) if self._total is not None else 1

    def _record(
        self,
        job: Job,
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
