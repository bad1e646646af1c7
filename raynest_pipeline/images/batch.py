"""One batch from a prompt file to its contact sheet: what the asset and the command line both run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.batch_store import BatchStore
from raynest_pipeline.images.bulk.engine import RayBatch, generate_on_ray
from raynest_pipeline.images.bulk.follow import OnLog
from raynest_pipeline.images.engine import OnProgress, generate
from raynest_pipeline.images.finish import finish_batch, finish_made_elsewhere
from raynest_pipeline.images.kept import PROMPTS, has_copy, keep_copy, kept_prompts
from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.result import BatchResult, HourlyPrice
from raynest_pipeline.images.sheet import inline_sheet
from raynest_pipeline.images.summary import Summary
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch

__all__ = ["PROMPTS", "Outcome", "batch_id_for", "batch_id_of", "batch_prompts", "run_batch"]


@dataclass(frozen=True)
class Outcome:
    """A run of a batch, and what lies in its folder now."""

    result: BatchResult
    folder: BatchStore
    summary: Summary
    """Counts, and a selection of the records; all of them: `manifest.latest_records(folder)`."""
    images: int
    """Images that the prompts ask for."""

    @property
    def inline_sheet(self) -> str:
        """A small contact sheet as markdown."""
        return inline_sheet(self.folder, self.summary)


def batch_id_for(prompts: PromptFile) -> str:
    """The batch that a prompt file is: its name and content, so that the same file is the same batch.

    Example: `prompts-1f6e0a2b`.
    """
    return batch_id_of(prompts.name, prompts.sha256)


def batch_id_of(name: str, sha256: str) -> str:
    """As `batch_id_for`, of a prompt file that nobody has read yet."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return f"{stem.strip('-_')[:60] or 'batch'}-{sha256[:8]}"


def batch_prompts(folder: BatchStore, given: Path | None, default: Path) -> PromptFile:
    """The prompts of a batch, checked from end to end: those given, else the batch's own, else the default.

    Raises:
        InputError: There are none, or they have defects.
    """
    path = given or kept_prompts(folder) or default
    if not path.exists():
        raise InputError(
            f"The prompt file {path} does not exist.",
            fix="Name one: `raynest generate --prompts FILE`, or set batch.prompts.",
        )
    return open_prompts(path)


def run_batch(
    folder: BatchStore,
    prompts: PromptFile,
    target: HttpTarget,
    settings: Batch,
    *,
    model: str = "",
    price: HourlyPrice | None = None,
    on_ray: RayBatch | None = None,
    on_progress: OnProgress | None = None,
    on_log: OnLog | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Make what is missing of a batch; draw its contact sheet, and write its Parquet copy.

    Args:
        folder: Of the batch.
        prompts: Checked.
        target: The endpoint; with `on_ray` the Ray dashboard.
        settings: See `engine.generate`, whose errors this raises, too.
        model: For an endpoint that does not name its model.
        price: Of the cluster, for the cost in the progress.
        on_ray: Make it as a Ray Job (`bulk.engine.generate_on_ray`, whose errors this raises, too).
        on_log: Hears what a Ray Job prints.
    """
    if on_ray is not None:
        # The job holds the batch itself, and takes its prompts from there: they must lie there before.
        other_prompts = not has_copy(folder, prompts)
        if other_prompts:
            with folder.exclusive():
                keep_copy(folder, prompts)
        result = generate_on_ray(
            on_ray, target, price=price, on_progress=on_progress, on_log=on_log, should_stop=should_stop
        )
        summary = finish_made_elsewhere(folder, prompts, other_prompts=other_prompts)
        return Outcome(result, folder, summary, len(prompts))
    kept: list[bool] = []
    summaries: list[Summary] = []
    result = generate(
        prompts,
        target,
        folder,
        settings,
        model=model,
        price=price,
        on_progress=on_progress,
        should_stop=should_stop,
        on_begin=lambda: kept.append(keep_copy(folder, prompts)),
        on_end=lambda manifest: summaries.append(finish_batch(folder, manifest, other_prompts=kept[0])),
    )
    return Outcome(result, folder, summaries[0], len(prompts))
