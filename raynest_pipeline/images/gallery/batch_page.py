"""The page of one batch: `index.html` beside its images, and its data in chunks under `gallery/`.

A page that is opened from disk may load scripts and images but not fetch data, so each chunk is a script
that hands its rows to the page. The page asks for those it shows; a search reads them all.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.gallery.thumbs import with_thumbs
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.side_by_side import side_by_side
from raynest_pipeline.settings import Gallery

PAGE = "index.html"
DATA = "gallery"
SUMMARY = f"{DATA}/summary.json"
SHEET_SMALL = f"{DATA}/sheet.jpg"
"""The contact sheet at the width that Dagster's UI shows; written with the batch."""
CHUNK = 1000
"""Rows in a data file: about 300 kB."""
COVER = 4
"""Images that stand for a batch on the page over all."""
SMALL = 160
"""Images up to this many pixels are enlarged without smoothing."""
EXACT = 2**53
"""From here on a browser's numbers are not exact, so seeds and people's own columns become text."""
MOST_WRITES = 5
"""Of the page over all batches, when others end at the same time."""


@dataclass
class Summary:
    """What the page over all batches shows of one. `made_at` is ISO 8601 UTC, of the last image."""

    batch: str
    images: int = 0
    finished: int = 0
    failed: int = 0
    made_at: str = ""
    models: list[str] = field(default_factory=list)
    cover: list[str] = field(default_factory=list)
    small: bool = False
    schema: int = 1


def write_batch_page(
    batch: Place,
    batch_id: str,
    records: Iterable[Record],
    settings: Gallery,
    facts: Sequence[tuple[str, str]] = (),
) -> Summary:
    """Write the page of a batch; the page itself last, so that it never shows what isn't there.

    Args:
        batch: The batch's place.
        batch_id: Its name.
        records: The latest of each prompt, in the order in which they are shown; gone through once.
        settings: Of the gallery.
        facts: More to show at the top: name and text.

    Raises:
        StorageError: The place can't be read or written.
    """
    summary = Summary(batch_id)
    cover = _Cover()
    version = hashlib.sha256()
    rows: list[dict[str, Any]] = []
    chunks = 0

    def close_chunk() -> None:
        nonlocal chunks
        data = f"raynest({chunks},{_json(rows)});\n".encode()
        version.update(data)
        batch.write(f"{DATA}/data-{chunks:05}.js", data)
        rows.clear()
        chunks += 1

    shown = with_thumbs(batch, records, pixels=settings.thumbnail_pixels, most=settings.max_thumbnails)
    for record, thumb in shown:
        _count(summary, record)
        if record.file and record.status != "failed":
            cover.add(thumb or record.file)
            summary.small = summary.small or 0 < (record.width or 0) <= SMALL
        rows.append(_row(record, thumb, summary.models))
        if len(rows) == CHUNK:
            close_chunk()
    if rows:
        close_chunk()
    summary.cover = cover.chosen()
    page = {
        **asdict(summary),
        "chunks": chunks,
        "chunk": CHUNK,
        "facts": [list(fact) for fact in facts],
        "version": version.hexdigest()[:12],
    }
    text = _fill("batch.html", title=escape(batch_id), css="batch.css", script="batch.js", batch=_json(page))
    batch.write(SUMMARY, _json(asdict(summary)).encode())
    batch.write(PAGE, text.encode())
    return summary


def write_index(root: Place) -> int:
    """Write the page over all batches that have one; how many there are.

    Raises:
        StorageError: The place can't be read or written.
    """
    batches = _read_summaries(root)
    for _ in range(MOST_WRITES):
        text = _fill("index.html", css="index.css", script="index.js", batches=_json(batches))
        root.write(PAGE, text.encode())
        # Whose batch ended meanwhile may have written the page before this one did.
        batches, written = _read_summaries(root), batches
        if batches == written:
            break
    return len(batches)


def _read_summaries(root: Place) -> list[dict[str, Any]]:
    names = sorted(name for name in root.folders() if not name.startswith("."))
    return [summary for summary in side_by_side(partial(_read_summary, root), names) if summary]


def _read_summary(root: Place, name: str) -> dict[str, Any] | None:
    data = root.read(f"{name}/{SUMMARY}")
    try:
        values = json.loads(data or b"null")
    except ValueError:
        return None
    # The folder's name counts: it may have been renamed.
    return {**asdict(Summary(name)), **values, "batch": name} if isinstance(values, dict) else None


class _Cover:
    """A few names at even distances of a sequence of unknown length, in little memory."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._step = 1
        self._seen = 0

    def add(self, name: str) -> None:
        if self._seen % self._step == 0:
            self._names.append(name)
            if len(self._names) == 16 * COVER:
                self._names = self._names[::2]
                self._step *= 2
        self._seen += 1

    def chosen(self) -> list[str]:
        most = len(self._names) - 1
        if most < COVER:
            return self._names[:COVER]
        return [self._names[round(i * most / (COVER - 1))] for i in range(COVER)]


def _count(summary: Summary, record: Record) -> None:
    summary.images += 1
    if record.status == "failed" or not record.file:
        summary.failed += 1
    else:
        summary.finished += 1
    summary.made_at = max(summary.made_at, record.made_at)
    model = f"{record.model}@{record.revision[:12]}" if record.revision else record.model
    if model and model not in summary.models:
        summary.models.append(model)


def _row(record: Record, thumb: str | None, models: list[str]) -> dict[str, Any]:
    """A record as the page wants it; what is empty is left out."""
    good = record.status != "failed" and record.file
    model = f"{record.model}@{record.revision[:12]}" if record.revision else record.model
    row: dict[str, Any] = {
        "id": record.id,
        "prompt": record.prompt,
        "seed": _exact(record.seed),
        "negative": record.negative_prompt,
        "size": record.size,
        "steps": record.steps,
        "guidance": record.guidance,
        "w": record.width,
        "h": record.height,
        "file": record.file if good else None,
        "thumb": thumb if good else None,
        "ms": None if record.latency_ms is None else round(record.latency_ms),
        "attempts": record.attempts if record.attempts > 1 else None,
        "bytes": record.size_bytes,
        "sha": record.sha256,
        "at": record.made_at,
        "m": models.index(model) if model else None,
        "error": None if good else record.error or "failed",
        "x": {
            key.removeprefix("x_"): _exact(value) for key, value in record.extra.items() if value is not None
        },
    }
    return {key: value for key, value in row.items() if value not in (None, "", {})}


def _exact(value: Any) -> Any:
    return str(value) if isinstance(value, int) and abs(value) >= EXACT else value


def _json(value: Any) -> str:
    """JSON that is safe inside a script: prompts are other people's text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _fill(template: str, *, css: str, script: str, **values: str) -> str:
    own = files(__package__)

    def text(name: str) -> str:
        return own.joinpath(name).read_text(encoding="utf-8")

    return Template(text(template)).substitute(
        css=text("base.css") + text(css), script=text("common.js") + text(script), **values
    )
