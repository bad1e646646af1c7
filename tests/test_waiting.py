"""The one waiter and the one retrier, on a clock that moves only when somebody sleeps."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict
from raynest_pipeline.waiting import (
    Backoff,
    Clock,
    Deadline,
    Done,
    SystemClock,
    Waiting,
    retry,
    wait_for,
)


class Hourglass:
    """A clock whose time is the sum of its sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=sum(self.slept))

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, "a negative sleep"
        self.slept.append(seconds)


@pytest.fixture
def clock() -> Hourglass:
    return Hourglass()


def remote(verdict: Verdict, **more: Any) -> RemoteError:
    return RemoteError("The call failed.", verdict=verdict, why="it is busy", **more)


def answers(*items: Any) -> Callable[[], Any]:
    """A probe or call that gives (or raises) these in turn, and the last one for ever."""
    queue = list(items)

    def call() -> Any:
        item = queue.pop(0) if len(queue) > 1 else queue[0]
        if isinstance(item, BaseException):
            raise item
        return item

    return call


class TestWaitFor:
    def test_returns_the_value_at_once_without_sleeping(self, clock: Hourglass) -> None:
        assert wait_for(lambda: Done(7), what="It", deadline=Deadline.after(10, clock)) == 7
        assert clock.slept == []

    def test_a_value_of_none_is_a_value(self, clock: Hourglass) -> None:
        assert wait_for(lambda: Done(None), what="It", deadline=Deadline.after(10, clock)) is None

    def test_probes_until_done_and_tells_each_cause(self, clock: Hourglass) -> None:
        seen: list[Waiting] = []
        probe = answers(Waiting("a", 0.1), Waiting("b"), Done("x"))
        got = wait_for(probe, what="It", deadline=Deadline.after(100, clock), on_progress=seen.append)
        assert got == "x"
        assert seen == [Waiting("a", 0.1), Waiting("b")]
        assert len(clock.slept) == 2

    def test_the_probe_runs_at_least_once_with_no_time_left(self, clock: Hourglass) -> None:
        assert wait_for(lambda: Done(1), what="It", deadline=Deadline.after(0, clock)) == 1
        assert wait_for(lambda: Done(2), what="It", deadline=Deadline.after(-5, clock)) == 2

    def test_the_probe_runs_once_more_at_the_deadline(self, clock: Hourglass) -> None:
        times: list[float] = []

        def probe() -> Done[str] | Waiting:
            times.append(clock.monotonic())
            return Done("late") if clock.monotonic() >= 10 else Waiting("not yet")

        backoff = Backoff(first=7, factor=1, most=7, jitter=0)
        assert wait_for(probe, what="It", deadline=Deadline.after(10, clock), backoff=backoff) == "late"
        assert times == [0, 7, 10], "the last pause is cut to what is left"

    def test_a_timeout_names_what_how_long_and_the_last_cause(self, clock: Hourglass) -> None:
        with pytest.raises(NotReadyError) as caught:
            wait_for(
                answers(Waiting("first"), Waiting("the pod is pending")),
                what="The service",
                deadline=Deadline.after(30, clock),
            )
        assert caught.value.what == "The service was not ready after 30 s."
        assert caught.value.why == "the pod is pending"
        assert "again" in caught.value.fix
        assert clock.monotonic() == pytest.approx(30)

    def test_a_timeout_says_the_given_fix(self, clock: Hourglass) -> None:
        with pytest.raises(NotReadyError) as caught:
            wait_for(answers(Waiting("x")), what="It", deadline=Deadline.after(1, clock), fix="Turn it on.")
        assert caught.value.fix == "Turn it on."

    @pytest.mark.parametrize("verdict", [Verdict.RETRYABLE, Verdict.UNKNOWN])
    def test_a_passing_error_counts_as_not_yet(self, clock: Hourglass, verdict: Verdict) -> None:
        seen: list[Waiting] = []
        probe = answers(remote(verdict), Done(3))
        got = wait_for(probe, what="It", deadline=Deadline.after(60, clock), on_progress=seen.append)
        assert got == 3
        assert [waiting.cause for waiting in seen] == ["it is busy"]

    def test_an_error_without_a_why_is_told_by_its_what(self, clock: Hourglass) -> None:
        error = RemoteError("The call failed.", verdict=Verdict.RETRYABLE)
        with pytest.raises(NotReadyError) as caught:
            wait_for(answers(error), what="It", deadline=Deadline.after(2, clock))
        assert caught.value.why == "The call failed."

    @pytest.mark.parametrize("verdict", [Verdict.PERMANENT, Verdict.GONE])
    def test_a_final_error_passes_through(self, clock: Hourglass, verdict: Verdict) -> None:
        error = remote(verdict)
        with pytest.raises(RemoteError) as caught:
            wait_for(answers(error), what="It", deadline=Deadline.after(60, clock))
        assert caught.value is error
        assert clock.slept == []

    @pytest.mark.parametrize("error", [NotReadyError("broken"), KeyError("bug"), KeyboardInterrupt()])
    def test_other_errors_pass_through(self, clock: Hourglass, error: BaseException) -> None:
        with pytest.raises(type(error)):
            wait_for(answers(error), what="It", deadline=Deadline.after(60, clock))

    def test_a_servers_retry_after_lengthens_the_pause(self, clock: Hourglass) -> None:
        probe = answers(remote(Verdict.RETRYABLE, retry_after=25), Waiting("x"), Done(1))
        backoff = Backoff(first=1, factor=1, most=1, jitter=0)
        wait_for(probe, what="It", deadline=Deadline.after(60, clock), backoff=backoff)
        assert clock.slept == [25, 1], "and only the next one"

    def test_a_retry_after_beyond_the_deadline_is_cut(self, clock: Hourglass) -> None:
        probe = answers(remote(Verdict.RETRYABLE, retry_after=3600))
        with pytest.raises(NotReadyError):
            wait_for(probe, what="It", deadline=Deadline.after(10, clock))
        assert clock.monotonic() == pytest.approx(10)


