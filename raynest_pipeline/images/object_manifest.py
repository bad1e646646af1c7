"""A manifest where nothing can be appended: segments, merged into one object at the end of a run.

    manifest.jsonl                       the lines up to some offset
    manifest.d/<offset>-<token>.jsonl    the lines that follow, from that offset on

The process works on a local temporary copy (a `Manifest` like any other) and puts what is new as a segment.
A segment whose offset lies below the size of manifest.jsonl is part of it already: so a process that dies
between the merge and the removal of the segments leaves nothing that counts twice. Two writers that should
not have been (lease.py) have tokens of their own, so neither overwrites the other's segments.

The lines of the last second or so before a kill are lost with their process; their images are not, and are
adopted by the next run. Segments come every second at first, later every minute, so that even days of work
leave hundreds of them, not 100,000.
"""

import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import MANIFEST, Entry
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.object_store import ObjectStore
from raynest_pipeline.images.objects import Objects
from raynest_pipeline.images.shared_keys import SharedKeys

SEGMENTS = "manifest.d"
FLUSH_LINES = 5_000
FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0
READERS = 16
SLOWER = 60
"""The pause between segments grows to one such part of the time that the run has taken."""


@dataclass(frozen=True)
class Fetched:
    """What of a manifest lies on a store."""

    end: int
    """Bytes of all its lines."""
    segments: tuple[str, ...]
    """Names of the segments, also of those merged already."""


class ObjectManifest(Manifest):
    """The manifest of a batch on an object store."""

    def __init__(self, store: ObjectStore, shared: SharedKeys | None = None) -> None:
        """Fetch and open.

        Raises:
            StorageError: The store cannot be read, or there is no room for temporary files.
        """
        self._store = store
        self._token = uuid.uuid4().hex[:8]
        self._folder = tempfile.TemporaryDirectory(prefix="manifest-", dir=store.scratch())
        path = Path(self._folder.name) / MANIFEST
        fetched = fetch(store.objects, path)
        self._segments = list(fetched.segments)
        self._started = self._flushed = monotonic()
        self._lines = 0
        super().__init__(path, shared=shared)
        self._put_up_to = self._end
        self.unfinished = bool(self._segments) or self._end == 0

    def _behind(self) -> bool:
        return True

    def _written(self) -> None:
        self._lines += 1
        now = monotonic()
        pause = min(MOST_SECONDS, max(FIRST_SECONDS, (now - self._started) / SLOWER))
        if self._lines >= FLUSH_LINES or now - self._flushed >= pause:
            self._flush()

    def _flush(self) -> None:
        """Put the lines since the last segment as the next one; they stay to be put when that fails."""
        self._flushed = monotonic()
        if self._put_up_to == self._end:
            return
        self._store.check_held()
        with self.path.open("rb") as lines:
            lines.seek(self._put_up_to)
            data = lines.read(self._end - self._put_up_to)
        name = f"{SEGMENTS}/{self._put_up_to:015d}-{self._token}.jsonl"
        self._store.objects.put(name, data)
        self._segments.append(name)
        self._put_up_to, self._lines = self._end, 0

    def settle(self) -> None:
        """Merge: put all lines as one object, then take the segments away.

        Raises:
            StorageError: The store cannot be written; nothing is lost, the next run merges.
        """
        self._store.check_held()
        with self._lock:
            self._flush()
            if self._segments:
                self._store.objects.put_file(MANIFEST, self.path)
                for name in self._segments:
                    self._store.objects.remove(name)
                self._segments.clear()
            self.unfinished = False

    def close(self) -> None:
        """Put what is not put yet, and close."""
        try:
            with self._lock:
                if self._handle >= 0:
                    self._flush()
        finally:
            super().close()
            self._folder.cleanup()


def fetch(objects: Objects, path: Path) -> Fetched:
    """Write all lines of a manifest, in order, to a local file.

    Raises:
        StorageError: They cannot be read, or the file not be written.
    """
    segments = sorted(objects.list(SEGMENTS), key=_offset)
    if not objects.get_file(MANIFEST, path):
        path.write_bytes(b"")
    merged = path.stat().st_size
    try:
        with path.open("ab") as lines:
            for data in _contents(objects, [s.name for s in segments if _offset(s)[0] >= merged]):
                # A torn end: of a store that does not put whole objects after all.
                lines.write(data[: data.rfind(b"\n") + 1])
            end = lines.tell()
    except OSError as error:
        raise StorageError(f"{path} cannot be written.", why=str(error), fix="Free some space.") from None
    return Fetched(end, tuple(segment.name for segment in segments))


def _contents(objects: Objects, names: list[str]) -> Iterator[bytes]:
    """Of the segments, in order; of one that a merge has just removed nothing."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="raynest-segments") as pool:
        for first in range(0, len(names), READERS):
            for data in pool.map(objects.get, names[first : first + READERS]):
                yield data or b""


def _offset(segment: Entry) -> tuple[int, str]:
    text = segment.name.removeprefix(f"{SEGMENTS}/")
    number = text.partition("-")[0]
    return (int(number) if number.isdigit() else 0, text)
