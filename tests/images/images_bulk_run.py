"""One run of the engine `ray` against a scripted cluster, for tests."""

from collections.abc import Callable
from typing import Any

from raynest_pipeline.images.bulk.engine import RayBatch, generate_on_ray
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.result import BatchResult

PLAN = Plan(batch_id="b1", root="oss://bucket/out", prompts_sha256="0" * 64)
BATCH = RayBatch(PLAN, ("torch==2.13.0", "diffusers"))
Script = Callable[..., Any]


def run(dashboard: Any, clock: Any, batch: RayBatch = BATCH, **more: Any) -> BatchResult:
    return generate_on_ray(batch, dashboard.target, clock=clock, **more)
