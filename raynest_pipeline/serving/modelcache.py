"""Models on this node's disk: fetched once, whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from raynest_pipeline.serving.modelfiles import (
    Listing,
    RemoteFile,
    Source,
    SourceFailed,
    choose_files,
    unfetched,
)

logger = logging.getLogger("ray.serve")

CONNECTIONS = 4
"""Files fetched at a time."""
SPARE_BYTES = 200 << 20
"""Left free on the disk beyond what is fetched."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole model on this disk."""

    folder: Path
    revision: str
    origin: str
    """How it came here, in words."""


def default_cache() -> Path:
    """Where models are kept when no option says so."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raynest" / "models"


class ModelCache:
    """A folder of models, one below another: `<kind>/<name>/<revision>/`.

    A revision's folder comes into being by a rename, after its last file is written. What a killed process
    left is in `.partial-<revision>`: the files in it that are whole are kept, the next start goes on there.
    """

    def __init__(self, root: Path) -> None:
        """Make nothing yet."""
        self.root = root

    def get(self, key: str, asked: str, source: Source, half: bool) -> Stored:
        """The model `key` as `source` has it now; or as it was last seen, if the source doesn't answer.

        Args:
            key: `<kind>/<name>`.
            asked: The revision that is asked for; "" is the default one.
            source: Where it comes from.
            half: Whether weights in half precision will do.

        Raises:
            SourceFailed: There is none, the disk is full, or it cannot be written.
        """
        entry = self.root / key
        reference = entry / f"seen-{safe_name(asked or 'default')}{'-half' if half else ''}"
        try:
            listing = choose_files(source.list(), half)
        except SourceFailed as error:
            return self._last_seen(entry, reference, source, error)
        stored = entry / listing.revision
        if stored.is_dir():
            # A cache that was filled elsewhere may be mounted read-only: then nothing is remembered.
            with contextlib.suppress(OSError):
                write_whole(reference, listing.revision)
            return Stored(stored, listing.revision, f"cached in {entry}")
        with disk_errors(entry):
            entry.mkdir(parents=True, exist_ok=True)
            with node_lock(entry / ".lock"):
                if stored.is_dir():
                    return Stored(stored, listing.revision, f"cached in {entry}, by another process")
                self._download(source, listing, stored)
                write_whole(reference, listing.revision)
        return Stored(stored, listing.revision, f"downloaded from {source.where}")

    def _last_seen(self, entry: Path, reference: Path, source: Source, error: SourceFailed) -> Stored:
        try:
            revision = reference.read_text(encoding="utf-8").strip()
        except OSError:
            raise error from None
        if not revision or not (entry / revision).is_dir():
            raise error
        logger.warning("%s: %s; going on with the copy in %s", source.where, error, entry / revision)
        return Stored(entry / revision, revision, f"cached in {entry}; {source.where} could not be asked")

    def _download(self, source: Source, listing: Listing, stored: Path) -> None:
        partial = stored.with_name(f".partial-{listing.revision}")
        for old in set(stored.parent.glob(".partial-*")) - {partial}:
            shutil.rmtree(old, ignore_errors=True)
        missing = unfetched(partial, listing.files)
        require_space(stored.parent, sum(file.size for file in missing))
        logger.info(
            "fetching %d of %d files (%s) from %s",
            len(missing),
            len(listing.files),
            in_words(sum(file.size for file in missing)),
            source.where,
        )
        with ThreadPoolExecutor(CONNECTIONS, "fetch") as pool:
            futures = [pool.submit(fetch_whole, source, file, partial / file.path) for file in missing]
            try:
                # As they end: a failure is not to wait until the gigabytes before it are there.
                for number, future in enumerate(as_completed(futures), 1):
                    future.result()
                    logger.info("fetched %d of %d files", number, len(missing))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        os.replace(partial, stored)


def fetch_whole(source: Source, file: RemoteFile, target: Path) -> None:
    """Fetch one file under another name, and give it its own once it is whole and on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    source.fetch(file, part)
    size = part.stat().st_size
    if size != file.size:
        part.unlink()
        raise SourceFailed(f"{file.path} came with {size} bytes instead of {file.size}")
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)


@contextlib.contextmanager
def node_lock(path: Path) -> Iterator[None]:
    """Only one process of this node at a time. The kernel frees it when its holder dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is fetching this model; waiting for it (%s)", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into SourceFailed."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        raise SourceFailed(f"the cache {folder} cannot be written: {error}") from error


def require_space(folder: Path, size: int) -> None:
    """Raises SourceFailed when `size` bytes would fill the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if size and free < size + SPARE_BYTES:
        raise SourceFailed(
            f"it takes {in_words(size)}, but {folder} has {in_words(free)} free; "
            "give it more, or another cache_dir (RAYNEST_MODEL_CACHE)"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def safe_name(text: str) -> str:
    """`text` as one file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:100]


def in_words(size: int) -> str:
    """Bytes for a person: `3.4 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
