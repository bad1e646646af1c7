"""The index of content keys on an object store: one object a batch, `<root>/.keys/<batch>.jsonl.gz`.

It is put at the end of a run, and read when a batch first looks for an image of another: as many as
`MOST_BYTES` allow, into a temporary SQLite file. A hint, as in shared_keys.py.
"""

import gzip
import json
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import Entry
from raynest_pipeline.images.objects import Objects
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.shared_keys import SharedImage

KEYS = ".keys"
SUFFIX = ".jsonl.gz"
MOST_BYTES = 64_000_000
"""So much of compressed index is read: about 600,000 images."""

_TABLE = "CREATE TABLE images (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"


class ObjectKeys:
    """The index of one root, as one batch uses it."""

    def __init__(self, root: str, batch_id: str) -> None:
        """Reads nothing yet."""
        self._root, self._batch_id = root, batch_id
        self._objects: Objects | None = None
        self._db: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def find(self, key: str) -> SharedImage | None:
        """An image with this content key in another batch."""
        with self._lock:
            if self._db is None:
                self._db = self._loaded()
            row = self._db.execute("SELECT value FROM images WHERE key = ?", (key,)).fetchone()
        return SharedImage(*json.loads(row[0])) if row else None

    def add(self, record: Record) -> None:
        """Nothing yet: `publish` takes the whole batch."""

    def publish(self, records: Iterable[Record]) -> None:
        """Put the index of this batch, from the records of all its images.

        Raises:
            StorageError: It cannot be put.
        """
        with tempfile.TemporaryDirectory(prefix="raynest-keys-") as folder:
            path = Path(folder) / "keys"
            with gzip.open(path, "wt", encoding="ascii", compresslevel=3) as lines:
                for record in records:
                    if record.shareable:
                        image = [record.batch, record.file, record.sha256, record.size_bytes]
                        lines.write(json.dumps([record.key, *image, record.width, record.height]) + "\n")
            self._keys().put_file(f"{self._batch_id}{SUFFIX}", path)

    def close(self) -> None:
        """Let go of the temporary file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _keys(self) -> Objects:
        if self._objects is None:
            self._objects = Objects(f"{self._root}/{KEYS}")
        return self._objects

    def _loaded(self) -> sqlite3.Connection:
        db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLE};")
        db.execute("BEGIN")
        db.executemany("INSERT OR IGNORE INTO images VALUES (?, ?)", self._images())
        db.execute("COMMIT")
        return db

    def _images(self) -> Iterator[tuple[str, str]]:
        try:
            listed = [entry for entry in self._keys().list("") if entry.name.endswith(SUFFIX)]
            with tempfile.TemporaryDirectory(prefix="raynest-keys-") as folder:
                path = Path(folder) / "keys"
                for entry in _chosen(listed, f"{self._batch_id}{SUFFIX}"):
                    if self._keys().get_file(entry.name, path):
                        yield from _read(path)
        except StorageError:
            # Only a hint: the images are made, as if there were no other batches.
            return


def _chosen(entries: list[Entry], own: str) -> Iterator[Entry]:
    left = MOST_BYTES
    for entry in sorted(entries, key=lambda entry: entry.name):
        left -= entry.size
        if entry.name != own and left >= 0:
            yield entry


def _read(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            for line in lines:
                key, batch, file, sha256, size, width, height = json.loads(line)
                yield str(key), json.dumps([batch, file, sha256, size, width, height])
    except (OSError, EOFError, ValueError, zlib.error):
        # A damaged index is no index.
        return
