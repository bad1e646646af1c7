"""On a worker: whether what was painted is the image asked for, and where it goes."""

import hashlib
import os
import socket
from typing import Any

from raynest_pipeline.errors import BatchError, RaynestError
from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.bulk.plan import Plan, words_of
from raynest_pipeline.images.bulk.todo import Row, failure, packed
from raynest_pipeline.images.quality import IncompleteImageError, WrongImageError, check_png
from raynest_pipeline.serving.contract import ImageRequest, Painting

FATAL = "fatal"
"""Key of an answer that ends the whole batch: an error (`plan.words_of`)."""


def open_store(plan: Plan) -> BatchStore:
    """The batch's store, as this node reaches it.

    Raises:
        StorageError: It does not.
    """
    return open_batch(plan.root, plan.batch_id)


class Keeper:
    """Stores verified images; the manifest is the driver's alone."""

    def __init__(self, plan: Plan) -> None:
        """Raises StorageError when this node does not reach the batch's store."""
        self._store = open_store(plan)
        self._worker = f"{socket.gethostname()}/{os.getpid()}"

    def settle(self, row: Row, painting: Painting, attempts: int, latency_ms: float) -> Row:
        """The answer for a painted row: its image is in the store, or why it is none.

        Raises:
            StorageError: Disk full, no permission.
            BatchError: Another model painted it than the batch began with.
        """
        if (painting.model, painting.revision) != (row["model"], row["revision"]):
            raise BatchError(
                f"The model changed during the batch, from {row['model']!r} {row['revision']} to "
                f"{painting.model!r} {painting.revision}.",
                fix="Run the batch again: it then makes all images with the new model.",
            )
        try:
            png = check_png(painting.data, row["size"])
        except (IncompleteImageError, WrongImageError) as error:
            why = " (safety checker)" if painting.filtered else ""
            return failure(row, f"the image {error}{why}", attempts, fruitless=not painting.filtered)
        stamp = self._store.write(row["file"], painting.data)
        return {
            **row,
            "status": "made",
            "attempts": attempts,
            "latency_ms": round(latency_ms, 1),
            "sha256": hashlib.sha256(painting.data).hexdigest(),
            "size_bytes": len(painting.data),
            "width": png.width,
            "height": png.height,
            "stamp": stamp,
            "worker": self._worker,
        }


def request_of(row: Row) -> ImageRequest:
    """What is asked of the painter for a row: the very values that its key was made of."""
    return ImageRequest(
        prompt=row["prompt"],
        seed=row["seed"],
        negative_prompt=row["negative_prompt"],
        size=row["size"],
        steps=row["steps"],
        guidance=row["guidance"],
    )


def table(answers: list[Row]) -> Any:
    """Answers as the block that Ray Data carries to the driver."""
    import pyarrow

    return pyarrow.table({"answers": pyarrow.array([packed(answers)], pyarrow.binary())})


def fatal(error: RaynestError) -> Row:
    """The answer with which a worker ends the batch."""
    return {FATAL: True, **words_of(error)}
