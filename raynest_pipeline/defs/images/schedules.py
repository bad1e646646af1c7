"""The batch of every day, or of every hour."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from raynest_pipeline.chain.intent import is_wanted
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.images.tags import BATCH_TAG, DAY_TAG, IMAGES_TAG, SCHEDULE_TAG
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.images.arrivals import keep_prompts, keep_reseeded
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.ticks import batch_of, day_of, due, within_cap
from raynest_pipeline.settings import Settings

DAILY = "daily_batch"
MOST_RUNS = 300
"""Runs looked at to see which ticks have been served; more than `schedule.max_catch_up` may be."""


def build_daily_schedule(job: Any, settings: Settings) -> dg.ScheduleDefinition:
    """`daily_batch`: a batch for each tick, under an id of its own. Off until it is started."""

    @dg.schedule(
        name=DAILY,
        job=job,
        cron_schedule=settings.schedule.cron,
        execution_timezone=settings.schedule.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"A batch of {settings.schedule.prompts or settings.batch.prompts} per tick, as "
        "partition daily-YYYY-MM-DD (with the time where there may be several a day).",
    )
    def daily_batch(
        context: dg.ScheduleEvaluationContext, raynest: RaynestResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        with as_failure():
            return _tick(context, raynest.settings())

    return daily_batch


def _tick(context: dg.ScheduleEvaluationContext, settings: Settings) -> list[dg.RunRequest] | dg.SkipReason:
    own = settings.schedule
    if not is_wanted(settings):
        return dg.SkipReason("the chain is not up (raynest up)")
    wanted = due(
        own.cron,
        context.scheduled_execution_time.astimezone(ZoneInfo(own.timezone)),
        now=datetime.fromtimestamp(time.time(), UTC),
        batches=batches_asked_for(context.instance),
        catch_up=own.catch_up,
        late=timedelta(seconds=own.late_seconds),
        most=own.max_catch_up,
    )
    if not wanted.ticks:
        return dg.SkipReason(wanted.skipped)
    prompts = open_prompts(own.prompts or settings.batch.prompts)
    days = {day_of(tick) for tick in wanted.ticks}
    ids = {batch_of(tick, own.cron) for tick in wanted.ticks}
    asked_for = {day: images_asked_for(context.instance, day, besides=ids) for day in days}
    ticks, reasons = within_cap(wanted.ticks, len(prompts), asked_for, own.max_images_per_day)
    for reason in reasons:
        context.log.info(reason)
    if not ticks:
        return dg.SkipReason("; ".join(reasons))
    return [
        _request(context.instance, settings, prompts, batch_of(tick, own.cron), day_of(tick))
        for tick in ticks
    ]


def _request(
    instance: dg.DagsterInstance, settings: Settings, prompts: PromptFile, batch: str, day: str
) -> dg.RunRequest:
    store = open_batch(settings.output_dir, batch)
    if settings.schedule.vary_seeds:
        keep_reseeded(store, prompts)
    else:
        keep_prompts(store, prompts.path)
    # A schedule's result cannot ask for a new partition, so it is added here; adding twice is harmless.
    instance.add_dynamic_partitions(str(BATCHES.name), [batch])
    tags = {BATCH_TAG: batch, SCHEDULE_TAG: DAILY, DAY_TAG: day, IMAGES_TAG: str(len(prompts))}
    return dg.RunRequest(run_key=batch, partition_key=batch, tags=tags)


def batches_asked_for(instance: dg.DagsterInstance) -> set[str]:
    """The latest batches that the schedule has runs for.

    Not partitions: one may be all that a killed tick left.
    """
    runs = instance.get_runs(dg.RunsFilter(tags={SCHEDULE_TAG: DAILY}), limit=MOST_RUNS)
    return {run.tags.get(BATCH_TAG, "") for run in runs}


def images_asked_for(instance: dg.DagsterInstance, day: str, besides: set[str]) -> int:
    """Images of the schedule's runs of a day, each batch counted once, without the batches `besides`."""
    runs = instance.get_runs(dg.RunsFilter(tags={SCHEDULE_TAG: DAILY, DAY_TAG: day}))
    counts = {run.tags.get(BATCH_TAG, ""): int(run.tags.get(IMAGES_TAG, "0")) for run in runs}
    return sum(count for batch, count in counts.items() if batch not in besides)
