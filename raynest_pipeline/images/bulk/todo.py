"""What is missing of a batch: rows for the workers, and from their answers lines for the manifest."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from raynest_pipeline.images.batch_store import IMAGES, BatchStore
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.offer import ImageRequest, Offer, request_for
from raynest_pipeline.images.present import Present
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.result import Tally
from raynest_pipeline.settings_sections import Batch

Row = dict[str, Any]
"""A manifest record as JSON values, not yet settled; a worker fills in the rest."""


@dataclass
class Todo:
    """Walks the prompts and yields what is to be made; counts and adopts what is there already."""

    store: BatchStore
    """Held (`exclusive`)."""
    manifest: Manifest
    settings: Batch
    offer: Offer
    tally: Tally
    verify: bool = False
    """See `present.Present`."""

    def __post_init__(self) -> None:
        self._present = Present(self.store, self.manifest, verify=self.verify)

    def missing(self, prompts: Iterable[Prompt]) -> Iterator[Row]:
        """Rows of the prompts whose images are not there, by the rules of the HTTP engine."""
        for prompt in prompts:
            request = request_for(prompt, self.settings, self.offer)
            record = self._record(prompt, request)
            if self._is_there(record, request):
                self.tally.add_reused(request.ignored)
            else:
                yield asdict(record)

    def _record(self, prompt: Prompt, request: ImageRequest) -> Record:
        return Record(
            id=prompt.id,
            batch=self.store.batch_id,
            status="made",
            key=request.key,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            size=request.size,
            steps=request.steps,
            guidance=request.guidance,
            model=self.offer.model,
            revision=self.offer.revision,
            made_at=now(),
            file=f"{IMAGES}/{image_name(prompt.id, request.key)}",
            ignored=request.ignored,
            extra=prompt.extra,
        )

    def _is_there(self, record: Record, request: ImageRequest) -> bool:
        file = str(record.file)
        if self._present.has(record.id, record.key, file):
            return True
        found = self._present.adopt(record.key, file, request.size)
        if found is None:
            return False
        self.manifest.append(replace(record, status="adopted", **asdict(found)))
        return True


def now() -> str:
    """The wall clock, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def record_of(row: Row) -> Record:
    """The manifest's line for a settled row."""
    failed = row["status"] == "failed"
    return Record(
        **{**row, "ignored": tuple(row["ignored"]), "file": None if failed else row["file"], "made_at": now()}
    )


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Up to `size` rows each, alike in size, steps and guidance: a worker can paint them in uniform calls.

    At most one unfinished chunk for each combination is held.
    """
    open_ones: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike = (row["size"], row["steps"], row["guidance"])
        chunk = open_ones.setdefault(alike, [])
        chunk.append(row)
        if len(chunk) == size:
            yield open_ones.pop(alike)
    yield from open_ones.values()


def packed(rows: list[Row]) -> bytes:
    """A chunk as it travels: compressed JSON, about a fifth of the text."""
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)


def unpacked(data: bytes) -> list[Row]:
    """The rows of `packed`."""
    rows: list[Row] = json.loads(zlib.decompress(data))
    return rows


def failure(row: Row, reason: str, attempts: int, *, fruitless: bool) -> Row:
    """A row whose image could not be made. `fruitless`: not for a reason that lies in its prompt."""
    return {**row, "status": "failed", "error": reason, "attempts": attempts, "fruitless": fruitless}


def settled(row: Mapping[str, Any]) -> tuple[Record, bool]:
    """The record of a worker's answer, and whether it failed through no fault of its prompt."""
    values = dict(row)
    fruitless = bool(values.pop("fruitless", False))
    return record_of(values), fruitless
