"""The end of a run of a batch, while it is still held: what is made from its manifest."""

from collections.abc import Iterable

from raynest_pipeline.images.batch_store import PARQUET, SHEET, BatchStore
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.parquet_copy import write_parquet
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.sheet import write_sheet
from raynest_pipeline.images.summary import Summary, summarize


def finish_batch(store: BatchStore, manifest: Manifest, *, other_prompts: bool = False) -> Summary:
    """See that every image is there, and write contact sheet and Parquet copy, unless all are as they were.

    Args:
        store: Held by the caller.
        manifest: Of the store; its images of this run have been looked at or made through it.
        other_prompts: The batch had other prompts before.

    Raises:
        StorageError: Something cannot be read or written; the images are kept.
    """
    changed = manifest.unfinished
    if changed:
        manifest.survey(store.entries())
    summary = summarize(manifest)
    there = set(store.names())
    if changed or other_prompts or SHEET not in there:
        write_sheet(store, summary)
    if changed or PARQUET not in there:
        write_parquet(store, manifest.records())
        if manifest.shared is not None:
            manifest.shared.publish(manifest.records(finished=True))
        manifest.settle()
    return summary


def finish_made_elsewhere(store: BatchStore, prompts: Iterable[Prompt], *, other_prompts: bool) -> Summary:
    """The same for a batch whose images another process has made, on the cluster.

    Raises:
        RefusedError: That process, or another, is still at it.
        StorageError: As `finish_batch`.
    """
    with store.exclusive(), store.open_manifest() as manifest:
        manifest.survey(store.entries())
        for prompt in prompts:
            manifest.look_at(prompt.id)
        return finish_batch(store, manifest, other_prompts=other_prompts)
