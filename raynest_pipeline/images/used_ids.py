"""Whether the ids of a prompt file are unique, in memory that does not grow with the file.

Ids are dealt by a hash into the buckets of one temporary file, written front to back; the same id always
lands in the same bucket. At the end each bucket is looked through by itself. That is several times faster
than an index on disk, whose pages are hit at random: ids are often random.
"""

import contextlib
import heapq
import tempfile
import zlib
from collections.abc import Iterator
from types import TracebackType

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.prompts import Problem

BUCKETS = 256
BUFFER_IDS = 50_000
"""Ids kept in memory before they are written: about 10 MB."""


class UsedIds:
    """Takes ids in any number and tells which came twice; close it.

    Args:
        unit: What a line is called in messages.

    File systems of macOS and Windows ignore case, so ids do, too.
    """

    def __init__(self, unit: str = "line") -> None:
        self._unit = unit
        self._buckets: list[list[str]] = [[] for _ in range(BUCKETS)]
        self._buffered = 0
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]
        try:
            self._file = tempfile.TemporaryFile(prefix="raynest-ids-")  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise _not_kept(error) from None

    def add(self, prompt_id: str, line: int) -> None:
        """Take one id that is a valid name, used on `line`; lines must not go down.

        Raises:
            StorageError: The temporary file cannot be written.
        """
        bucket = zlib.crc32(prompt_id.lower().encode("ascii")) % BUCKETS
        self._buckets[bucket].append(f"{line} {prompt_id}\n")
        self._buffered += 1
        if self._buffered >= BUFFER_IDS:
            self._flush()

    def clashes(self, most: int) -> tuple[int, list[Problem]]:
        """How many ids were used before, and the first `most` of them by line.

        Raises:
            StorageError: The temporary file cannot be written or read.
        """
        self._flush()
        found = 0

        def counted() -> Iterator[tuple[int, str, int]]:
            nonlocal found
            for bucket in range(BUCKETS):
                for clash in self._of_bucket(bucket):
                    found += 1
                    yield clash

        first = heapq.nsmallest(most, counted())
        return found, [Problem(line, "id", self._already(name, used)) for line, name, used in first]

    def _already(self, name: str, line: int) -> str:
        return f"{name!r} is already used on {self._unit} {line} (upper or lower case is the same)"

    def _of_bucket(self, bucket: int) -> Iterator[tuple[int, str, int]]:
        """Line, id and line of the first use, for each id of a bucket that was used before."""
        first: dict[str, int] = {}
        for entry in self._entries(bucket):
            line, _, name = entry.partition(" ")
            used = first.get(name.lower())
            if used is None:
                first[name.lower()] = int(line)
            else:
                yield int(line), name, used

    def _entries(self, bucket: int) -> Iterator[str]:
        for offset, length in self._chunks[bucket]:
            try:
                self._file.seek(offset)
                data = self._file.read(length)
            except OSError as error:
                raise _not_kept(error) from None
            yield from data.decode("ascii").splitlines()

    def _flush(self) -> None:
        try:
            offset = self._file.seek(0, 2)
            for bucket, lines in enumerate(self._buckets):
                if lines:
                    data = "".join(lines).encode("ascii")
                    self._file.write(data)
                    self._chunks[bucket].append((offset, len(data)))
                    offset += len(data)
            self._file.flush()
        except OSError as error:
            raise _not_kept(error) from None
        self._buckets = [[] for _ in range(BUCKETS)]
        self._buffered = 0

    def __enter__(self) -> "UsedIds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On a full disk closing fails, too; that has been told.
        with contextlib.suppress(OSError):
            self._file.close()


def _not_kept(error: OSError) -> StorageError:
    return StorageError(
        "Prompt ids cannot be kept in a temporary file.",
        why=error.strerror or str(error),
        fix="Free some space in the folder for temporary files (TMPDIR) and run again.",
    )
