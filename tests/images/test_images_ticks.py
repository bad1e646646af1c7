"""Which batches a schedule owes."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from raynest_pipeline.images.ticks import Due, batch_of, day_of, due, within_cap

BERLIN = ZoneInfo("Europe/Berlin")
DAILY, HOURLY = "0 6 * * *", "0 * * * *"


def at(day: int, hour: int = 6, minute: int = 0) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=BERLIN)


def owed(tick: datetime, cron: str = DAILY, **more: Any) -> Due:
    given: dict[str, Any] = {"now": tick, "batches": (), "catch_up": "latest", "most": 7}
    return due(cron, tick, late=timedelta(minutes=10), **{**given, **more})


class TestNames:
    def test_once_a_day_it_is_the_date_of_the_schedules_own_zone(self) -> None:
        assert batch_of(datetime(2026, 3, 9, 0, 30, tzinfo=BERLIN), "30 0 * * *") == "daily-2026-03-09"

    @pytest.mark.parametrize("cron", [HOURLY, "*/15 6 * * *", "0 6,18 * * *", "* * * * *"])
    def test_several_a_day_have_names_of_their_own(self, cron: str) -> None:
        assert batch_of(at(9), cron) == "daily-2026-03-09T0500Z"

    def test_the_hour_that_comes_twice_has_two_names(self) -> None:
        first = datetime(2026, 10, 25, 2, 0, tzinfo=BERLIN, fold=0)
        assert batch_of(first, HOURLY) != batch_of(first.replace(fold=1), HOURLY)

    def test_the_day_of_the_cap_is_local(self) -> None:
        assert day_of(datetime(2026, 3, 9, 0, 30, tzinfo=BERLIN)) == "2026-03-09"


class TestCatchUp:
    def test_in_time_it_is_this_tick(self) -> None:
        for policy in ("skip", "latest", "all"):
            assert owed(at(9), catch_up=policy) == Due((at(9),))

    def test_skip_lets_go_of_a_late_one(self) -> None:
        assert owed(at(9), catch_up="skip", now=at(9, 6, 9)).ticks == (at(9),)
        late = owed(at(9), catch_up="skip", now=at(9, 8))
        assert late.ticks == () and "120 minutes late" in late.skipped

    def test_latest_makes_up_for_one(self) -> None:
        assert owed(at(9), now=at(9, 23), batches={"daily-2026-03-05"}).ticks == (at(9),)

    def test_all_goes_back_to_the_last_batch(self) -> None:
        ticks = owed(at(9), catch_up="all", batches={"daily-2026-03-05", "other"}).ticks
        assert ticks == (at(6), at(7), at(8), at(9))

    def test_all_has_a_bound(self) -> None:
        assert owed(at(20), catch_up="all", batches={"daily-2026-03-01"}, most=3).ticks == (
            at(18),
            at(19),
            at(20),
        )

    def test_a_schedule_without_a_past_owes_nothing_of_it(self) -> None:
        assert owed(at(9), catch_up="all", batches={"prompts-1234"}).ticks == (at(9),)

    def test_a_tick_that_comes_again_is_still_owed(self) -> None:
        batches = {"daily-2026-03-08", "daily-2026-03-09"}
        assert owed(at(9), catch_up="all", batches=batches).ticks == (at(9),)

    def test_across_the_change_of_clocks_each_day_comes_once(self) -> None:
        tick = datetime(2026, 3, 31, 6, tzinfo=BERLIN)
        ticks = owed(tick, catch_up="all", batches={"daily-2026-03-27"}).ticks
        assert [batch_of(t, DAILY) for t in ticks] == [f"daily-2026-03-{day}" for day in (28, 29, 30, 31)]
        assert {t.hour for t in ticks} == {6}

    def test_hourly(self) -> None:
        tick = datetime(2026, 3, 9, 6, tzinfo=UTC)
        ticks = owed(tick, HOURLY, catch_up="all", batches={"daily-2026-03-09T0300Z"}).ticks
        assert [t.hour for t in ticks] == [4, 5, 6]


class TestCap:
    def test_without_one_all_may_come(self) -> None:
        assert within_cap([at(8), at(9)], 10**6, {}, None) == ([at(8), at(9)], [])

    def test_each_day_has_its_own_room(self) -> None:
        kept, reasons = within_cap([at(8), at(9)], 60, {"2026-03-08": 50}, 100)
        assert kept == [at(9)]
        (reason,) = reasons
        assert "schedule.max_images_per_day" in reason and "50 of 100" in reason

    def test_the_ticks_of_one_day_share_it(self) -> None:
        hours = [at(9, hour) for hour in (1, 2, 3)]
        kept, reasons = within_cap(hours, 40, {}, 100)
        assert kept == hours[:2] and len(reasons) == 1

    def test_exactly_full_is_allowed(self) -> None:
        assert within_cap([at(9)], 40, {"2026-03-09": 60}, 100)[0] == [at(9)]
