"""Jobs on the chain. One process each: five short steps don't need a process of their own."""

from typing import Any

import dagster as dg

from raynest_pipeline.dagster_home import pid_tag
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.progress import log_steps, tell
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import NotReadyError

AssetJob = Any
"""What `define_asset_job` returns; Dagster exports no name for it."""

CHANGES_CHAIN = {"raynest/changes": "chain"}
"""Tag of the runs that change the chain; the sensor starts none while one is queued or running."""

PROVISION = "provision"
REDEPLOY = "redeploy"
PLAN = "plan"
TEARDOWN = "teardown"


def build_asset_jobs(
    links: list[dg.AssetsDefinition], *, before: list[dg.AssetsDefinition]
) -> list[AssetJob]:
    """`provision` and `redeploy` over these links; `before` (the preflight) is part of the first only."""
    return [
        dg.define_asset_job(
            PROVISION,
            selection=dg.AssetSelection.assets(*before, *links),
            description="The whole chain, from nothing to a served model. What is ready is reused.",
            tags=CHANGES_CHAIN,
            executor_def=dg.in_process_executor,
        ),
        dg.define_asset_job(
            REDEPLOY,
            selection=dg.AssetSelection.assets(*links),
            description="Make every link ready again. The cluster_health sensor starts it, from the first "
            "broken link on.",
            tags=CHANGES_CHAIN,
            executor_def=dg.in_process_executor,
        ),
    ]


@dg.op(description="What `provision` would change, without changing it.")
def show_plan(context: dg.OpExecutionContext, raynest: RaynestResource) -> None:
    with as_failure():
        changes = raynest.chain(start_sandbox=True).plan()
    for change in changes:
        context.log.info(
            f"{change.link}: {change.action}: {change.what}" + (f" ({change.why})" if change.why else "")
        )
    table = dg.MetadataValue.table(
        records=[
            dg.TableRecord({"link": c.link, "action": c.action, "what": c.what, "why": c.why})
            for c in changes
        ]
    )
    context.add_output_metadata({"plan": table})
    tell(changes)


@dg.op(description="Remove every link, last one first, and audit what is left.")
def take_down(context: dg.OpExecutionContext, raynest: RaynestResource) -> None:
    context.instance.add_run_tags(context.run.run_id, pid_tag())
    with as_failure():
        done = raynest.chain().teardown(log_steps(context.log))
        for change in done.changes:
            context.log.info(f"{change.link}: {change.action}: {change.what}")
        context.add_output_metadata({"removed": len(done.changes), "left": ", ".join(done.left) or "nothing"})
        tell(done)
        if done.left:
            raise NotReadyError(
                "Something is left that may cost money: " + "; ".join(done.left),
                fix="Run `raynest down` again, or remove it in the console.",
            )


@dg.job(
    name=PLAN,
    description="What `provision` would change, without changing it: in the log, and as a table.",
    executor_def=dg.in_process_executor,
)
def plan_job() -> None:
    show_plan()


@dg.job(
    name=TEARDOWN,
    description="Remove what raynest made (and only that), and audit what is left.",
    tags=CHANGES_CHAIN,
    executor_def=dg.in_process_executor,
)
def teardown_job() -> None:
    take_down()
