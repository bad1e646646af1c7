"""A clock that tests turn, a way to kill the process at any point, and the cloud's ways to say no."""

from datetime import UTC, datetime, timedelta

from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process is gone: no `except Exception` sees it."""


class Killer:
    """Ends the process at the n-th point (0: never)."""

    def __init__(self) -> None:
        self.at = 0
        self.reached = 0
        self.points: list[str] = []

    def arm(self, at: int) -> None:
        self.at, self.reached = at, 0

    def point(self, name: str) -> None:
        self.reached += 1
        self.points.append(name)
        if self.reached == self.at:
            raise Killed(name)


class FakeClock:
    """Moves only when somebody sleeps."""

    def __init__(self, killer: Killer) -> None:
        self._killer = killer
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds
        self._killer.point("sleep")


def cloud_error(
    verdict: Verdict, code: str = "", *, status: int | None = None, access: bool = False
) -> CloudError:
    return CloudError(
        "A call failed.",
        verdict=verdict,
        product="test",
        action="Test",
        code=code,
        status=status,
        access=access,
        why=f"it says {code}" if code else "",
    )


def denied() -> CloudError:
    return cloud_error(Verdict.PERMANENT, "Forbidden.RAM", status=403, access=True)


def throttled() -> CloudError:
    return cloud_error(Verdict.RETRYABLE, "Throttling", status=429)


def no_balance() -> CloudError:
    return cloud_error(Verdict.PERMANENT, "InsufficientBalance", status=400)


def no_answer() -> CloudError:
    return cloud_error(Verdict.UNKNOWN, "NoAnswer")


THE_TASK_FAILED = "the load balancer refused the address"
