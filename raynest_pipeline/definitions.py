"""The composition root: what Dagster loads.

dagster dev -w workspace.yaml      (or: make dev)
"""

import dagster as dg

from raynest_pipeline.defs.chain import assets as chain_assets
from raynest_pipeline.defs.chain.jobs import build_asset_jobs, plan_job, teardown_job
from raynest_pipeline.defs.chain.sensors import build_cluster_health_sensor
from raynest_pipeline.defs.images.assets import GROUP, build_batch_images
from raynest_pipeline.defs.images.gallery import build_gallery
from raynest_pipeline.defs.images.inbox import build_inbox_sensor
from raynest_pipeline.defs.images.jobs import build_generate_job
from raynest_pipeline.defs.images.schedules import build_daily_schedule
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.settings import Profile, Settings, load_settings


def build_definitions(settings: Settings) -> dg.Definitions:
    """All definitions for these settings: profile `kubeconfig` has neither preflight nor the first links."""
    owned = settings.profile is not Profile.KUBECONFIG
    before = [chain_assets.preflight] if owned else []
    made = [chain_assets.cluster, chain_assets.public_ip, chain_assets.kubeconfig] if owned else []
    ray_service = chain_assets.ray_service_asset(made[-1:])
    batch_images = build_batch_images(ray_service, settings)
    gallery = build_gallery(batch_images, GROUP)
    generate = build_generate_job(batch_images, gallery)
    return dg.Definitions(
        assets=[*before, *made, ray_service, batch_images, gallery],
        jobs=[*build_asset_jobs([*made, ray_service], before=before), plan_job, teardown_job, generate],
        schedules=[build_daily_schedule(generate, settings)],
        sensors=[build_cluster_health_sensor(settings), build_inbox_sensor(settings)],
        resources={"raynest": RaynestResource()},
    )


defs = build_definitions(load_settings())
