"""A batch in a folder of this machine: `<root>/<batch id>/images/*.png`, `manifest.jsonl`, `sheet.jpg`."""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raynest_pipeline.errors import InputError, RefusedError, StorageError
from raynest_pipeline.images.batch_store import IMAGES, MANIFEST, SHEET, Entry, checked_name
from raynest_pipeline.images.names import name_problem

if TYPE_CHECKING:
    from raynest_pipeline.images.manifest import Manifest
    from raynest_pipeline.images.shared_keys import SharedKeys

__all__ = ["IMAGES", "MANIFEST", "SHEET", "BatchFolder", "storage_error"]

LOCK = ".lock"
_TEMPORARY = ".part-"
_NO_FILE = {errno.ENOENT, errno.ENOTDIR}
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BatchFolder:
    """The folder of one batch (a `BatchStore`). Every write is whole or not there at all."""

    remote = False

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
        self.root = root.expanduser().absolute()
        self.path = self.root / batch_id
        self._folder = str(self.path)
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

    def place(self, name: str = "") -> str:
        """The path of a name, or of the folder."""
        return str(self.path / checked_name(name) if name else self.path)

    def write(self, name: str, data: bytes, *, to_go: int = 1) -> str:
        """Put `data` under `name` ("images/x.png"), atomically: readers see the old file or the new one.

        Args:
            to_go: Files of this size still to come, this one included; for the message of a full disk.

        Raises:
            StorageError: Disk full (says how much is needed), no permission.
        """
        final = self.path / checked_name(name)
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
                    stamp = str(os.fstat(file.fileno()).st_mtime_ns)
                os.replace(temporary, final)
                return stamp
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise storage_error(error, final, len(data), to_go) from None

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none."""
        try:
            return (self.path / checked_name(name)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, self.path / name) from None

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether `name` is there with this very content (size in bytes, SHA-256 in hex)."""
        path = self.path / checked_name(name)
        try:
            return _same(path, size, sha256)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, path) from None

    def entry(self, name: str) -> Entry | None:
        """Size and modification time of `name`; None when it is not there."""
        # Once for each image of a resumed batch: pathlib would take most of the time.
        path = f"{self._folder}/{checked_name(name)}"
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, Path(path)) from None
        return Entry(name, status.st_size, str(status.st_mtime_ns))

    def entries(self) -> Iterator[Entry]:
        """All that lies under `images/`, in any order; one walk, whatever the number."""
        try:
            with os.scandir(self.path / IMAGES) as found:
                for file in found:
                    # A link's own size and time are never those on record: what it leads to is read.
                    status = file.stat(follow_symlinks=False)
                    yield Entry(f"{IMAGES}/{file.name}", status.st_size, str(status.st_mtime_ns))
        except OSError as error:
            raise storage_error(error, self.path / IMAGES) from None

    def names(self) -> list[str]:
        """The files beside `images/`."""
        try:
            return sorted(p.name for p in self.path.iterdir() if p.is_file() and not name_problem(p.name))
        except OSError as error:
            raise storage_error(error, self.path) from None

    def remove(self, name: str) -> None:
        """Take `name` away; it may be gone already."""
        path = self.path / checked_name(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, path) from None

    def put_file(self, path: Path, name: str) -> None:
        """Put a copy of `path` under `name`, atomically.

        Raises:
            StorageError: Disk full, no permission, or `path` cannot be read.
        """
        final = self.path / checked_name(name)
        temporary = final.with_name(f"{_TEMPORARY}{threading.get_native_id()}-{final.name}")
        try:
            try:
                _copy(path, temporary)
                os.replace(temporary, final)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise storage_error(error, final) from None

    def local(self, name: str) -> Path | None:
        """The file itself; None when it is not there."""
        path = self.path / checked_name(name)
        return path if path.is_file() else None

    def take_over(self, batch_id: str, name: str, own: str, *, size: int, sha256: str) -> Entry | None:
        """Link a file of another batch here; where the file system has no hard links, copy it.

        None when it is not there with this content.
        """
        other = self.root / checked_name(batch_id) / checked_name(name)
        final = self.path / checked_name(own)
        temporary = final.with_name(f"{_TEMPORARY}{threading.get_native_id()}-{final.name}")
        try:
            try:
                temporary.unlink(missing_ok=True)
                try:
                    os.link(other, temporary, follow_symlinks=False)
                except OSError as error:
                    if error.errno in _NO_FILE:
                        return None
                    if error.errno not in _NO_LINKS:
                        raise
                    _copy(other, temporary)
                # Before it gets its name: under that, the next run would take another picture for this one.
                if not _same(temporary, size, sha256):
                    return None
                os.replace(temporary, final)
            finally:
                # Also after rename(2), which does nothing when both names are the same file already.
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, final, size) from None
        return self.entry(own)

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
                for left in self.path.rglob(f"{_TEMPORARY}*"):
                    left.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, self.path) from None
            yield
        finally:
            os.close(handle)

    def open_manifest(self) -> "Manifest":
        """The manifest, for appending; only inside `exclusive`."""
        from raynest_pipeline.images.manifest import Manifest

        return Manifest(self.manifest_path, shared=self.shared_keys())

    def local_manifest(self) -> Path:
        """The manifest's file."""
        return self.manifest_path

    def shared_keys(self) -> "SharedKeys":
        """Which images of other batches of the output folder can be taken over."""
        from raynest_pipeline.images.shared_keys import FolderKeys

        return FolderKeys(self.root, self.batch_id)


def _copy(source: Path, path: Path) -> None:
    with source.open("rb") as data, path.open("wb") as file:
        shutil.copyfileobj(data, file)
        file.flush()
        os.fsync(file.fileno())


def _same(path: Path, size: int, sha256: str) -> bool:
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


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
