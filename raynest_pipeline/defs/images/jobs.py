"""The job that makes a batch, and the batch of every day."""

from typing import Any

import dagster as dg

from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.settings import Settings

GENERATE = "generate_batch"


def build_generate_job(batch_images: dg.AssetsDefinition) -> Any:
    """`generate_batch`: one batch, one partition."""
    return dg.define_asset_job(
        GENERATE,
        selection=dg.AssetSelection.assets(batch_images),
        description="Make what is missing of one batch. The partition is the batch.",
        executor_def=dg.in_process_executor,
    )


def build_daily_schedule(job: Any, settings: Settings) -> dg.ScheduleDefinition:
    """`daily_batch`: a batch a day of `batch.prompts`, under the day's own id. Off until it is started."""

    @dg.schedule(
        name="daily_batch",
        job=job,
        cron_schedule=settings.schedule.cron,
        execution_timezone=settings.schedule.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"A batch of {settings.batch.prompts} per tick, as partition daily-YYYY-MM-DD.",
    )
    def daily_batch(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        key = f"daily-{context.scheduled_execution_time:%Y-%m-%d}"
        # A schedule's result cannot ask for a new partition, so it is added here; adding twice is harmless.
        context.instance.add_dynamic_partitions(str(BATCHES.name), [key])
        return dg.RunRequest(run_key=key, partition_key=key)

    return daily_batch
