"""Watches one job until it ends: its status, its log, and what both say together."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from raynest_pipeline.errors import (
    AccessError,
    NotReadyError,
    RefusedError,
    RemoteError,
    UnreachableError,
    Verdict,
)
from raynest_pipeline.images.bulk.jobs import Job, JobsApi
from raynest_pipeline.images.bulk.plan import MARK, error_of, heard
from raynest_pipeline.images.result import BatchResult, Failure, HourlyPrice, Progress, cost_of
from raynest_pipeline.waiting import Backoff, Clock, Deadline, Done, Waiting, wait_for

T = TypeVar("T")

OnProgress = Callable[[Progress], None]
OnLog = Callable[[str], None]

OUTAGE_SECONDS = 600.0
"""A head that is started anew loads no model, but may wait for its image."""
STOP_SECONDS = 10.0
"""Ray gives a job three seconds between SIGTERM and SIGKILL."""
TAIL_LINES = 15
FIRST_PACE, LAST_PACE = 1.0, 10.0
"""Seconds between two looks, at first and after ten minutes; the job's own lines come at the same pace."""
_BACKOFF = Backoff(first=1.0, factor=1.6, most=10.0)


@dataclass(frozen=True)
class Ended:
    """How a job ended, when it did not raise.

    Attributes:
        result: What the batch came to; None when the job is to be sent again.
        needs: Modules that its image lacks.
        why: Why it was lost.
    """

    result: BatchResult | None = None
    needs: Sequence[str] = ()
    why: str = ""


