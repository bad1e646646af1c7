"""What a batch came to, in a few numbers and a few records, however many images it has."""

from collections.abc import Sequence
from dataclasses import dataclass

from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.record import Record

MOST_SHOWN = 60
"""Records kept for the contact sheet: of a larger batch, a selection at even distances."""
MOST_LISTED = 20


@dataclass(frozen=True)
class Summary:
    """The latest records of a batch's prompts.

    Attributes:
        finished: Images made or adopted, now or before.
        failed: Prompts whose latest record is a failure.
        damaged: Finished images that the store does not have as they were recorded.
        damaged_ids: The first of them.
        shown: Finished records by id; at most `MOST_SHOWN`, the first and the last included.
    """

    finished: int
    failed: int
    damaged: int = 0
    damaged_ids: tuple[str, ...] = ()
    shown: tuple[Record, ...] = ()

    @property
    def whole(self) -> int:
        """Finished images that the store has."""
        return self.finished - self.damaged

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Summary":
        """Of records in memory, whose files are taken for whole."""
        finished = sorted((r for r in records if r.file and r.status != "failed"), key=lambda r: r.id)
        shown = tuple(finished[i] for i in even(len(finished), MOST_SHOWN))
        return cls(len(finished), len(records) - len(finished), shown=shown)


def summarize(manifest: Manifest) -> Summary:
    """Of the prompts that this run has looked at, as the last survey found their files."""
    finished, failed = manifest.counts()
    damaged, ids = manifest.not_there(MOST_LISTED)
    shown = tuple(manifest.selected(even(finished, MOST_SHOWN)))
    return Summary(finished, failed, damaged, tuple(ids), shown)


def even(count: int, most: int) -> list[int]:
    """Up to `most` of the positions 0 to `count` - 1, at even distances, the first and the last included."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [0]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
