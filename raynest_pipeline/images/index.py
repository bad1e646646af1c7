"""Which line of a manifest is the latest of an id, and whether its file is there: on disk, not in memory.

A temporary SQLite file without a name: gone with the process, however it ends, and rebuilt from the
manifest in about a second per 200,000 lines.
"""

import sqlite3
from collections.abc import Iterable, Iterator

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import IMAGES, Entry
from raynest_pipeline.images.names import KEY_IN_NAME
from raynest_pipeline.images.record import Head

CACHE_KIB = 8192
ROWS_AT_ONCE = 1000
_FOLDER = len(f"{IMAGES}/")
LISTED, READ = 1, 2
"""How it is known that a file is there: by its size and stamp, or by all its bytes."""

_TABLES = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE latest (
    id TEXT PRIMARY KEY, at INTEGER, key TEXT, size INTEGER, stamp TEXT,
    failed INTEGER, there INTEGER, used INTEGER
) WITHOUT ROWID;
CREATE TABLE loose (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_PUT = "INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_MATCH = f"""
UPDATE latest SET there = max(there, {LISTED})
WHERE id = ? AND size = ? AND stamp = ? AND substr(key, 1, {KEY_IN_NAME}) = ?
"""
_FOUND = f"""
UPDATE latest SET used = 1, there = max(there, {LISTED})
WHERE id = ? AND key = ? AND size = ? AND stamp = ?
"""


class Index:
    """Not safe to share between threads without a lock; the manifest has one."""

    def __init__(self) -> None:
        """Raises StorageError when there is no room for temporary files."""
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        with _errors():
            self._db.executescript(_TABLES)
            # Never committed: to open and close a transaction for each change costs four times the change.
            self._db.execute("BEGIN")

    def load(self, heads: Iterable[tuple[Head, int]]) -> None:
        """Take the lines of a manifest in their order: heads and offsets."""
        rows = ((name, at, key, size, stamp, failed, 0, 0) for (name, key, failed, size, stamp), at in heads)
        with _errors():
            self._db.executemany(_PUT, rows)

    def put(self, head: Head, at: int) -> None:
        """Take a line just written; its file, if it names one, is there."""
        there = LISTED if not head.failed and head.stamp is not None else 0
        with _errors():
            self._db.execute(
                _PUT, (head.id, at, head.key, head.size_bytes, head.stamp, head.failed, there, 1)
            )

    def survey(self, entries: Iterable[Entry]) -> None:
        """Hold the records against what the store lists: same size and stamp means unchanged."""
        execute = self._db.execute
        with _errors():
            self._db.execute(f"UPDATE latest SET there = 0 WHERE there = {LISTED}")
            self._db.execute("DELETE FROM loose")
            for entry in entries:
                prompt_id, _, rest = entry.name[_FOLDER:].rpartition("-")
                match = execute(_MATCH, (prompt_id, entry.size, entry.stamp, rest.partition(".")[0]))
                if match.rowcount == 0:
                    execute("INSERT OR IGNORE INTO loose VALUES (?)", (entry.name,))

    def reuse(self, prompt_id: str, key: str) -> bool:
        """Whether the image of this key is there, unchanged; then it counts as one of this run."""
        sql = "UPDATE latest SET used = 1 WHERE id = ? AND key = ? AND there"
        with _errors():
            return self._db.execute(sql, (prompt_id, key)).rowcount == 1

    def found(self, prompt_id: str, key: str, size: int, stamp: str) -> bool:
        """Whether the image of this key is on record with this size and stamp, which its file has; then it
        counts as one of this run, and as there.
        """
        with _errors():
            return self._db.execute(_FOUND, (prompt_id, key, size, stamp)).rowcount == 1

    def use(self, prompt_id: str, *, there: bool) -> None:
        """Count the id as one of this run, and its file, which has been read, as there or not."""
        sql = "UPDATE latest SET used = 1, there = ? WHERE id = ?"
        with _errors():
            self._db.execute(sql, (READ if there else 0, prompt_id))

    def look_at(self, prompt_id: str) -> None:
        """Count the id as one of this run, and say nothing of its file."""
        with _errors():
            self._db.execute("UPDATE latest SET used = 1 WHERE id = ?", (prompt_id,))

    def loose(self, name: str) -> bool:
        """Whether the survey found a file of this name that no record vouches for."""
        with _errors():
            return self._db.execute("SELECT 1 FROM loose WHERE name = ?", (name,)).fetchone() is not None

    def at(self, prompt_id: str) -> int | None:
        """Offset of the latest line of an id."""
        with _errors():
            row = self._db.execute("SELECT at FROM latest WHERE id = ?", (prompt_id,)).fetchone()
        return int(row[0]) if row else None

    def counts(self) -> tuple[int, int]:
        """Finished and failed ids of this run."""
        with _errors():
            rows = self._db.execute("SELECT failed, count(*) FROM latest WHERE used GROUP BY failed")
            counts = {bool(failed): int(count) for failed, count in rows}
        return counts.get(False, 0), counts.get(True, 0)

    def not_there(self, most: int) -> tuple[int, list[str]]:
        """How many finished ids of this run lack their file, or have another; the first ones by id."""
        where = "FROM latest WHERE used AND NOT failed AND NOT there"
        with _errors():
            (count,) = self._db.execute(f"SELECT count(*) {where}").fetchone()
            rows = self._db.execute(f"SELECT id {where} ORDER BY id LIMIT ?", (most,)).fetchall()
        return int(count), [str(row[0]) for row in rows]

    def offsets(self, *, used: bool = False, finished: bool = False) -> Iterator[int]:
        """Offsets of the latest lines by id: all, or only this run's, or only finished ones."""
        where = f"{'used' if used else '1'} AND {'NOT failed' if finished else '1'}"
        last = ""
        while True:
            sql = f"SELECT id, at FROM latest WHERE id > ? AND {where} ORDER BY id LIMIT {ROWS_AT_ONCE}"
            with _errors():
                rows = self._db.execute(sql, (last,)).fetchall()
            yield from (int(at) for _, at in rows)
            if len(rows) < ROWS_AT_ONCE:
                return
            last = str(rows[-1][0])

    def close(self) -> None:
        """Give the temporary file back."""
        self._db.close()


class _errors:  # noqa: N801 - used like a function; a class costs a tenth of a generator's time
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise StorageError(
                "The manifest's temporary index cannot be kept.",
                why=str(error),
                fix="Free some space in the folder for temporary files (TMPDIR) and run again.",
            ) from None
