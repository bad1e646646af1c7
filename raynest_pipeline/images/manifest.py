"""The manifest of a batch: one JSON line for every image made, adopted or failed.

Append-only. A line is written by one `write` to a descriptor opened with O_APPEND, so a killed process
leaves whole lines; a torn last line (a crash of the machine, a full disk) is cut off on the next open.
The latest line of an id counts. Lines are flushed to disk about once a second, not each: an image
whose line was lost is recognised by its file (present.py) and recorded again.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import PARQUET, BatchStore, Entry
from raynest_pipeline.images.index import Index
from raynest_pipeline.images.record import SCHEMA, Head, Record, Status, head_of, parse_head, parse_line
from raynest_pipeline.images.store import storage_error

if TYPE_CHECKING:
    from raynest_pipeline.images.shared_keys import SharedKeys

__all__ = ["SCHEMA", "Manifest", "Record", "Status", "latest_records", "parse_line", "read_manifest"]

SYNC_SECONDS = 1.0
READ_BYTES = 4096


class Manifest:
    """An open manifest; close it. Safe to share between threads, not between processes.

    Memory does not grow with the batch (see index.py).
    """

    def __init__(self, path: Path, *, shared: "SharedKeys | None" = None) -> None:
        """Open, or create; cut off a torn last line.

        Args:
            path: The file.
            shared: Told of every image that may serve other batches.

        Raises:
            StorageError: It cannot be read or written.
        """
        self.path = path
        self.damaged = 0
        """Lines that could not be read; the images they stood for are looked at again."""
        self.shared = shared
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._index = Index()
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise storage_error(error, path) from None
        try:
            self.unfinished = self._behind()
            """Whether it has lines that the copies made at the end of a run do not know yet."""
            self._end = self._load()
        except (OSError, StorageError) as error:
            self._let_go()
            raise storage_error(error, path) if isinstance(error, OSError) else error from None

    def _behind(self) -> bool:
        try:
            return os.stat(self.path.with_name(PARQUET)).st_mtime_ns < os.fstat(self._handle).st_mtime_ns
        except FileNotFoundError:
            return True

    def _load(self) -> int:
        with open(self._handle, "rb", closefd=False, buffering=1 << 18) as lines:
            reading = _Reading()
            self._index.load(reading.heads(lines))
        if reading.torn:
            os.ftruncate(self._handle, reading.end)
        self.damaged = reading.damaged
        return reading.end

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
            self._index.put(head_of(record), self._end)
            self._end += len(line)
            self.unfinished = True
            self._written()
        if self.shared is not None and record.shareable:
            self.shared.add(record)

    def _written(self) -> None:
        """A line has been written; called under the lock. For manifests that are more than this file."""

    def survey(self, entries: Iterable[Entry]) -> None:
        """Learn from a listing of the store which recorded images are there, unchanged."""
        with self._lock:
            self._index.survey(entries)

    def reuse(self, prompt_id: str, key: str) -> bool:
        """Whether the image of this id and key is there; such an id counts as one of this run."""
        with self._lock:
            return self._index.reuse(prompt_id, key)

    def found(self, prompt_id: str, key: str, size: int, stamp: str) -> bool:
        """Whether the image of this id and key is on record with the size and stamp that its file has; then
        it counts as one of this run, and as there.
        """
        with self._lock:
            return self._index.found(prompt_id, key, size, stamp)

    def use(self, prompt_id: str, *, there: bool = True) -> None:
        """Count a recorded id as one of this run: its file has been looked at, and is there or not."""
        with self._lock:
            self._index.use(prompt_id, there=there)

    def look_at(self, prompt_id: str) -> None:
        """Count a recorded id as one of this run, its file as the survey found it."""
        with self._lock:
            self._index.look_at(prompt_id)

    def loose(self, name: str) -> bool:
        """Whether the survey found a file of this name that no record vouches for."""
        with self._lock:
            return self._index.loose(name)

    def latest(self, prompt_id: str) -> Record | None:
        """The latest record of an id."""
        with self._lock:
            at = self._index.at(prompt_id)
            return None if at is None else parse_line(self._line_at(at))

    def counts(self) -> tuple[int, int]:
        """Finished and failed images among those that this run has looked at or made."""
        with self._lock:
            return self._index.counts()

    def not_there(self, most: int) -> tuple[int, list[str]]:
        """Of this run's finished images, how many the last survey did not find whole; the first ids."""
        with self._lock:
            return self._index.not_there(most)

    def records(self, *, used: bool = False, finished: bool = False) -> Iterator[Record]:
        """The latest record of every id, by id.

        Args:
            used: Only those that this run has looked at or made: not those of prompts that have left.
            finished: Only images, no failures.
        """
        for offset in self._index.offsets(used=used, finished=finished):
            record = parse_line(self._line_at(offset))
            if record is not None:
                yield record

    def selected(self, positions: list[int]) -> Iterator[Record]:
        """The records at these positions among this run's finished ones, by id."""
        wanted = set(positions)
        for position, offset in enumerate(self._index.offsets(used=True, finished=True)):
            if position in wanted and (record := parse_line(self._line_at(offset))) is not None:
                yield record

    def _line_at(self, offset: int) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.pread(self._handle, READ_BYTES, offset + len(line))
            if not piece:
                return b""
            newline = piece.find(b"\n")
            line += piece if newline < 0 else piece[: newline + 1]
        return line

    def settle(self) -> None:
        """At the end of a run, after the copies: make the manifest the one file that it is to be."""
        self.unfinished = False

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
        if self.shared is not None:
            self.shared.close()

    def _let_go(self) -> None:
        self._index.close()
        os.close(self._handle)

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_manifest(path: Path) -> list[Record]:
    """The latest record of every id of a batch in a folder, in the order of their first lines; reads only.

    Holds them all: for a batch of any size there is `latest_records`.

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


def latest_records(store: BatchStore, *, finished: bool = False) -> Iterator[Record]:
    """The latest record of every id of a batch, by id, whatever it lies on and however many; reads only.

    Args:
        store: Of the batch; nobody needs to hold it.
        finished: Only images, no failures.

    Raises:
        StorageError: There is no manifest, or it cannot be read.
    """
    path = store.local_manifest()
    index = Index()
    try:
        with path.open("rb", buffering=1 << 18) as lines:
            index.load(_Reading().heads(lines))
            for offset in index.offsets(finished=finished):
                lines.seek(offset)
                record = parse_line(lines.readline())
                if record is not None:
                    yield record
    except OSError as error:
        raise storage_error(error, path) from None
    finally:
        index.close()


class _Reading:
    """One pass over the lines of a manifest."""

    def __init__(self) -> None:
        self.end = 0
        """After the last whole line, bytes."""
        self.damaged = 0
        self.torn = False

    def heads(self, lines: Iterable[bytes]) -> Iterator[tuple[Head, int]]:
        """The heads of the readable lines, with their offsets."""
        for line in lines:
            if not line.endswith(b"\n"):
                self.torn = True
                return
            head = parse_head(line)
            if head is None:
                self.damaged += 1
            else:
                yield head, self.end
            self.end += len(line)
