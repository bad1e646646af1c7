"""`raynest demo`: everything, once, with a verdict at the end."""

import time
from pathlib import Path

from rich.console import Console

from raynest_pipeline.cli.view import View, times_table
from raynest_pipeline.dagster_home import packaged
from raynest_pipeline.errors import BatchError, RefusedError
from raynest_pipeline.images.batch import Outcome
from raynest_pipeline.settings import Profile, Settings


def run_demo(settings: Settings, prompts: Path | None, out_dir: str | None, out: Console) -> None:
    """Provision, generate, verify, and tell.

    Raises:
        RefusedError: The profile is a cloud account's.
        RaynestError: Whatever stopped it; an image that is missing or damaged is a `BatchError`.
    """
    from raynest_pipeline.cli.app import run_generate
    from raynest_pipeline.cli.jobs import run_job
    from raynest_pipeline.defs.chain.jobs import PROVISION

    if settings.profile is Profile.ALIBABA:
        raise RefusedError(
            "`raynest demo` does not run in a cloud account: it would buy a cluster without asking.",
            fix="For that there are `raynest plan`, `up` and `generate`; for the demo unset `profile`.",
        )
    started = time.monotonic()
    view = View()
    run_job(settings, PROVISION, view)
    batch_view = View()
    outcome: Outcome = run_generate(
        settings, prompts or packaged("examples") / "prompts.csv", out_dir, None, batch_view
    )
    require_complete(outcome)
    out.print(times_table(view.links))
    result = outcome.result
    reused = f", {result.reused} reused" if result.reused else ""
    rows = {
        "images": f"{outcome.images} ({result.made} made{reused}) in {result.seconds:.1f} s",
        "model": result.model or settings.ray_service.model,
        "folder": f"{outcome.folder.place()}/images",
        "sheet": str(outcome.folder.sheet_path),
        "UI": "make dev   (or: raynest dev), then http://127.0.0.1:3000",
        "next": 'raynest imagine "a blue square" -o output.png   ·   raynest status   ·   raynest down',
        "total": f"{time.monotonic() - started:.1f} s",
    }
    for key, text in rows.items():
        out.print(f"{key + ':':<8}{text}", soft_wrap=True)


def require_complete(outcome: Outcome) -> None:
    """Raise unless every image of the batch is in its folder, whole.

    Raises:
        BatchError: How many are missing, and the first of those whose file is damaged.
    """
    missing = outcome.images - outcome.summary.whole
    if missing:
        raise BatchError(
            f"{missing} of {outcome.images} images are missing or damaged.",
            why=f"Damaged: {', '.join(outcome.summary.damaged_ids)}." if outcome.summary.damaged_ids else "",
            fix="Run the same command again: it makes only what is missing.",
        )
