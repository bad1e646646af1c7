"""The one waiter and the one retrier: a clock that tests can turn, a deadline, backoff, a cause.

Nothing else in raynest sleeps.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict

T = TypeVar("T")


class Clock(Protocol):
    """Time as the chain sees it. Tests give one that advances on `sleep`."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The real clock. Sleeps in slices, so that an interrupt from Dagster lands at once."""

    SLICE_SECONDS = 0.25

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self.SLICE_SECONDS))


@dataclass(frozen=True)
class Deadline:
    """A point in time by which something must have happened."""

    clock: Clock
    at: float
    """On `clock.monotonic()`."""
    seconds: float
    """How long it was when it was set; for messages."""

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> "Deadline":
        """A deadline `seconds` from now."""
        return cls(clock=clock, at=clock.monotonic() + seconds, seconds=seconds)

    def remaining(self) -> float:
        """Seconds left; 0.0 once it has passed."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0

    def at_most(self, seconds: float) -> "Deadline":
        """The earlier of this deadline and one `seconds` from now."""
        other = Deadline.after(seconds, self.clock)
        return other if other.at < self.at else self


@dataclass(frozen=True)
class Done(Generic[T]):
    """A probe's answer: it has happened."""

    value: T


@dataclass(frozen=True)
class Waiting:
    """A probe's answer: not yet, and why not."""

    cause: str
    fraction: float | None = None
    """How far it has come, 0 to 1, where the server says so."""


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts: `first`, then `factor` times longer each time, up to `most` seconds."""

    first: float = 1.0
    factor: float = 1.6
    most: float = 10.0
    jitter: float = 0.2
    """Each pause is varied by up to this share, so that many clients don't call in step."""

    def pause(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (0, 1, ...)."""
        # The exponent is bounded so that a long wait cannot overflow a float.
        base = min(self.most, self.first * self.factor ** min(attempt, 64))
        return base * (1 + random.uniform(-self.jitter, self.jitter))


OnProgress = Callable[[Waiting], None]


def wait_for(
    probe: Callable[[], Done[T] | Waiting],
    *,
    what: str,
    deadline: Deadline,
    backoff: Backoff | None = None,
    on_progress: OnProgress | None = None,
    fix: str = "",
) -> T:
    """Call `probe` until it is `Done`, and return its value.

    A `RemoteError` that is retryable or unknown counts as "not yet"; any other error passes through.
    The probe runs at least once, also with no time left, and once more at the deadline.

    Raises:
        NotReadyError: The deadline passed; says what was waited for and the last cause.
    """
    pauses = backoff or Backoff()
    attempt = 0
    while True:
        floor = 0.0
        try:
            answer = probe()
        except RemoteError as error:
            if error.verdict not in (Verdict.RETRYABLE, Verdict.UNKNOWN):
                raise
            answer = Waiting(error.why or error.what)
            floor = error.retry_after or 0.0
        if isinstance(answer, Done):
            return answer.value
        if on_progress is not None:
            on_progress(answer)
        if deadline.passed:
            raise NotReadyError(
                f"{what} was not ready after {deadline.seconds:.0f} s.",
                why=answer.cause,
                fix=fix or "Run the same command again: it goes on from where this one stopped.",
            )
        deadline.clock.sleep(min(max(pauses.pause(attempt), floor), deadline.remaining()))
        attempt += 1


def retry(
    call: Callable[[], T],
    *,
    deadline: Deadline,
    attempts: int = 5,
    backoff: Backoff | None = None,
    repeat_unknown: bool = False,
) -> T:
    """Make one remote call, again while it fails with a retryable verdict.

    Args:
        call: The call. It must be safe to repeat.
        deadline: No attempt starts after it.
        attempts: The most attempts.
        backoff: Pauses; a server's `retry_after` lengthens them.
        repeat_unknown: Also repeat when the outcome is unknown: only for reads and for writes that
            carry a stable ClientToken.

    Raises:
        RemoteError: The last failure.
    """
    pauses = backoff or Backoff(first=0.5, most=8.0)
    repeatable = {Verdict.RETRYABLE, Verdict.UNKNOWN} if repeat_unknown else {Verdict.RETRYABLE}
    for attempt in range(attempts):
        try:
            return call()
        except RemoteError as error:
            last = attempt + 1 >= attempts or deadline.passed
            if error.verdict not in repeatable or last:
                raise
            pause = max(pauses.pause(attempt), error.retry_after or 0.0)
            deadline.clock.sleep(min(pause, deadline.remaining()))
    raise AssertionError("unreachable: the loop returns or raises")
