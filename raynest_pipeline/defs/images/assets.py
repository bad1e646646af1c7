"""The batches as an asset: one partition per batch."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.endpoint import Route
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.images.checks import check_results, check_specs
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.progress import tell
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import NotReadyError
from raynest_pipeline.images.batch import Outcome, batch_prompts, run_batch
from raynest_pipeline.images.result import Progress, too_many_failed
from raynest_pipeline.images.store import BatchFolder

GROUP = "images"
LOG_EVERY_SECONDS = 10.0
FAILURES_SHOWN = 20


class BatchConfig(dg.Config):
    """What a run of a batch may be told."""

    prompts: str | None = Field(
        None, description="Prompt file (CSV, JSONL, TXT). Unset: the batch's own copy, else batch.prompts."
    )
    out: str | None = Field(None, description="Folder for batches. Unset: the settings' output folder.")


def build_batch_images(ray_service: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """The `batch_images` asset, downstream of the service that draws."""

    @dg.asset(
        name="batch_images",
        deps=[ray_service],
        partitions_def=BATCHES,
        group_name=GROUP,
        kinds={"ray", "image"},
        owners=["team:creators"],
        check_specs=check_specs("batch_images"),
        description="Prompts in; PNGs, manifest.jsonl and a contact sheet out. One partition per batch. "
        "What is there already is not made again.",
    )
    def batch_images(
        context: dg.AssetExecutionContext, config: BatchConfig, raynest: RaynestResource
    ) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with as_failure():
            outcome = _make(context, config, raynest.chain())
            result = outcome.result
            tell(outcome)
            failure = too_many_failed(result, raynest.settings().batch.max_failed_share)
            if failure is not None:
                raise failure
            if result.stopped:
                raise NotReadyError(
                    "The batch was stopped.", fix="Run it again: it goes on where it stopped."
                )
        return dg.MaterializeResult(metadata=_metadata(outcome), check_results=check_results(outcome))

    return batch_images


def _make(context: dg.AssetExecutionContext, config: BatchConfig, chain: Chain) -> Outcome:
    settings = chain.settings
    root = Path(config.out).expanduser().absolute() if config.out else settings.output_dir
    folder = BatchFolder(root, context.partition_key)
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

    def work(route: Route) -> Outcome:
        context.log.info(f"{len(prompts)} images from {prompts.path} through {route.description}")
        return run_batch(
            folder,
            prompts,
            route.target,
            settings.batch,
            model=settings.ray_service.model,
            on_progress=on_progress,
        )

    return chain.through_endpoint(work)


def _metadata(outcome: Outcome) -> dict[str, dg.MetadataValue]:
    result = outcome.result
    rows = [
        dg.TableRecord({"id": f.id, "reason": f.reason[:200], "attempts": f.attempts})
        for f in result.failures[:FAILURES_SHOWN]
    ]
    columns = [
        dg.TableColumn("id", "string"),
        dg.TableColumn("reason", "string"),
        dg.TableColumn("attempts", "int"),
    ]
    metadata: dict[str, dg.MetadataValue] = {
        # Its name sorts first: the picture is what a visitor looks for.
        "a_contact_sheet": dg.MetadataValue.md(outcome.inline_sheet),
        "folder_path": dg.MetadataValue.path(str(outcome.folder.path)),
        "sheet_path": dg.MetadataValue.path(str(outcome.folder.sheet_path)),
        "manifest_path": dg.MetadataValue.path(str(outcome.folder.manifest_path)),
        "images": dg.MetadataValue.int(outcome.images),
        "made": dg.MetadataValue.int(result.made),
        "reused": dg.MetadataValue.int(result.reused),
        "failed": dg.MetadataValue.int(result.failed),
        "seconds": dg.MetadataValue.float(round(result.seconds, 2)),
        "images_per_second": dg.MetadataValue.float(round(result.images_per_second, 3)),
        "model": dg.MetadataValue.text(result.model or "not told by the endpoint"),
    }
    if result.p50_latency_ms is not None and result.p95_latency_ms is not None:
        metadata["p50_latency_ms"] = dg.MetadataValue.float(result.p50_latency_ms)
        metadata["p95_latency_ms"] = dg.MetadataValue.float(result.p95_latency_ms)
    if rows:
        metadata["failures"] = dg.MetadataValue.table(rows, dg.TableSchema(columns))
    if result.ignored:
        metadata["ignored_parameters"] = dg.MetadataValue.text(", ".join(result.ignored))
    return metadata
