"""Where gallery pages are written and read: a folder, or a prefix of an object store."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.object_errors import driver_errors

FOLDER_MODE = 0o777
"""Less the umask: the pages lie beside the images, which their owner's umask protects."""
PAGE_MODE = 0o644


class Place:
    """Files by name under one folder or prefix. A write is whole or not there."""

    def __init__(self, url: str | Path) -> None:
        """
        Args:
            url: A folder, or an fsspec URL such as `oss://bucket/prefix`; credentials: the environment.

        Raises:
            StorageError: There is no such kind of store, or its library is not installed.
        """
        from fsspec.core import url_to_fs

        self.url = str(url)
        try:
            self._fs, path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{self.url} cannot be used as a store.", why=str(error)) from None
        self._root = str(path).rstrip("/")

    @property
    def folder(self) -> Path | None:
        """The folder on this machine; None when it is not on one."""
        local = "file" in ([self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol)
        return Path(self._root) if local else None

    def under(self, name: str) -> "Place":
        """The place one level down."""
        inner = Place.__new__(Place)
        inner.url, inner._fs, inner._root = f"{self.url.rstrip('/')}/{name}", self._fs, f"{self._root}/{name}"
        return inner

    def write(self, name: str, data: bytes) -> None:
        """Put `data` under `name`, which may have folders in it.

        Raises:
            StorageError: It cannot be written.
        """
        with _storage_errors(f"{self.url}/{name}"):
            if self.folder is None:
                self._fs.pipe_file(f"{self._root}/{name}", data)
                return
            target = self.folder / name
            target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(data)
                os.chmod(temporary, PAGE_MODE)
                os.replace(temporary, target)
            except BaseException:
                # Also on an interrupt: nobody would ever look for it again.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none.

        Raises:
            StorageError: It cannot be read.
        """
        with _storage_errors(f"{self.url}/{name}"):
            try:
                data: bytes = self._fs.cat_file(f"{self._root}/{name}")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
            return data

    def names(self, folder: str = "") -> set[str]:
        """Names in a folder (files and folders); none when it isn't there.

        Raises:
            StorageError: It cannot be listed.
        """
        path = f"{self._root}/{folder}".rstrip("/")
        with _storage_errors(path):
            self._fs.invalidate_cache(path)
            try:
                found = self._fs.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return set()
        return {str(name).rstrip("/").rsplit("/", 1)[-1] for name in found}


@contextlib.contextmanager
def _storage_errors(where: str) -> Any:
    try:
        yield
    except driver_errors() as error:
        raise StorageError(
            f"{where} cannot be used.",
            why=getattr(error, "strerror", None) or str(error),
            fix="Check the space, the owner and the permissions there, then run again.",
        ) from error
