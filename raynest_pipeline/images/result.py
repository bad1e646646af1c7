"""The figures of a batch while it runs and when it is over."""

import math
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raynest_pipeline.errors import BatchError

MAX_LISTED = 100
"""Failures listed one by one; all are in the manifest."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be made: its prompt's id, the reason, the attempts spent."""

    id: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class Progress:
    """A batch in the middle of its work."""

    made: int
    reused: int
    failed: int
    total: int | None
    """Images of the batch; None when the source does not know."""
    seconds: float
    outage: str = ""
    """Why the endpoint is waited for; "" while it answers."""

    @property
    def done(self) -> int:
        """Images that are settled."""
        return self.made + self.reused + self.failed

    @property
    def images_per_second(self) -> float:
        """Made in this run, over its time so far."""
        return self.made / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present pace; None when that cannot be said."""
        if self.total is None or self.images_per_second == 0:
            return None
        return max(0, self.total - self.done) / self.images_per_second

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.done:,}{of} images", f"{self.images_per_second:.2f}/s"]
        parts += [f"{self.reused:,} reused"] if self.reused else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.eta_seconds:.0f} s left"] if (self.eta_seconds or 0) >= 1 else []
        parts += [f"waiting: {self.outage}"] if self.outage else []
        return ", ".join(parts)


@dataclass(frozen=True)
class BatchResult:
    """What a run of a batch came to.

    Attributes:
        made: Images made in this run.
        reused: Images that were there already.
        failed: Images that could not be made.
        total: The sum; smaller than the batch when it was stopped.
        seconds: Of the run.
        images_per_second: Made, over seconds.
        p50_latency_ms, p95_latency_ms: Of successful requests; None when none were made.
        failures: The first 100 in full.
        ignored: Parameters that prompts name and the endpoint does not take.
        model, revision: As the endpoint names them; "" when it does not.
        stopped: Whether `should_stop` ended it early.
    """

    made: int
    reused: int
    failed: int
    seconds: float
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    failures: Sequence[Failure] = ()
    ignored: tuple[str, ...] = ()
    model: str = ""
    revision: str = ""
    stopped: bool = False

    @property
    def total(self) -> int:
        """Images settled."""
        return self.made + self.reused + self.failed

    @property
    def images_per_second(self) -> float:
        """Made in this run, over its time."""
        return self.made / self.seconds if self.seconds > 0 else 0.0


def too_many_failed(result: BatchResult, max_failed_share: float) -> BatchError | None:
    """The error of a batch in which more than `max_failed_share` (0 to 1) of the images failed."""
    if result.total == 0 or result.failed / result.total <= max_failed_share:
        return None
    first = "; ".join(f"{f.id}: {f.reason}" for f in result.failures[:3])
    more = f"; and {result.failed - 3} more" if result.failed > 3 else ""
    return BatchError(
        f"{result.failed} of {result.total} images failed; "
        f"batch.max_failed_share allows {max_failed_share:.1%}.",
        why=first + more,
        fix="Correct the prompts, or the endpoint, and run again: only the missing images are made. "
        "The manifest has every reason.",
    )


@dataclass
class Tally:
    """Counts as the batch goes, from several threads. Memory: four bytes an image."""

    made: int = 0
    reused: int = 0
    failed: int = 0
    fruitless: int = 0
    """Images in a row that failed through no fault of their prompts."""
    latencies_ms: "array[float]" = field(default_factory=lambda: array("f"))
    failures: list[Failure] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_made(self, latency_ms: float, ignored: Iterable[str]) -> None:
        """Count an image made."""
        with self._lock:
            self.ignored.update(ignored)
            self.made += 1
            self.fruitless = 0
            self.latencies_ms.append(latency_ms)

    def add_reused(self, ignored: Iterable[str]) -> None:
        """Count an image that was there."""
        with self._lock:
            self.reused += 1
            self.ignored.update(ignored)

    def add_failed(self, failure: Failure, *, fruitless: bool) -> None:
        """Count a failure."""
        with self._lock:
            self.failed += 1
            self.fruitless = self.fruitless + 1 if fruitless else 0
            if len(self.failures) < MAX_LISTED:
                self.failures.append(failure)

    def percentile(self, share: float) -> float | None:
        """The latency that `share` (0 to 1) of the requests did not exceed (nearest rank), ms."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 1)
