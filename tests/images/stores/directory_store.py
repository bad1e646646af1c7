"""An object store for tests, on a directory: whole objects, no appending, no renaming, no locks.

Register with `fsspec.register_implementation("bucket", DirectoryStore)`; `bucket:///abs/path/prefix` then
works in every process that has done so. Set `DirectoryStore.fault` to let calls fail.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fsspec import AbstractFileSystem

STAGING = ".uploads"


class DirectoryStore(AbstractFileSystem):
    protocol = "bucket"
    cachable = False
    fault: ClassVar[Callable[[str, str], None] | None] = None
    """Called with the operation and the path before each; what it raises, the store answers."""
    conditional: ClassVar[bool] = True
    """Whether puts may be conditional (`mode="create"`)."""
    calls: ClassVar[Counter[str]] = Counter()

    @classmethod
    def reset(cls) -> None:
        cls.fault, cls.conditional = None, True
        cls.calls = Counter()

    def _begin(self, operation: str, path: str) -> Path:
        DirectoryStore.calls[operation] += 1
        if DirectoryStore.fault is not None:
            DirectoryStore.fault(operation, path)
        return Path(self._strip_protocol(path))

    def _staged(self, path: Path) -> str:
        """A file beside the objects: an upload that is not complete is not seen by anybody."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{STAGING}-", dir=path.parent)
        os.close(handle)
        return name

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        final = self._begin("put", path)
        if mode == "create" and not self.conditional:
            raise TypeError("put_object() got an unexpected keyword argument 'mode'")
        staged = self._staged(final)
        Path(staged).write_bytes(value)
        if mode == "create":
            try:
                os.link(staged, final)
            finally:
                os.unlink(staged)
        else:
            os.replace(staged, final)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:  # type: ignore[override]
        final = self._begin("put", rpath)
        staged = self._staged(final)
        shutil.copyfile(lpath, staged)
        os.replace(staged, final)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        source, final = self._begin("copy", path1), Path(self._strip_protocol(path2))
        if not source.is_file():
            raise FileNotFoundError(path1)
        staged = self._staged(final)
        shutil.copyfile(source, staged)
        os.replace(staged, final)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return self._begin("get", path).read_bytes()[start:end]

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:  # type: ignore[override]
        shutil.copyfile(self._begin("get", rpath), lpath)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        file = self._begin("head", path)
        if file.is_dir() and any(file.rglob("*")):
            return {"name": str(file), "size": 0, "type": "directory"}
        return self._facts(file)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        folder = self._begin("list", path)
        if not folder.is_dir():
            raise FileNotFoundError(path)
        found = []
        for entry in os.scandir(folder):
            if entry.name.startswith(STAGING):
                continue
            if entry.is_dir():
                found.append({"name": entry.path, "size": 0, "type": "directory"})
            else:
                found.append(self._facts(Path(entry.path)))
        return found if detail else [info["name"] for info in found]

    def rm_file(self, path: str) -> None:
        self._begin("delete", path).unlink()

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("an object store has no files to open")

    def _facts(self, file: Path) -> dict[str, Any]:
        status = file.stat()
        tag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}"'
        return {"name": str(file), "size": status.st_size, "type": "file", "ETag": tag}