class Follower:
    """Follows the jobs of one batch, one after the other."""

    def __init__(
        self,
        api: JobsApi,
        clock: Clock,
        on_progress: OnProgress | None,
        on_log: OnLog | None,
        should_stop: Callable[[], bool] | None,
        price: HourlyPrice | None = None,
        raise_kept: Callable[[], None] = lambda: None,
    ) -> None:
        """`raise_kept`: raises a lost interruption (interrupts.py). The others: as `generate_on_ray`."""
        self._api = api
        self._clock = clock
        self._on_progress = on_progress or (lambda progress: None)
        self._on_log = on_log or (lambda line: None)
        self._should_stop = should_stop or (lambda: False)
        self._price = price
        self._raise_kept = raise_kept
        self._started = clock.monotonic()
        self._progress = Progress(made=0, reused=0, failed=0, total=None, seconds=0.0)
        self._attached = False
        """Whether the job ran before it was followed from here."""
        self._before = 0
        """Images that lost jobs of this run have made."""

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer: a dashboard may be away for a while.

        Raises:
            AccessError, RefusedError, UnreachableError: As `generate_on_ray`.
        """

        def probe() -> Done[T] | Waiting:
            self._raise_kept()
            try:
                return Done(ask())
            except RemoteError as error:
                _raise_if_hopeless(error)
                return Waiting(error.why or error.what)

        try:
            return wait_for(
                probe,
                what="The Ray dashboard",
                deadline=Deadline.after(OUTAGE_SECONDS, self._clock),
                backoff=_BACKOFF,
                on_progress=lambda waiting: self._tell(outage=waiting.cause),
            )
        except NotReadyError as error:
            raise UnreachableError(
                f"The Ray dashboard has not answered for {OUTAGE_SECONDS:.0f} s.",
                why=error.why,
                fix="See `raynest status`; then run the same batch again: it attaches to its job.",
            ) from None

    def follow(self, job_id: str, start: Callable[[], object] | None = None) -> Ended:
        """Until the job ends, is lost, or is stopped from here.

        Args:
            job_id: Its submission id.
            start: Submits it; an interruption in the middle of that stops it, too.

        Raises:
            RaynestError: As `generate_on_ray`.
        """
        log = _Log(self._on_log)
        try:
            if start is not None:
                self.patiently(start)
            self._attached = start is None
            while True:
                job = self.patiently(lambda: self._api.get(job_id))
                self._read(job_id, log)
                if job is None or job.over:
                    return self._ended(job, log)
                self._tell()
                if self._should_stop():
                    self._stop(job_id)
                    self._read(job_id, log)
                    return Ended(self._stopped())
                elapsed = self._clock.monotonic() - self._started
                self._clock.sleep(min(LAST_PACE, max(FIRST_PACE, elapsed / 60)))
        except BaseException as error:
            # An interruption is no Exception; whoever interrupts wants the GPUs to stop, too.
            if not isinstance(error, Exception):
                self._stop(job_id)
            raise

    def _read(self, job_id: str, log: "_Log") -> None:
        """Take in what is new in the log. One that cannot be read now is read at the next look."""
        with contextlib.suppress(RemoteError):
            log.take(self._api.logs(job_id) or "")
        if self._attached:
            self._count_time_before(log)
        if (said := log.progress) is not None:
            self._progress = replace(
                self._progress, **{key: said[key] for key in ("made", "reused", "failed", "total")}
            )

    def _count_time_before(self, log: "_Log") -> None:
        """The images that it made before are counted, so its time is: they did not come for nothing."""
        for said in (log.end, log.progress):
            if said is not None and "seconds" in said:
                self._started = min(self._started, self._clock.monotonic() - float(said["seconds"]))
                self._attached = False
                return

    def _tell(self, *, outage: str = "") -> None:
        made, reused = self._whole(self._progress.made, self._progress.reused)
        self._on_progress(
            replace(self._progress, made=made, reused=reused, outage=outage, **self._time_and_cost())
        )

    def _time_and_cost(self) -> dict[str, Any]:
        seconds = self._clock.monotonic() - self._started
        currency = self._price.currency if self._price else ""
        return {"seconds": seconds, "cost": cost_of(self._price, seconds), "currency": currency}

    def _whole(self, made: int, reused: int) -> tuple[int, int]:
        """Made and reused of all jobs of this run: what one made before it was lost, the next found there."""
        return made + self._before, max(0, reused - self._before)

    def _ended(self, job: Job | None, log: "_Log") -> Ended:
        end = log.end or {}
        if end.get(MARK) == "result":
            return Ended(self._result(end))
        if end.get(MARK) == "error":
            raise error_of(end)
        if end.get(MARK) == "needs":
            return Ended(needs=tuple(end["modules"]))
        if job is not None and job.status == "STOPPED":
            return Ended(self._stopped())
        if job is None or job.status == "SUCCEEDED" or self._progress.made:
            # The cluster is another one, what ran the job died, or its last words were lost: the rest is for
            # the next job, which finds what this one made.
            self._before += self._progress.made
            self._progress = replace(self._progress, made=0)
            return Ended(why=job.message if job else "the cluster no longer knows the job: it was replaced")
        raise NotReadyError(
            f"The Ray job {job.id} failed.",
            why=_why(job, log.tail),
            fix="Its whole log is on the Ray dashboard: `raynest open dashboard`.",
        )

    def _result(self, end: dict[str, Any]) -> BatchResult:
        values = {key: value for key, value in end.items() if key in BatchResult.__dataclass_fields__}
        made, reused = self._whole(int(values["made"]), int(values["reused"]))
        result = BatchResult(
            **{
                **values,
                "made": made,
                "reused": reused,
                **self._time_and_cost(),
                "failures": tuple(Failure(**failure) for failure in values["failures"]),
                "ignored": tuple(values["ignored"]),
            }
        )
        self._progress = replace(
            self._progress,
            made=result.made - self._before,
            reused=result.reused + self._before,
            failed=result.failed,
        )
        self._tell()
        return result

    def _stopped(self) -> BatchResult:
        made, reused = self._whole(self._progress.made, self._progress.reused)
        return BatchResult(
            made=made,
            reused=reused,
            failed=self._progress.failed,
            p50_latency_ms=None,
            p95_latency_ms=None,
            stopped=True,
            **self._time_and_cost(),
        )

    def _stop(self, job_id: str) -> None:
        """Stop the job, and give it the seconds that it needs to let go of the batch; tell if it goes on."""

        def probe() -> Done[None] | Waiting:
            # Each time: a lost request must not leave the job running, and one too many does no harm.
            self._api.stop(job_id)
            job = self._api.get(job_id)
            return Done(None) if job is None or job.over else Waiting("it is ending")

        deadline = Deadline.after(STOP_SECONDS, self._clock)
        try:
            wait_for(probe, what="The job's end", deadline=deadline, backoff=Backoff(first=0.5, most=1.0))
        except (RemoteError, NotReadyError) as error:
            why = error.why or error.what
            self._on_log(f"The Ray job {job_id} may go on: {why}. Stop it on the Ray dashboard.")


def _why(job: Job, tail: str) -> str:
    """The first line of the job's message, and the end of its log; Ray's message repeats the log."""
    first, _, rest = job.message.strip().partition("\n")
    ending = tail or "\n".join(rest.strip().splitlines()[-TAIL_LINES:])
    return f"{first}\n{ending}".strip()


def _raise_if_hopeless(error: RemoteError) -> None:
    """Raise for an answer that no patience changes. Not for 404: the service is away while it is replaced."""
    if error.status in (401, 403) and error.verdict is Verdict.PERMANENT:
        raise AccessError(
            f"The Ray dashboard refuses access ({error.status}).",
            why=error.why,
            fix="Renew the kubeconfig, then run again: it attaches to its job.",
        ) from None
    if error.verdict is Verdict.PERMANENT:
        raise RefusedError(
            f"The Ray dashboard refuses. {error.what}",
            why=error.why,
            fix="See `raynest status`. A job that was running goes on.",
        ) from None


class _Log:
    """A job's log as it grows. Each look brings all of it; what has been seen is not told again."""

    def __init__(self, on_log: OnLog) -> None:
        self._on_log = on_log
        self._seen = 0
        self._last: list[str] = []
        self.progress: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None

    @property
    def tail(self) -> str:
        """The last lines that are not ours."""
        return "\n".join(self._last)

    def take(self, text: str) -> None:
        """All of the log so far. One that is shorter than before has been begun anew, and is read anew."""
        if len(text) < self._seen:
            self._seen = 0
        new = text[self._seen :]
        whole = new.rfind("\n") + 1
        self._seen += whole
        for line in new[:whole].splitlines():
            self._line(line)

    def _line(self, line: str) -> None:
        message = heard(line)
        if message is None:
            if line.strip():
                self._last = [*self._last, line.rstrip()][-TAIL_LINES:]
                self._on_log(line.rstrip())
        elif message[MARK] == "progress":
            self.progress = message
        else:
            self.end = message
