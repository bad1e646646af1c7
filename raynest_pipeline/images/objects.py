"""An object store through fsspec, made dependable: whole objects, retries, errors with words.

Only what every store can do: put, get, list, copy and delete whole objects. Nothing is appended, nothing is
renamed. Objects up to about 5 GB; ours are images and text.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from raynest_pipeline.errors import RemoteError
from raynest_pipeline.images import oss_driver
from raynest_pipeline.images.batch_store import Entry
from raynest_pipeline.images.object_errors import classified, driver_errors, no_driver, storage_error_of
from raynest_pipeline.waiting import Backoff, Clock, Deadline, SystemClock, retry

T = TypeVar("T")

ATTEMPTS = 6
RETRY_SECONDS = 60.0
BACKOFF = Backoff(first=0.5, factor=2.0, most=8.0, jitter=0.3)
_STAMPS = (
    *("ETag", "etag", "e_tag", "md5Hash", "content_md5"),
    *("LastModified", "last_modified", "mtime", "created"),
)
"""Keys under which drivers tell what changes with the content, the best first."""


class Objects:
    """The objects below one URL. Safe to share between threads."""

    def __init__(self, url: str, *, clock: Clock | None = None, backoff: Backoff | None = None) -> None:
        """
        Args:
            url: `protocol://bucket/prefix`.
            clock: For the pauses between attempts.
            backoff: Those pauses.

        Raises:
            StorageError: There is no driver for the protocol, or it does not accept its configuration.
        """
        self.url = url.rstrip("/")
        self._clock = clock or SystemClock()
        self._backoff = backoff or BACKOFF
        import fsspec  # heavy: only where a batch lies on an object store

        protocol = self.url.split("://", 1)[0]
        self._oss = protocol == "oss"
        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise no_driver(protocol, str(error)) from None
        except driver_errors() as error:
            raise storage_error_of(classified(error, "it cannot be opened."), self.url) from None

    def url_of(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    def put(self, name: str, data: bytes, *, to_go: int = 1) -> Entry:
        """Put a whole object, in place of one that may be there, and see that it is there.

        Raises:
            StorageError: It is not.
        """

        def call() -> Entry:
            self._fs.pipe_file(self._path(name), data)
            return self._seen(name, len(data))

        return self._call(call, "it cannot be written.", name, len(data), to_go)

    def put_file(self, name: str, path: Path) -> Entry:
        """Put a local file's bytes as an object; a large one goes in parts, and is there at the last.

        Raises:
            StorageError: It could not be put.
        """
        size = path.stat().st_size

        def call() -> Entry:
            self._fs.put_file(str(path), self._path(name))
            return self._seen(name, size)

        return self._call(call, "it cannot be written.", name, size)

    def create(self, name: str, data: bytes) -> bool:
        """Put an object unless there is one; False when there is.

        Atomic where there are conditional puts and the driver uses them (ossfs, s3fs, gcsfs); elsewhere two
        may both be told True within the same moment.

        Raises:
            StorageError: It could not be put.
        """

        def call() -> bool:
            try:
                if self._oss:
                    oss_driver.create(self._fs, self._path(name), data)
                else:
                    self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError):
                # A driver without conditional puts.
                if self._info(name) is not None:
                    return False
                self._fs.pipe_file(self._path(name), data)
            return True

        return self._call(call, "it cannot be written.", name, len(data))

    def get(self, name: str) -> bytes | None:
        """The bytes of an object; None when there is none."""
        return self._call(
            lambda: self._or_none(lambda: bytes(self._fs.cat_file(self._path(name)))),
            "it cannot be read.",
            name,
        )

    def get_file(self, name: str, path: Path) -> bool:
        """Write an object's bytes to a local file; False when there is no such object."""

        def call() -> bool:
            self._fs.get_file(self._path(name), str(path))
            return True

        return self._call(lambda: self._or_none(call) or False, "it cannot be read.", name)

    def entry(self, name: str) -> Entry | None:
        """Size and stamp of an object; None when there is none."""
        return self._call(lambda: self._info(name), "it cannot be looked at.", name)

    def list(self, prefix: str) -> list[Entry]:
        """The objects directly below `prefix` (a folder's name without slash; "" for the base).

        The store answers with up to 1,000 a request; they are all in memory for a moment, about 1 kB each.
        """
        files = self._listed(prefix, "file")
        return [_entry(f"{prefix}/{name}" if prefix else name, info) for name, info in files]

    def folders(self) -> Sequence[str]:
        """The names directly below the base that have objects below them."""
        return [name for name, _ in self._listed("", "directory")]

    def _listed(self, prefix: str, kind: str) -> Sequence[tuple[str, dict[str, Any]]]:
        def call() -> list[tuple[str, dict[str, Any]]]:
            path = self._path(prefix)
            # A listing from before would hide what others, or an earlier call, have put since; and one kept
            # for later would hold a million names.
            self._fs.invalidate_cache()
            try:
                found = self._or_none(lambda: self._fs.ls(path, detail=True)) or []
            finally:
                self._fs.invalidate_cache()
            names = ((_name_in(info, path), info) for info in found if info.get("type") == kind)
            return [(name, info) for name, info in names if name]

        return self._call(call, "it cannot be listed.", prefix)

    def copy_from(self, other: "Objects", source: str, name: str) -> Entry | None:
        """Copy an object of `other` inside the store, without its bytes leaving it; None when it has none."""

        def call() -> Entry | None:
            self._fs.cp_file(other._path(source), self._path(name))
            return self._info(name)

        return self._call(lambda: self._or_none(call), "it cannot be copied.", name)

    def remove(self, name: str) -> None:
        """Delete an object; it may be gone already."""
        path = self._path(name)
        self._call(lambda: self._or_none(lambda: self._fs.rm_file(path)), "it cannot be deleted.", name)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else str(self._base)

    def _info(self, name: str) -> Entry | None:
        path = self._path(name)
        look = (lambda: oss_driver.head(self._fs, path)) if self._oss else (lambda: self._fs.info(path))
        info = self._or_none(look)
        return _entry(name, info) if info is not None and info.get("type") == "file" else None

    def _seen(self, name: str, size: int) -> Entry:
        entry = self._info(name)
        if entry is None or entry.size != size:
            there = "nothing" if entry is None else f"{entry.size:,} bytes"
            raise OSError(f"{size:,} bytes were put, and {there} came to be there")
        return entry

    def _or_none(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _call(self, call: Callable[[], T], what: str, name: str, needed: int = 0, to_go: int = 1) -> T:
        """One operation, repeated by the one retrier: each of them is safe to repeat."""

        def attempt() -> T:
            try:
                return call()
            except driver_errors() as error:
                raise classified(error, what) from error

        deadline = Deadline.after(RETRY_SECONDS, self._clock)
        try:
            return retry(attempt, deadline=deadline, attempts=ATTEMPTS, backoff=self._backoff)
        except RemoteError as error:
            raise storage_error_of(error, self.url_of(name), needed, to_go) from error.__cause__


def _name_in(info: dict[str, Any], path: str) -> str:
    """The last part of a listed name; "" for the folder's own marker object, which some tools make."""
    name = str(info["name"]).rstrip("/")
    return "" if name.strip("/") == path.strip("/") else name.rpartition("/")[2]


def _entry(name: str, info: dict[str, Any]) -> Entry:
    return Entry(name, int(info.get("size") or 0), _stamp(info))


def _stamp(info: dict[str, Any]) -> str:
    for key in _STAMPS:
        value = info.get(key)
        if isinstance(value, datetime):
            value = value.timestamp()
        if value:
            return str(value).strip('"')
    return ""
