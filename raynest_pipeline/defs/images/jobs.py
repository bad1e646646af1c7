"""The job that makes a batch and its page."""

from typing import Any

import dagster as dg

GENERATE = "generate_batch"


def build_generate_job(batch_images: dg.AssetsDefinition, gallery: dg.AssetsDefinition) -> Any:
    """`generate_batch`: one batch, one partition."""
    return dg.define_asset_job(
        GENERATE,
        selection=dg.AssetSelection.assets(batch_images, gallery),
        description="Make what is missing of one batch, and its gallery page. The partition is the batch.",
        executor_def=dg.in_process_executor,
    )
