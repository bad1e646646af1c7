"""The scheduled batches: their ids, their prompts, what is made up for, and the cap."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from raynest_pipeline.chain.intent import want
from raynest_pipeline.defs.images import schedules as module
from raynest_pipeline.defs.images.tags import BATCH_TAG, DAY_TAG, IMAGES_TAG, SCHEDULE_TAG
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.settings import load_settings

PROMPTS = "id,prompt,seed,x_product\na,a red apple,5,P-1\nb,a blue star,,\n"
SIX = datetime(2026, 3, 9, 6, tzinfo=UTC)

Tick = Callable[..., list[dg.RunRequest]]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    monkeypatch.setenv("RAYNEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYNEST_BATCH__PROMPTS", str(tmp_path / "prompts.csv"))
    want(load_settings(), True)
    return tmp_path / "home"


@pytest.fixture
def tick(home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Tick:
    """Evaluates the schedule as its settings are, and puts the runs on record."""
    from raynest_pipeline.definitions import build_definitions

    def run(at: datetime = SIX, *, now: datetime | None = None, launch: bool = True) -> list[dg.RunRequest]:
        definitions = build_definitions(load_settings())
        monkeypatch.setattr(module.time, "time", lambda: (now or at).timestamp())
        # Entered, so that the instance which it opens for itself lives as long as the tick.
        with dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=at,
            repository_def=definitions.get_repository_def(),
            resources={"raynest": RaynestResource()},
        ) as context:
            result = definitions.resolve_schedule_def("daily_batch").evaluate_tick(context)
        run.skipped = result.skip_message or ""  # type: ignore[attr-defined]
        for request in result.run_requests or []:
            if launch and not instance.get_runs(dg.RunsFilter(tags={"run_key": request.run_key})):
                job = definitions.resolve_job_def("generate_batch")
                instance.create_run_for_job(job, tags={**request.tags, "run_key": str(request.run_key)})
        return list(result.run_requests or [])

    return run


def keys(requests: list[dg.RunRequest]) -> list[str]:
    return [str(request.partition_key) for request in requests]


def test_a_tick_is_one_run_of_the_days_own_batch(tick: Tick, instance: dg.DagsterInstance) -> None:
    for _ in range(2):
        (request,) = tick()
        assert request.run_key == request.partition_key == "daily-2026-03-09"
        assert instance.get_dynamic_partitions("batches") == ["daily-2026-03-09"]
    assert request.tags == {
        **request.tags,
        BATCH_TAG: "daily-2026-03-09",
        SCHEDULE_TAG: "daily_batch",
        DAY_TAG: "2026-03-09",
        IMAGES_TAG: "2",
    }


def test_the_prompts_of_that_moment_are_the_batchs_own(tick: Tick, home: Path) -> None:
    tick()
    (home.parent / "prompts.csv").write_text("prompt\nsomething else\n")
    assert (home / "images" / "daily-2026-03-09" / "prompts.csv").read_text() == PROMPTS


def test_the_schedule_has_prompts_of_its_own_if_it_wants(
    tick: Tick, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "set.yaml").write_text(
        'templates: ["a {colour} apple"]\nvariables:\n  colour: [red, green, blue]\n'
    )
    monkeypatch.setenv("RAYNEST_SCHEDULE__PROMPTS", str(tmp_path / "set.yaml"))
    (request,) = tick()
    assert request.tags[IMAGES_TAG] == "3"
    assert (home / "images" / "daily-2026-03-09" / "prompts.yaml").is_file()


def test_the_day_is_that_of_the_schedules_time_zone(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYNEST_SCHEDULE__CRON", "30 0 * * *")
    monkeypatch.setenv("RAYNEST_SCHEDULE__TIMEZONE", "Asia/Shanghai")
    assert keys(tick(datetime(2026, 3, 8, 16, 30, tzinfo=UTC))) == ["daily-2026-03-09"]


def test_every_hour_has_a_batch_of_its_own(tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYNEST_SCHEDULE__CRON", "0 * * * *")
    found = [keys(tick(SIX + timedelta(hours=hour))) for hour in range(2)]
    assert found == [["daily-2026-03-09T0600Z"], ["daily-2026-03-09T0700Z"]]


class TestSeeds:
    def seeds(self, home: Path, day: int) -> dict[str, int]:
        (own,) = (home / "images" / f"daily-2026-03-{day:02}").glob("prompts.*")
        return {prompt.id: prompt.seed for prompt in open_prompts(own)}

    def test_as_they_are_unless_asked(self, tick: Tick, home: Path) -> None:
        for day in (9, 10):
            tick(SIX.replace(day=day))
        assert self.seeds(home, 9) == self.seeds(home, 10) and self.seeds(home, 9)["a"] == 5

    def test_others_every_day_and_the_same_for_the_same_day(
        self, tick: Tick, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__VARY_SEEDS", "true")
        for day in (9, 10):
            tick(SIX.replace(day=day))
        first, second = self.seeds(home, 9), self.seeds(home, 10)
        assert first.keys() == second.keys() == {"a", "b"}
        assert not set(first.values()) & set(second.values())
        tick()
        assert self.seeds(home, 9) == first

    def test_all_else_stays(self, tick: Tick, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__VARY_SEEDS", "true")
        tick()
        (own,) = (home / "images" / "daily-2026-03-09").glob("prompts.*")
        for before, after in zip(open_prompts(home.parent / "prompts.csv"), open_prompts(own), strict=True):
            assert (after.id, after.prompt, after.size) == (before.id, before.prompt, before.size)
            assert {k: v for k, v in after.extra.items() if v} == {k: v for k, v in before.extra.items() if v}


class TestCatchUp:
    def test_a_late_tick_is_skipped_with_its_reason(
        self, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__CATCH_UP", "skip")
        assert tick(now=SIX + timedelta(hours=3)) == []
        assert "180 minutes late" in tick.skipped  # type: ignore[attr-defined]

    def test_all_days_since_the_last_batch(self, tick: Tick, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__CATCH_UP", "all")
        tick(SIX.replace(day=5))
        assert keys(tick()) == [f"daily-2026-03-0{day}" for day in (6, 7, 8, 9)]

    def test_killed_before_the_runs_were_launched_nothing_is_lost(
        self, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__CATCH_UP", "all")
        tick(SIX.replace(day=7))
        owed = ["daily-2026-03-08", "daily-2026-03-09"]
        assert keys(tick(launch=False)) == owed
        assert keys(tick()) == owed


class TestCap:
    def test_a_tick_that_would_pass_it_is_skipped_with_its_reason(
        self, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__CRON", "0 * * * *")
        monkeypatch.setenv("RAYNEST_SCHEDULE__MAX_IMAGES_PER_DAY", "5")
        counts = [len(tick(SIX + timedelta(hours=hour))) for hour in range(3)]
        assert counts == [1, 1, 0]
        assert "4 of 5 are asked for" in tick.skipped  # type: ignore[attr-defined]
        assert len(tick(SIX + timedelta(days=1))) == 1, "another day has room again"

    def test_a_tick_that_comes_again_does_not_count_itself(
        self, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYNEST_SCHEDULE__MAX_IMAGES_PER_DAY", "2")
        assert [len(tick()) for _ in range(2)] == [1, 1]


class TestWrong:
    def test_without_a_chain_there_is_nothing_to_draw_on(self, tick: Tick) -> None:
        want(load_settings(), False)
        assert tick() == [] and "raynest up" in tick.skipped  # type: ignore[attr-defined]

    def test_prompts_that_are_wrong_fail_the_tick_with_their_defects(
        self, tick: Tick, home: Path, instance: dg.DagsterInstance
    ) -> None:
        (home.parent / "prompts.csv").write_text("id,prompt\na,\n")
        with pytest.raises(Exception) as told:
            tick()
        assert isinstance(told.value.__cause__, dg.Failure), told.value
        assert "prompts.csv, line 2" in str(told.value.__cause__.description)
        assert instance.get_dynamic_partitions("batches") == []

    def test_a_cron_or_zone_that_is_none_is_an_error_of_the_settings(self, tmp_path: Any) -> None:
        from raynest_pipeline.errors import SettingsError

        for schedule in (
            {"cron": "61 * * * *"},
            {"cron": "@daily"},
            {"cron": "0 0 0 6 * *"},
            {"timezone": "Mars"},
        ):
            with pytest.raises(SettingsError, match=f"schedule.{next(iter(schedule))}"):
                load_settings(schedule=schedule)
