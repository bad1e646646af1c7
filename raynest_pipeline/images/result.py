"""The figures of a batch while it runs and when it is over."""

import math
import random
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from raynest_pipeline.errors import BatchError

MAX_LISTED = 100
"""Failures listed one by one; all are in the manifest."""
LATENCIES = 50_000
"""Latencies kept for the percentiles."""


class HourlyPrice(NamedTuple):
    """What the cluster costs an hour."""

    amount: Decimal
    currency: str


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
    recent: float | None = None
    """Images per second over the last half minute; None: not measured."""
    in_flight: int = 0
    """Images asked for that have not come yet."""
    concurrency: int = 0
    """How many may be in flight at present."""
    cost: Decimal | None = None
    """Of the run so far; None: the price is not known."""
    currency: str = ""

    @property
    def done(self) -> int:
        """Images that are settled."""
        return self.made + self.reused + self.failed

    @property
    def images_per_second(self) -> float:
        """Made in this run, over its time so far."""
        return self.made / self.seconds if self.seconds > 0 else 0.0

    @property
    def pace(self) -> float:
        """Images per second at present, as far as it is measured."""
        return self.images_per_second if self.recent is None else self.recent

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present pace; None when that cannot be said."""
        if self.total is None or self.pace <= 0:
            return None
        return max(0, self.total - self.done) / self.pace

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.done:,}{of} images", f"{self.pace:.2f}/s"]
        if self.recent is not None and abs(self.recent - self.images_per_second) > 0.1 * self.recent:
            parts[-1] += f" ({self.images_per_second:.2f}/s in all)"
        parts += [f"{self.reused:,} reused"] if self.reused else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{duration(self.eta_seconds or 0)} left"] if (self.eta_seconds or 0) >= 1 else []
        parts += [f"{self.in_flight} of {self.concurrency} in flight"] if self.in_flight else []
        parts += [f"cost {money(self.cost, self.currency)}"] if self.cost is not None else []
        parts += [f"waiting: {self.outage}"] if self.outage else []
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time span for people: `42 s`, `12 min`, `3 h 05 min`."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def cost_of(price: HourlyPrice | None, seconds: float) -> Decimal | None:
    """What `seconds` cost; None when the price is not known. To a hundredth of a cent."""
    return (price.amount * Decimal(seconds) / 3600).quantize(Decimal("0.0001")) if price else None


def money(amount: Decimal, currency: str) -> str:
    """An amount for people; small ones to a hundredth of a cent."""
    return f"{amount:,.2f} {currency}" if amount >= 1 else f"{amount:.4f} {currency}"


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
        cost: Of this run, in `currency`; None: the price is not known.
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
    cost: Decimal | None = None
    currency: str = ""

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
    """Counts as the batch goes, from several threads. Its memory is bounded: beyond `LATENCIES` images the
    percentiles are those of a random sample of so many (Vitter's algorithm R, 1985)."""

    made: int = 0
    reused: int = 0
    failed: int = 0
    fruitless: int = 0
    """Images in a row that failed through no fault of their prompts."""
    latencies_ms: "array[float]" = field(default_factory=lambda: array("f"))
    failures: list[Failure] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def done(self) -> int:
        """Images that are settled."""
        return self.made + self.reused + self.failed

    def add_made(self, latency_ms: float, ignored: Iterable[str]) -> None:
        """Count an image made."""
        with self._lock:
            self.ignored.update(ignored)
            self.made += 1
            self.fruitless = 0
            if len(self.latencies_ms) < LATENCIES:
                self.latencies_ms.append(latency_ms)
            elif (place := random.randrange(self.made)) < LATENCIES:
                self.latencies_ms[place] = latency_ms

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
