"""Small files that must survive a crash: written whole or not at all, readable by their owner only."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raynest_pipeline.errors import StorageError

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


def private_dir(path: Path) -> Path:
    """Make a folder (and its parents) that only its owner can enter; one that is there keeps its permissions.

    What is secret in it is private by itself: `write_atomic` makes files for their owner only.

    Raises:
        StorageError: It cannot be made.
    """
    with _storage_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=PRIVATE_DIR, exist_ok=True)
    return path


def write_atomic(path: Path, text: str) -> None:
    """Write a private file so that a reader, or a crash, sees the old text or the new one, never a part.

    Raises:
        StorageError: Disk full, no permission.
    """
    with _storage_errors(path):
        replace_file(path, text.encode(), PRIVATE_FILE, prefix=f".{path.name}.", durable=True)


def replace_file(path: Path, data: bytes, mode: int, *, prefix: str, durable: bool) -> None:
    """Write a file of that mode, so that a reader sees the old one or the new one.

    Args:
        path: In a folder that is there.
        data: All of it.
        mode: Permissions.
        prefix: Of the temporary file's name beside it.
        durable: It is on the disk when it is there at all, whatever crashes.

    Raises:
        OSError: Disk full, no permission.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        # Also on an interrupt: a temporary file that nobody knows of would stay for ever.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file or it holds no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StorageError(
            f"Cannot write {path}.",
            why="the disk is full" if full else (error.strerror or str(error)),
            fix="Free some space and run the same command again."
            if full
            else "Check the folder's owner and permissions, or set `home` to another folder.",
        ) from error
