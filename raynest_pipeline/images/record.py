"""One line of a manifest."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from raynest_pipeline.images.batch_store import IMAGES
from raynest_pipeline.images.names import KEY_IN_NAME, MAX_NAME, image_name

SCHEMA = 1

Status = Literal["made", "adopted", "failed"]


@dataclass(frozen=True)
class Record:
    """One line. `size`, `width`, `height` are pixels; times are milliseconds and ISO 8601 UTC."""

    id: str
    batch: str
    status: Status
    """made: by this request. adopted: its file was found finished, here or in another batch. failed: see
    `error`."""
    key: str
    """Content key (`names.content_key`)."""
    prompt: str
    negative_prompt: str
    seed: int
    """As the endpoint says it used it, else as asked."""
    size: int | None
    steps: int | None
    guidance: float | None
    model: str
    revision: str
    made_at: str
    attempts: int = 0
    latency_ms: float | None = None
    """Of the successful attempt."""
    file: str | None = None
    """Relative to the batch's folder."""
    sha256: str | None = None
    size_bytes: int | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    ignored: tuple[str, ...] = ()
    """Parameters the prompt names and the endpoint does not take."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    stamp: str | None = None
    """The store's own word for this version of the file (`Entry.stamp`)."""
    worker: str = ""
    """Which replica or host painted it; "" when the endpoint does not tell."""
    origin: str = ""
    """The batch that an image was taken over from; "" for one of this batch's own."""

    def line(self) -> bytes:
        """The line, its end included. ASCII only, so it has one line break whatever the prompt holds.

        What tells whether an image is there comes first, so that `parse_head` need not read the rest.
        """
        values = {name: getattr(self, name) for name in _ORDER}
        return json.dumps(values, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"

    @property
    def shareable(self) -> bool:
        """Whether its key says all that made it, so that it may serve another batch.

        Not where the endpoint keeps something to itself: its model's revision, a default, or the seed
        that it does not take.
        """
        told = self.model and self.revision and None not in (self.size, self.steps, self.guidance)
        return bool(told and self.file and self.sha256 and not self.ignored and self.status != "failed")


class Head(NamedTuple):
    """What says whether an image is there: the part of a record that the index keeps."""

    id: str
    key: str
    failed: bool
    size_bytes: int | None
    stamp: str | None
    """None where it cannot be trusted: there is none, or the file is not named after id and key."""


_HEAD = ("schema", "id", "status", "key", "file", "size_bytes", "stamp")
_ORDER = _HEAD + tuple(f.name for f in fields(Record) if f.name not in _HEAD)
_FIELDS = {f.name for f in fields(Record)}
_REQUIRED = {"id", "batch", "status", "key", "prompt", "seed", "model", "made_at"}
_HEAD_PATTERN = re.compile(
    rb'\{"schema":%d,"id":"([A-Za-z0-9._-]{1,%d})","status":"(?:made|adopted|(failed))",'
    rb'"key":"(([0-9a-f]{%d})[0-9a-f]{%d})","file":(?:"(%s/\1-\4\.png)"|"[A-Za-z0-9._/-]+"|null),'
    rb'"size_bytes":(?:(\d{1,18})|null),"stamp":(?:"([^"\\]*)"|null),'
    % (SCHEMA, MAX_NAME, KEY_IN_NAME, 64 - KEY_IN_NAME, IMAGES.encode())
)
"""The fifth group is there where the file is named as `names.image_name` does."""


def parse_line(line: bytes) -> Record | None:
    """The record of a line; None when it is damaged or of a schema this release does not know."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA or not values.keys() >= _REQUIRED:
        return None
    known = {name: value for name, value in values.items() if name in _FIELDS}
    known["ignored"] = tuple(known.get("ignored") or ())
    defaults = {"negative_prompt": "", "size": None, "steps": None, "guidance": None, "revision": ""}
    return Record(**(defaults | known))


def parse_head(line: bytes) -> Head | None:
    """What the index needs of a line, ten times as fast as `parse_line`; None when it is damaged."""
    match = _HEAD_PATTERN.match(line)
    if match is None or not line.endswith(b"}\n"):
        record = parse_line(line)
        return None if record is None else head_of(record)
    name, failed, key, _, ours, size, stamp = match.groups()
    return Head(
        name.decode("ascii"),
        key.decode("ascii"),
        failed is not None,
        None if size is None else int(size),
        stamp.decode("ascii") if stamp and ours else None,
    )


def head_of(record: Record) -> Head:
    """The head of a record."""
    ours = record.file == f"{IMAGES}/{image_name(record.id, record.key)}"
    stamp = record.stamp if ours and record.stamp else None
    return Head(record.id, record.key, record.status == "failed", record.size_bytes, stamp)