class TestRetry:
    def test_returns_the_first_success(self, clock: Hourglass) -> None:
        call = answers(remote(Verdict.RETRYABLE), remote(Verdict.RETRYABLE), "ok")
        assert retry(call, deadline=Deadline.after(60, clock)) == "ok"
        assert len(clock.slept) == 2

    def test_gives_up_after_the_attempts_with_the_last_error(self, clock: Hourglass) -> None:
        last = remote(Verdict.RETRYABLE, code="Third")
        call = answers(remote(Verdict.RETRYABLE), remote(Verdict.RETRYABLE), last, "never asked for")
        with pytest.raises(RemoteError) as caught:
            retry(call, deadline=Deadline.after(60, clock), attempts=3)
        assert caught.value is last
        assert len(clock.slept) == 2, "no sleep after the last attempt"

    @pytest.mark.parametrize("verdict", [Verdict.PERMANENT, Verdict.GONE, Verdict.UNKNOWN])
    def test_does_not_repeat_what_may_not_be_repeated(self, clock: Hourglass, verdict: Verdict) -> None:
        with pytest.raises(RemoteError):
            retry(answers(remote(verdict), "ok"), deadline=Deadline.after(60, clock))
        assert clock.slept == []

    def test_repeats_an_unknown_outcome_only_when_told(self, clock: Hourglass) -> None:
        call = answers(remote(Verdict.UNKNOWN), "ok")
        assert retry(call, deadline=Deadline.after(60, clock), repeat_unknown=True) == "ok"

    def test_starts_no_attempt_after_the_deadline(self, clock: Hourglass) -> None:
        calls: list[float] = []

        def call() -> None:
            calls.append(clock.monotonic())
            raise remote(Verdict.RETRYABLE)

        backoff = Backoff(first=4, factor=1, most=4, jitter=0)
        with pytest.raises(RemoteError):
            retry(call, deadline=Deadline.after(10, clock), attempts=50, backoff=backoff)
        assert calls == [0, 4, 8, 10]

    def test_honours_retry_after(self, clock: Hourglass) -> None:
        retry(
            answers(remote(Verdict.RETRYABLE, retry_after=9), "ok"),
            deadline=Deadline.after(60, clock),
            backoff=Backoff(first=1, jitter=0),
        )
        assert clock.slept == [9]

    def test_other_errors_pass_through(self, clock: Hourglass) -> None:
        with pytest.raises(ValueError, match="bug"):
            retry(answers(ValueError("bug")), deadline=Deadline.after(60, clock))


class TestDeadline:
    def test_counts_down_to_zero_and_no_further(self, clock: Hourglass) -> None:
        deadline = Deadline.after(10, clock)
        assert (deadline.remaining(), deadline.passed) == (10, False)
        clock.sleep(4)
        assert deadline.remaining() == pytest.approx(6)
        clock.sleep(20)
        assert (deadline.remaining(), deadline.passed) == (0, True)

    def test_at_most_takes_the_earlier(self, clock: Hourglass) -> None:
        deadline = Deadline.after(100, clock)
        clock.sleep(50)
        assert deadline.at_most(10).remaining() == pytest.approx(10)
        assert deadline.at_most(10).seconds == 10
        assert deadline.at_most(500) is deadline


class TestBackoff:
    @given(
        first=st.floats(0.01, 60),
        factor=st.floats(1, 4),
        most=st.floats(0.01, 600),
        jitter=st.floats(0, 0.9),
        attempt=st.integers(0, 10**9),
    )
    def test_a_pause_stays_within_its_bounds(
        self, first: float, factor: float, most: float, jitter: float, attempt: int
    ) -> None:
        pause = Backoff(first=first, factor=factor, most=most, jitter=jitter).pause(attempt)
        assert 0 < pause <= most * (1 + jitter) * (1 + 1e-9)
        assert pause >= min(first, most) * (1 - jitter) * (1 - 1e-9)

    def test_pauses_grow_to_the_most(self) -> None:
        backoff = Backoff(first=1, factor=2, most=10, jitter=0)
        assert [backoff.pause(n) for n in range(6)] == [1, 2, 4, 8, 10, 10]

    def test_jitter_varies_the_pause(self) -> None:
        backoff = Backoff(first=1, factor=1, most=1, jitter=0.5)
        assert len({backoff.pause(0) for _ in range(20)}) > 1


class TestSystemClock:
    def test_agrees_with_the_machine(self) -> None:
        clock: Clock = SystemClock()
        before = time.monotonic()
        assert before <= clock.monotonic() <= time.monotonic()
        assert abs((clock.now() - datetime.now(UTC)).total_seconds()) < 5

    def test_sleeps_in_slices_so_that_an_interrupt_lands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []
        machine = Hourglass()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            machine.sleep(seconds)

        monkeypatch.setattr("raynest_pipeline.waiting.time.sleep", sleep)
        monkeypatch.setattr("raynest_pipeline.waiting.time.monotonic", machine.monotonic)
        SystemClock().sleep(1.1)
        assert sum(slept) == pytest.approx(1.1)
        assert max(slept) <= SystemClock.SLICE_SECONDS
