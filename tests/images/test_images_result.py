import threading
from decimal import Decimal

import pytest

from raynest_pipeline.errors import BatchError
from raynest_pipeline.images.result import (
    MAX_LISTED,
    BatchResult,
    Failure,
    HourlyPrice,
    Progress,
    Tally,
    cost_of,
    duration,
    money,
    too_many_failed,
)


def result(made: int, failed: int, reused: int = 0) -> BatchResult:
    failures = tuple(Failure(f"p{i}", "rude", 1) for i in range(failed))
    return BatchResult(made, reused, failed, 10.0, None, None, failures)


@pytest.mark.parametrize(
    ("made", "failed", "reused", "share", "bad"),
    [
        (0, 0, 0, 0.0, False),
        (10, 0, 0, 0.0, False),
        (9, 1, 0, 0.0, True),
        (9, 1, 0, 0.1, False),
        (8, 2, 0, 0.1, True),
        (0, 1, 9, 0.1, False),
        (0, 5, 0, 1.0, False),
        (0, 5, 0, 0.99, True),
    ],
)
def test_the_allowed_share(made: int, failed: int, reused: int, share: float, bad: bool) -> None:
    error = too_many_failed(result(made, failed, reused), share)
    assert isinstance(error, BatchError) is bad


def test_the_error_names_the_first_failures_and_the_way_on() -> None:
    text = str(too_many_failed(result(0, 5), 0.0))
    assert "5 of 5 images failed" in text and "allows 0.0%" in text
    assert "p0: rude; p1: rude; p2: rude; and 2 more" in text
    assert "only the missing images" in text


def test_pace_and_time_left() -> None:
    progress = Progress(made=20, reused=30, failed=1, total=101, seconds=10.0, outage="")
    assert progress.done == 51 and progress.images_per_second == 2.0 and progress.eta_seconds == 25.0
    assert str(progress) == "51 of 101 images, 2.00/s, 30 reused, 1 failed, 25 s left"
    waiting = Progress(0, 0, 0, None, 0.0, "no connection")
    assert waiting.eta_seconds is None
    assert str(waiting) == "0 images, 0.00/s, waiting: no connection"


def test_percentiles_are_the_nearest_rank() -> None:
    tally = Tally()
    assert tally.percentile(0.5) is None
    for value in range(100, 0, -1):
        tally.add_made(float(value), ())
    assert (tally.percentile(0.5), tally.percentile(0.95), tally.percentile(1.0)) == (50.0, 95.0, 100.0)
    assert tally.percentile(0.0) == 1.0


def test_only_the_first_failures_are_kept_in_memory() -> None:
    tally = Tally()
    for i in range(MAX_LISTED + 50):
        tally.add_failed(Failure(str(i), "r", 1), fruitless=True)
    assert (tally.failed, tally.fruitless, len(tally.failures)) == (150, 150, MAX_LISTED)
    tally.add_failed(Failure("x", "rude", 1), fruitless=False)
    assert tally.fruitless == 0


def test_threads_do_not_lose_counts() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(2000):
            tally.add_made(1.0, ("seed",))
            tally.add_reused(())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tally.made, tally.reused, len(tally.latencies_ms), tally.ignored) == (8000, 8000, 8000, {"seed"})


def test_images_per_second_of_a_result() -> None:
    assert result(20, 0).images_per_second == 2.0
    assert BatchResult(1, 0, 0, 0.0, None, None).images_per_second == 0.0


def test_progress_tells_the_recent_pace_the_time_left_and_the_cost() -> None:
    progress = Progress(
        made=1000,
        reused=20,
        failed=2,
        total=100_000,
        seconds=1000.0,
        recent=4.0,
        in_flight=14,
        concurrency=16,
        cost=Decimal("12.5"),
        currency="CNY",
    )
    assert progress.pace == 4.0 and progress.images_per_second == 1.0
    assert progress.eta_seconds == pytest.approx(98_978 / 4)
    assert str(progress) == (
        "1,022 of 100,000 images, 4.00/s (1.00/s in all), 20 reused, 2 failed, 6 h 52 min left, "
        "14 of 16 in flight, cost 12.50 CNY"
    )


def test_without_a_measured_pace_the_mean_counts() -> None:
    progress = Progress(made=10, reused=0, failed=0, total=30, seconds=5.0)
    assert progress.pace == 2.0 and progress.eta_seconds == 10.0
    assert str(progress) == "10 of 30 images, 2.00/s, 10 s left"
    stalled = Progress(made=10, reused=0, failed=0, total=30, seconds=5.0, recent=0.0, outage="gone")
    assert stalled.eta_seconds is None
    assert str(stalled) == "10 of 30 images, 0.00/s (2.00/s in all), waiting: gone"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (599.4, "599 s"), (600, "10 min"), (7140, "119 min"), (7500, "2 h 05 min")],
)
def test_time_spans_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_a_run_costs() -> None:
    price = HourlyPrice(Decimal("36"), "CNY")
    assert cost_of(price, 100.0) == Decimal("1.0000") and cost_of(price, 0.05) == Decimal("0.0005")
    assert cost_of(None, 100.0) is None
    assert money(Decimal("1234.5"), "CNY") == "1,234.50 CNY" and money(Decimal("0.0005"), "") == "0.0005 "


def test_percentiles_of_more_images_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynest_pipeline.images.result.LATENCIES", 1000)
    tally = Tally()
    for latency in range(20_000):
        tally.add_made(float(latency), ())
    assert tally.made == 20_000 and len(tally.latencies_ms) == 1000
    half, most = tally.percentile(0.5), tally.percentile(0.95)
    # A thousand of twenty thousand: the median's standard error is 1.6 percentage points.
    assert half is not None and most is not None
    assert 8_000 < half < 12_000 and 18_000 < most < 19_999
