import pytest

from raynest_pipeline.images.hedge import LATEST_ANSWERS, LEAST_ANSWERS, Hedge


def answered(hedge: Hedge, *seconds: float) -> Hedge:
    for one in seconds:
        hedge.answered(one)
    return hedge


def test_nothing_is_hedged_unless_asked_for() -> None:
    assert answered(Hedge(None), *[1.0] * 1000).after() is None


def test_the_percentile_of_the_latest_answers() -> None:
    hedge = answered(Hedge(90.0), *[1.0] * 90, *[5.0] * 9, 60.0)
    assert hedge.after() == 5.0
    answered(hedge, *[2.0] * LATEST_ANSWERS)
    assert hedge.after() == 2.0, "old answers are forgotten"


def test_not_before_it_is_known_what_is_slow() -> None:
    hedge = answered(Hedge(50.0), *[1.0] * (LEAST_ANSWERS - 1))
    assert hedge.after() is None
    assert answered(hedge, 1.0).after() == 1.0


@pytest.mark.parametrize(("percentile", "most"), [(95.0, 6), (90.0, 11), (50.0, 51)])
def test_a_budget_keeps_a_slow_endpoint_from_getting_everything_twice(percentile: float, most: int) -> None:
    hedge, sent = answered(Hedge(percentile), *[1.0] * 100), 0
    while hedge.after() is not None:
        hedge.hedged()
        sent += 1
    assert sent == most
