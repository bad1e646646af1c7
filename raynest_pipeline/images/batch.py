"""One batch from a prompt file to its contact sheet: what the asset and the command line both run."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.engine import OnProgress, generate
from raynest_pipeline.images.manifest import Record, read_manifest
from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.result import BatchResult
from raynest_pipeline.images.sheet import inline_sheet, write_sheet
from raynest_pipeline.images.store import BatchFolder, storage_error
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch

PROMPTS = "prompts"
"""The batch's own copy of its prompts, beside the images: `prompts.csv`, .jsonl or .txt. With it a batch
can be made again when the file it came from has gone or changed."""


@dataclass(frozen=True)
class Outcome:
    """A run of a batch, and what lies in its folder now."""

    result: BatchResult
    folder: BatchFolder
    records: Sequence[Record]
    """The latest of each prompt of the batch, in the prompts' order."""
    images: int
    """Images that the prompts ask for."""

    @property
    def inline_sheet(self) -> str:
        """A small contact sheet as markdown."""
        return inline_sheet(self.folder, self.records)


def batch_id_for(prompts: PromptFile) -> str:
    """The batch that a prompt file is: its name and content, so that the same file is the same batch.

    Example: `prompts-1f6e0a2b`.
    """
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in prompts.path.stem)
    return f"{stem.strip('-_')[:60] or 'batch'}-{prompts.sha256[:8]}"


def batch_prompts(folder: BatchFolder, given: Path | None, default: Path) -> PromptFile:
    """The prompts of a batch, checked from end to end: those given, else the batch's own, else the default.

    Raises:
        InputError: There are none, or they have defects.
    """
    own = next(iter(sorted(folder.path.glob(f"{PROMPTS}.*"))), None)
    path = given or own or default
    if not path.exists():
        raise InputError(
            f"The prompt file {path} does not exist.",
            fix="Name one: `raynest generate --prompts FILE`, or set batch.prompts.",
        )
    return open_prompts(path)


def run_batch(
    folder: BatchFolder,
    prompts: PromptFile,
    target: HttpTarget,
    settings: Batch,
    *,
    model: str = "",
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Make what is missing of a batch, and draw its contact sheet.

    Args:
        folder: Of the batch.
        prompts: Checked.
        target: The endpoint.
        settings: See `engine.generate`, whose errors this raises, too.
        model: For an endpoint that does not name its model.
    """
    _keep_copy(folder, prompts)
    result = generate(
        prompts, target, folder, settings, model=model, on_progress=on_progress, should_stop=should_stop
    )
    latest = {record.id: record for record in read_manifest(folder.manifest_path)}
    records = [latest[prompt.id] for prompt in prompts if prompt.id in latest]
    write_sheet(folder, records)
    return Outcome(result, folder, records, len(prompts))


def _keep_copy(folder: BatchFolder, prompts: PromptFile) -> None:
    own = folder.path / f"{PROMPTS}{prompts.path.suffix.lower()}"
    if own == prompts.path.absolute():
        return
    try:
        part = own.with_name(f".part-{own.name}")
        shutil.copyfile(prompts.path, part)
        part.replace(own)
        for other in folder.path.glob(f"{PROMPTS}.*"):
            if other != own:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, own) from None
