import threading

import pytest

from raynest_pipeline.errors import BatchError
from raynest_pipeline.images.result import (
    MAX_LISTED,
    BatchResult,
    Failure,
    Progress,
    Tally,
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
