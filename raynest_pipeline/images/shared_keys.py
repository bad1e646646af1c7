"""Identical work is done once: which image of another batch under the same root has a content key.

A hint and nothing more. What it names is checked before it counts, it may lag or be lost at any time, and
a batch that finds nothing here makes its images itself. So no error of it ends a batch.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raynest_pipeline.images.record import Record

KEYS_FILE = ".keys.sqlite"
FLUSH_SECONDS = 1.0
FLUSH_ROWS = 1000
BUSY_SECONDS = 5.0

_TABLE = """
CREATE TABLE IF NOT EXISTS images (
    key BLOB PRIMARY KEY, batch TEXT, file TEXT, sha256 BLOB, size INTEGER, width INTEGER, height INTEGER
) WITHOUT ROWID
"""
_PUT = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)"

Row = tuple[bytes, str, str, bytes, int, int, int]


@dataclass(frozen=True, slots=True)
class SharedImage:
    """An image that may be taken over, as the other batch recorded it."""

    batch: str
    file: str
    """Relative to that batch."""
    sha256: str
    size_bytes: int
    width: int
    height: int


class SharedKeys(Protocol):
    """The index of one root, as one batch uses it. Safe to share between threads."""

    def find(self, key: str) -> SharedImage | None:
        """An image with this content key in another batch."""
        ...

    def add(self, record: Record) -> None:
        """Tell other batches of an image of this one (`Record.shareable`)."""
        ...

    def publish(self, records: Iterable[Record]) -> None:
        """At the end of a run: the latest records of all its images, for an index that takes them whole."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class FolderKeys:
    """The index of an output folder: one SQLite file in it, shared by the processes of this machine."""

    def __init__(self, root: Path, batch_id: str) -> None:
        """Opens nothing yet."""
        self._path = root / KEYS_FILE
        self._batch_id = batch_id
        self._db: sqlite3.Connection | None = None
        self._broken = False
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    def find(self, key: str) -> SharedImage | None:
        """An image with this content key in another batch."""
        with self._lock, self._guarded():
            db = self._opened()
            sql = "SELECT batch, file, sha256, size, width, height FROM images WHERE key = ?"
            row = db.execute(sql, (bytes.fromhex(key),)).fetchone() if db else None
            if row is not None and row[0] != self._batch_id:
                return SharedImage(row[0], row[1], row[2].hex(), row[3], row[4], row[5])
        return None

    def add(self, record: Record) -> None:
        """Tell other batches of an image of this one; written about once a second."""
        row = row_of(record)
        with self._lock:
            if row is not None:
                self._rows.append(row)
            late = time.monotonic() - self._flushed >= FLUSH_SECONDS
            if len(self._rows) >= FLUSH_ROWS or (self._rows and late):
                self._flush()

    def publish(self, records: Iterable[Record]) -> None:
        """Nothing: it has been told of each as it came."""

    def close(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            self._flush()
            if self._db is not None:
                self._db.close()
                self._db = None

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._flushed = time.monotonic()
        if not rows:
            return
        with self._guarded():
            if (db := self._opened()) is not None:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(_PUT, rows)
                db.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection | None:
        if self._db is None and not self._broken:
            self._db = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            # A crash of the machine may cost the file, which is only a hint; a flush would cost every second.
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute(_TABLE)
        return self._db

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Do without the index for the rest of the run when it fails; a damaged one is removed."""
        try:
            yield
        except sqlite3.Error as error:
            self._broken = True
            if self._db is not None:
                self._db.close()
                self._db = None
            # "is malformed", "is not a database"; a locked or full one is good again some other time.
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._remove()

    def _remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            # A file that cannot be removed does no harm: it fails again, and nothing depends on it.
            return


def row_of(record: Record) -> Row | None:
    """A record as a row of the index; None when it lacks something."""
    if not record.file or not record.sha256 or not record.size_bytes or not record.shareable:
        return None
    return (
        bytes.fromhex(record.key),
        record.batch,
        record.file,
        bytes.fromhex(record.sha256),
        record.size_bytes,
        record.width or 0,
        record.height or 0,
    )
