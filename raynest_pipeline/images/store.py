"""Where a batch lies: `<root>/<batch id>/images/*.png`, `manifest.jsonl`, `sheet.jpg`.

Names go in and out as text relative to the batch's folder, with forward slashes, so that a store on
an object store can stand in for this one.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raynest_pipeline.errors import InputError, RefusedError, StorageError
from raynest_pipeline.images.names import MAX_FILE_NAME, name_problem

IMAGES = "images"
MANIFEST = "manifest.jsonl"
SHEET = "sheet.jpg"
LOCK = ".lock"
_TEMPORARY = ".part-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BatchFolder:
    """The folder of one batch. Every write is whole or not there at all."""

    def __init__(self, root: Path, batch_id: str) -> None:
        """
        Args:
            root: The output folder; made when missing.
            batch_id: Becomes the folder's name; the rule is that of prompt ids.

        Raises:
            InputError: `batch_id` is not safe as a name.
            StorageError: The folder cannot be made, or a link leads out of `root`.
        """
        if wrong := name_problem(batch_id):
            raise InputError(f"The batch id {batch_id[:140]!r} {wrong}.", fix="Choose another id.")
        self.batch_id = batch_id
        self.path = root.expanduser().absolute() / batch_id
        try:
            (self.path / IMAGES).mkdir(parents=True, exist_ok=True)
            inside = (self.path / IMAGES).resolve().is_relative_to(root.expanduser().resolve())
        except OSError as error:
            raise storage_error(error, self.path) from None
        if not inside:
            raise StorageError(
                f"{self.path} leads out of the output folder.",
                fix="Remove the link, or choose another folder.",
            )

    @property
    def manifest_path(self) -> Path:
        """The manifest's file."""
        return self.path / MANIFEST

    @property
    def sheet_path(self) -> Path:
        """The contact sheet's file."""
        return self.path / SHEET

    def image_path(self, name: str) -> Path:
        """Where a stored image lies on this disk."""
        return self.path / self._checked(name)

    def write(self, name: str, data: bytes, *, to_go: int = 1) -> None:
        """Put `data` under `name` ("images/x.png"), atomically: readers see the old file or the new one.

        Args:
            to_go: Files of this size still to come, this one included; for the message of a full disk.

        Raises:
            StorageError: Disk full (says how much is needed), no permission.
        """
        final = self.path / self._checked(name)
        # The lock keeps other processes out; the thread's number keeps this one's threads apart.
        temporary = final.with_name(f"{_TEMPORARY}{threading.get_native_id()}-{final.name}")
        try:
            try:
                # NOFOLLOW: a link planted under the temporary name must not lead the bytes elsewhere.
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(temporary, flags, 0o666), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise storage_error(error, final, len(data), to_go) from None

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none."""
        try:
            return (self.path / self._checked(name)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, self.path / name) from None

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether `name` is there with this very content (size in bytes, SHA-256 in hex)."""
        path = self.path / self._checked(name)
        try:
            if path.stat().st_size != size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, path) from None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the batch for this process alone; the kernel lets go however the process ends.

        Also removes what a killed predecessor had half written.

        Raises:
            RefusedError: Another process is at work on this batch.
        """
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, self.path / LOCK) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise RefusedError(
                    f"The batch {self.batch_id!r} is already being made by process {holder}.",
                    fix="Wait for it to end, or stop it; then run again: what it finished is kept.",
                ) from None
            except OSError as error:
                raise storage_error(error, self.path / LOCK) from None
            try:
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                for left in (self.path / IMAGES).glob(f"{_TEMPORARY}*"):
                    left.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, self.path) from None
            yield
        finally:
            os.close(handle)

    def _checked(self, name: str) -> str:
        """`name`, unless it is a way out: each part must be a safe name."""
        parts = name.split("/")
        if len(parts) > 2 or any(name_problem(part, MAX_FILE_NAME) for part in parts):
            raise StorageError(f"{name[:300]!r} is not a name inside the batch's folder.")
        return name


def storage_error(error: OSError, path: Path, needed: int = 0, to_go: int = 1) -> StorageError:
    """The `StorageError` for what the operating system said about `path`."""
    again = "Then run the same command again: finished images are kept, and it goes on from there."
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageError(
            f"{path} cannot be written: no space left ({reason}).",
            why=f"It needs {needed:,} bytes; {_free(path)}.",
            fix=f"Free at least {_megabytes(needed * max(1, to_go))} for {max(1, to_go):,} files to go, "
            f"or choose another output folder. {again}",
        )
    if isinstance(error, PermissionError):
        fix = f"Correct its owner or mode. {again}"
        return StorageError(f"No permission for {path}.", why=reason, fix=fix)
    return StorageError(f"{path} cannot be used.", why=reason, fix=again)


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} are free there"
    except OSError:
        return "how much is free is not known"


def _megabytes(count: int) -> str:
    return f"{max(1, -(-count // 1_000_000)):,} MB"
