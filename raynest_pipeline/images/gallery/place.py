"""Where gallery pages are written and read: a folder, or a prefix of an object store."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from raynest_pipeline.files import replace_file
from raynest_pipeline.images.batch_store import root_of
from raynest_pipeline.images.objects import Objects
from raynest_pipeline.images.store import storage_error

PAGE_MODE = 0o644


class Place:
    """Files by name under one folder or prefix. A write is whole or not there.

    Its methods raise `StorageError` when the place can't be read or written.
    """

    def __init__(self, url: str | Path) -> None:
        """
        Args:
            url: A folder, or an fsspec URL such as `oss://bucket/prefix`; credentials: the environment.

        Raises:
            StorageError: There is no such kind of store, or its library is not installed.
        """
        root = root_of(url)
        self.url = str(root)
        self.folder = root if isinstance(root, Path) else None
        """The folder on this machine; None when it is not on one."""
        self._objects = None if isinstance(root, Path) else Objects(root)

    def write(self, name: str, data: bytes) -> None:
        """Put `data` under `name`, which may have folders in it."""
        if self._objects is not None:
            self._objects.put(name, data)
            return
        target = Path(self.url, name)
        with _storage_errors(target):
            # The folders' modes are the umask's: the pages lie beside the images, which it protects.
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, data, PAGE_MODE, prefix=".part-", durable=False)

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none."""
        if self._objects is not None:
            return self._objects.get(name)
        path = Path(self.url, name)
        with _storage_errors(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def names(self, folder: str = "") -> set[str]:
        """Names of the files in a folder; none when it isn't there."""
        if self._objects is not None:
            return {entry.name.rpartition("/")[2] for entry in self._objects.list(folder)}
        return {entry.name for entry in self._scan(folder) if entry.is_file()}

    def folders(self) -> set[str]:
        """Names of the folders directly below; none when it isn't there."""
        if self._objects is not None:
            return set(self._objects.folders())
        return {entry.name for entry in self._scan("") if entry.is_dir()}

    def _scan(self, folder: str) -> "list[os.DirEntry[str]]":
        path = Path(self.url, folder)
        with _storage_errors(path):
            try:
                with os.scandir(path) as found:
                    return list(found)
            except (FileNotFoundError, NotADirectoryError):
                return []


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error
