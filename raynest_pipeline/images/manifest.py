"""The manifest of a batch: one JSON line for every image made, adopted or failed.

Append-only. A line is written by one `write` to a descriptor opened with O_APPEND, so a killed process
leaves whole lines; a torn last line (a crash of the machine, a full disk) is cut off on the next open.
The latest line of an id counts. Lines are flushed to disk about once a second, not each: an image
whose line was lost is recognised by its file (engine.py) and recorded again.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.store import storage_error

SCHEMA = 1
SYNC_SECONDS = 1.0

Status = Literal["made", "adopted", "failed"]


@dataclass(frozen=True)
class Record:
    """One line. `size`, `width`, `height` are pixels; times are milliseconds and ISO 8601 UTC."""

    id: str
    batch: str
    status: Status
    """made: by this request. adopted: its file was found finished. failed: see `error`."""
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

    def line(self) -> bytes:
        """The line, its end included. ASCII only, so it has one line break whatever the prompt holds."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


_FIELDS = {f.name for f in fields(Record)}
_REQUIRED = {"id", "batch", "status", "key", "prompt", "seed", "model", "made_at"}


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


class Manifest:
    """An open manifest; close it. Safe to share between threads, not between processes.

    Which line is the latest of an id is kept in a temporary SQLite file, so memory does not grow with
    the batch.
    """

    def __init__(self, path: Path) -> None:
        """Open, or create; cut off a torn last line.

        Raises:
            StorageError: It cannot be read or written.
        """
        self.path = path
        self.damaged = 0
        """Lines that could not be read; the images they stood for are looked at again."""
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._index = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._sql("CREATE TABLE latest (id TEXT PRIMARY KEY, at INTEGER) WITHOUT ROWID")
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise storage_error(error, path) from None
        try:
            self._end = self._load()
        except (OSError, StorageError) as error:
            self.close()
            raise storage_error(error, path) if isinstance(error, OSError) else error from None

    def _load(self) -> int:
        at = 0
        with open(self._handle, "rb", closefd=False) as lines:
            self._sql("BEGIN")
            for line in lines:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._handle, at)
                    break
                self._remember(parse_line(line), at)
                at += len(line)
            self._sql("COMMIT")
        return at

    def _remember(self, record: Record | None, at: int) -> None:
        if record is None:
            self.damaged += 1
            return
        self._sql("INSERT OR REPLACE INTO latest VALUES (?, ?)", (record.id, at))

    def _sql(self, statement: str, values: tuple[str | int, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._index.execute(statement, values)
        except sqlite3.Error as error:
            raise StorageError("The manifest's temporary index cannot be kept.", why=str(error)) from None

    def append(self, record: Record, *, to_go: int = 1) -> None:
        """Write one line, whole or not at all.

        Raises:
            StorageError: Disk full; what was written of the line has been taken back.
        """
        line = record.line()
        with self._lock:
            try:
                written = os.write(self._handle, line)
                if written != len(line):
                    # A short write means a full disk; asking for the rest makes the system say so.
                    written += os.write(self._handle, line[written:])
                if time.monotonic() - self._synced >= SYNC_SECONDS:
                    os.fsync(self._handle)
                    self._synced = time.monotonic()
            except OSError as error:
                os.ftruncate(self._handle, self._end)
                raise storage_error(error, self.path, len(line), to_go) from None
            if written != len(line):
                os.ftruncate(self._handle, self._end)
                raise StorageError(f"{self.path}: a line could not be written whole.", fix="Check the disk.")
            self._remember(record, self._end)
            self._end += len(line)

    def latest(self, prompt_id: str) -> Record | None:
        """The latest record of an id."""
        with self._lock:
            row = self._sql("SELECT at FROM latest WHERE id = ?", (prompt_id,)).fetchone()
        return self._at(row[0]) if row else None

    def _at(self, offset: int) -> Record | None:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.pread(self._handle, 4096, offset + len(line))
            if not piece:
                return None
            newline = piece.find(b"\n")
            line += piece if newline < 0 else piece[: newline + 1]
        return parse_line(line)

    def close(self) -> None:
        """Flush and close."""
        with self._lock:
            self._index.close()
            if self._handle >= 0:
                handle, self._handle = self._handle, -1
                try:
                    os.fsync(handle)
                except OSError as error:
                    raise storage_error(error, self.path) from None
                finally:
                    os.close(handle)

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_manifest(path: Path) -> list[Record]:
    """The latest record of every id of a finished batch, in the order of their first lines; reads only.

    Raises:
        StorageError: It is not there, or cannot be read.
    """
    latest: dict[str, Record] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n") and (record := parse_line(line)):
                    latest[record.id] = record
    except OSError as error:
        raise storage_error(error, path) from None
    return list(latest.values())
