"""The batches as an asset: one partition per batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.endpoint import Route
from raynest_pipeline.dagster_home import pid_tag
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.images.checks import (
    check_specs,
    earlier_paces,
    pace_check,
    pace_of,
    same_seed_check,
    stored_checks,
    together,
)
from raynest_pipeline.defs.images.metadata import batch_metadata, price_of
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.images.tags import BATCH_TAG, CLUSTER_TAG, cluster_on_record, price_on_record
from raynest_pipeline.defs.progress import tell
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import AccessError, InputError, NotReadyError, RaynestError, UnreachableError
from raynest_pipeline.images.again import Again, paint_again
from raynest_pipeline.images.batch import Outcome, batch_prompts, run_batch
from raynest_pipeline.images.batch_store import open_batch, root_of
from raynest_pipeline.images.bulk.engine import ray_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.result import Progress, too_many_failed
from raynest_pipeline.settings import Settings

BATCH_IMAGES = "batch_images"
GROUP = "images"
LOG_EVERY_SECONDS = 10.0
ENDPOINT_GONE = (NotReadyError, AccessError, UnreachableError)
POOL = "gpu_endpoint"
"""So many runs draw at a time as dagster.yaml gives this pool."""


class BatchConfig(dg.Config):
    """What a run of a batch may be told."""

    prompts: str | None = Field(
        None, description="Prompt file or prompt set. Unset: the batch's own copy, else batch.prompts."
    )
    out: str | None = Field(None, description="Folder or URL for batches. Unset: the settings' output.")
    engine: str | None = Field(
        None,
        pattern="^(http|ray)$",
        description="http: this run asks the endpoint. ray: a Ray Job makes it. Unset: batch.engine.",
    )


@dataclass(frozen=True)
class Finished:
    """What goes on record of a batch."""

    metadata: Mapping[str, dg.MetadataValue]
    checks: Sequence[dg.AssetCheckResult]


def build_batch_images(ray_service: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """The `batch_images` asset, downstream of the service that draws."""

    @dg.asset(
        name=BATCH_IMAGES,
        deps=[ray_service],
        partitions_def=BATCHES,
        group_name=GROUP,
        kinds={"ray", "image"},
        owners=["team:creators"],
        pool=POOL,
        check_specs=check_specs(BATCH_IMAGES),
        description="Prompts in; images, manifest.jsonl and a contact sheet out. One partition per batch. "
        "What is there already is not made again.",
    )
    def batch_images(
        context: dg.AssetExecutionContext, config: BatchConfig, raynest: RaynestResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        return _batches(context, config, raynest)

    # The decorator's own parameter for this is in beta, and warns.
    return batch_images.with_attributes(backfill_policy=_backfill_policy(settings.batch.batches_per_run))


def _backfill_policy(batches_per_run: int) -> dg.BackfillPolicy:
    if batches_per_run == 0:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=batches_per_run)


def _batches(
    context: dg.AssetExecutionContext, config: BatchConfig, raynest: RaynestResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """All batches of the run. One that fails does not keep the others from being made, unless none can be."""
    keys = list(context.partition_keys)
    cluster = cluster_on_record(context.instance)
    tags = {**pid_tag(), **({BATCH_TAG: keys[0]} if len(keys) == 1 else {})}
    context.instance.add_run_tags(context.run.run_id, {**tags, **({CLUSTER_TAG: cluster} if cluster else {})})
    done: dict[str, Finished] = {}
    failures: list[RaynestError] = []
    with as_failure():
        if config.prompts and len(keys) > 1:
            raise InputError(
                f"One prompt file cannot be {len(keys)} batches.",
                fix="Leave `prompts` out: each has its own.",
            )
        try:
            for key in keys:
                try:
                    done[key] = _finish(context, config, raynest.chain(), key)
                except ENDPOINT_GONE:
                    # The batches after this one would each wait as long, for the same answer.
                    raise
                except RaynestError as error:
                    context.log.error(f"{key}: {error}")
                    failures.append(error)
            if failures:
                raise failures[0]
        except BaseException:
            # Also when the run is cancelled: what is finished is finished.
            _put_on_record(context, done)
            raise
    check_results = together([(key, batch.checks) for key, batch in done.items()])
    if len(keys) == 1:
        return dg.MaterializeResult(metadata=done[keys[0]].metadata, check_results=check_results)
    for key, batch in done.items():
        context.add_asset_metadata(batch.metadata, partition_key=key)
    return dg.MaterializeResult(check_results=check_results)


def _put_on_record(context: dg.AssetExecutionContext, done: Mapping[str, Finished]) -> None:
    """The batches that are finished in a run that fails for another one."""
    for key, batch in done.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, metadata=batch.metadata, partition=key))


def _finish(context: dg.AssetExecutionContext, config: BatchConfig, chain: Chain, key: str) -> Finished:
    """One batch: made, measured and checked.

    Raises:
        BatchError: More images failed than the settings allow.
        NotReadyError: The chain isn't up, or the batch was stopped.
    """
    settings = chain.settings
    earlier = earlier_paces(context.instance, context.asset_key)
    outcome = _make(context, config, chain, key)
    result = outcome.result
    tell(outcome)
    failure = too_many_failed(result, settings.batch.max_failed_share)
    if failure is not None:
        raise failure
    if result.stopped:
        raise NotReadyError("The batch was stopped.", fix="Run it again: it goes on where it stopped.")
    return Finished(
        batch_metadata(outcome, settings, price_on_record(context.instance)),
        [
            *stored_checks(outcome.folder, outcome.images, outcome.summary.finished),
            same_seed_check(_again(outcome, chain)),
            pace_check(pace_of(result), earlier, settings.batch.min_pace_share),
        ],
    )


def _again(outcome: Outcome, chain: Chain) -> Again:
    """The last image that this run made, asked for again: an earlier one may be of an earlier model."""
    if not chain.settings.batch.check_same_seed:
        return Again(reason="batch.check_same_seed is off")
    made = (r for r in latest_records(outcome.folder, finished=True) if r.status == "made")
    record = max(made, key=lambda r: r.made_at, default=None) if outcome.result.made else None
    if record is None:
        return Again(reason="no image was made in this run")
    first = outcome.folder.read(str(record.file))
    try:
        return chain.through_endpoint(
            lambda route: paint_again(route.target, record, first, chain.settings.batch, chain.clock)
        )
    except RaynestError as error:
        return Again(record.id, reason=error.what)


def _make(context: dg.AssetExecutionContext, config: BatchConfig, chain: Chain, key: str) -> Outcome:
    settings = chain.settings
    root = root_of(config.out or settings.output_dir)
    folder = open_batch(root, key)
    # The whole prompt file is checked before the endpoint is even looked for.
    prompts = batch_prompts(folder, Path(config.prompts) if config.prompts else None, settings.batch.prompts)
    logged = -LOG_EVERY_SECONDS

    def on_progress(progress: Progress) -> None:
        nonlocal logged
        tell(progress)
        over = progress.total is not None and progress.done >= progress.total
        if over or progress.seconds - logged >= LOG_EVERY_SECONDS:
            logged = progress.seconds
            context.log.info(f"images: {progress}")

    engine = config.engine or settings.batch.engine
    # Whether the cluster reaches the output is known before anything is sent there.
    job = ray_batch(settings, folder.batch_id, str(root), prompts.sha256) if engine == "ray" else None

    def work(route: Route) -> Outcome:
        context.log.info(f"{len(prompts)} images from {prompts.path} through {route.description}")
        return run_batch(
            folder,
            prompts,
            route.target,
            settings.batch,
            model=settings.ray_service.model,
            price=price_of(settings, price_on_record(context.instance)),
            on_ray=job,
            on_progress=on_progress,
            on_log=lambda line: context.log.info(f"ray job: {line}"),
        )

    return chain.through_dashboard(work) if job is not None else chain.through_endpoint(work)
