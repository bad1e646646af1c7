"""Runs a Dagster job in this process, on the instance that the UI shows."""

from collections.abc import Mapping
from typing import Any

from raynest_pipeline.cli.view import View
from raynest_pipeline.dagster_home import end_dead_runs, pid_tag, prepare_dagster_home
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.settings import Settings


def run_job(
    settings: Settings,
    job: str,
    view: View,
    *,
    partition: str | None = None,
    ops: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Execute `job` to its end; `view` hears of its progress.

    Args:
        settings: For DAGSTER_HOME; the job reads its own.
        job: Name of the job.
        view: Also keeps the results.
        partition: Partition key, for a partitioned job; added when it is new.
        ops: Config of ops by name.
        tags: More run tags.

    Raises:
        RaynestError: The job failed; the error that the failing step met.
        KeyboardInterrupt: Ctrl-C; the run is on record as cancelled.
    """
    prepare_dagster_home(settings)
    # Here, not at the top: `raynest --help` needn't load Dagster.
    import dagster as dg

    from raynest_pipeline.definitions import defs
    from raynest_pipeline.defs.images.partitions import BATCHES
    from raynest_pipeline.defs.progress import listening

    # Failures are shown by `view`, not as a log of Dagster's own.
    config = {"ops": dict(ops or {}), "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.get() as instance, listening(view), view:
        end_dead_runs(instance)
        if partition and not instance.has_dynamic_partition(str(BATCHES.name), partition):
            instance.add_dynamic_partitions(str(BATCHES.name), [partition])
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=partition,
            run_config=config,
            raise_on_error=False,
            tags={**pid_tag(), **(tags or {})},
        )
        if result.success:
            return
        run = instance.get_run_by_id(result.run_id)
    if (run is not None and run.status is dg.DagsterRunStatus.CANCELED) or _interrupted(result):
        raise KeyboardInterrupt
    if view.error is not None:
        raise view.error
    raise RaynestError(
        f"The job {job} failed.",
        why=_first_failure(result),
        fix=f"`raynest dev` shows run {result.run_id} with its log.",
    )


def _interrupted(result: Any) -> bool:
    """Whether Ctrl-C or a SIGTERM ended a step; Dagster records that as a failure of the step."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return any(data.error.cls_name == "DagsterExecutionInterruptedError" for data in failures)


def _first_failure(result: Any) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            cause = error.cause or error
            return str(cause.message).strip()
    return "no step failed; see the run's log"
