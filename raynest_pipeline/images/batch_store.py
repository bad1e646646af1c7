"""Where a batch lies, whatever it lies on: a folder of this machine, or a prefix of an object store.

`open_batch` is the way in. Names go in and out as text relative to the batch, with forward slashes:
`images/<id>-<key>.png`, `manifest.jsonl`, `manifest.parquet`, `sheet.jpg`, `prompts.csv`.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.names import FINE_NAME, MAX_FILE_NAME, name_problem

if TYPE_CHECKING:
    from raynest_pipeline.images.manifest import Manifest
    from raynest_pipeline.images.shared_keys import SharedKeys

IMAGES = "images"
MANIFEST = "manifest.jsonl"
PARQUET = "manifest.parquet"
SHEET = "sheet.jpg"
_LOCAL = ("file", "local")
_FINE = re.compile(f"(?:{FINE_NAME}/)?{FINE_NAME}", re.IGNORECASE | re.ASCII)


class Entry(NamedTuple):
    """A stored file, as a listing tells it."""

    name: str
    size: int
    """Bytes."""
    stamp: str
    """Changes whenever the content does: the modification time in nanoseconds, or the store's ETag."""


class BatchStore(Protocol):
    """One batch's place. Every write is whole or not there at all.

    All methods may be called from several threads, and raise `StorageError` when the store does not do
    what it is asked for: disk full, no permission, no network.
    """

    batch_id: str
    remote: bool
    """Whether each call is a request over a network."""

    @property
    def manifest_path(self) -> Path | str:
        """Where `manifest.jsonl` lies: a path, or a URL."""
        ...

    @property
    def sheet_path(self) -> Path | str:
        """Where the contact sheet lies."""
        ...

    def place(self, name: str = "") -> str:
        """The path or URL of a name, for people; of the batch itself without one."""
        ...

    def write(self, name: str, data: bytes, *, to_go: int = 1) -> str:
        """Put `data` under `name`, atomically; returns the stamp of what is there now.

        Args:
            to_go: Files of this size still to come, this one included; for the message of a full disk.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none."""
        ...

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether `name` is there with this very content (size in bytes, SHA-256 in hex); reads it all."""
        ...

    def entry(self, name: str) -> Entry | None:
        """What a listing says of `name`; None when it is not there."""
        ...

    def entries(self) -> Iterator[Entry]:
        """All that lies under `images/`, in any order."""
        ...

    def names(self) -> list[str]:
        """The names of the files beside `images/`: manifest, sheet, prompts."""
        ...

    def remove(self, name: str) -> None:
        """Take `name` away; it may be gone already."""
        ...

    def put_file(self, path: Path, name: str) -> None:
        """Put a copy of a local file under `name`, atomically, without reading it into memory."""
        ...

    def local(self, name: str) -> Path | None:
        """A local file with the content of `name`: itself, or a copy that lives as long as this object."""
        ...

    def take_over(self, batch_id: str, name: str, own: str, *, size: int, sha256: str) -> Entry | None:
        """Make `own` from the file `name` of another batch under the same root, without moving its bytes.

        A hard link, or a copy inside the object store. None when it is not there with this content (size in
        bytes, SHA-256 in hex; of an object only the size is looked at): then `own` stays as it was.
        """
        ...

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the batch for this process alone, and remove what a killed predecessor half wrote.

        Raises:
            RefusedError: Another process is at work on this batch.
        """
        ...

    def open_manifest(self) -> "Manifest":
        """The manifest, for appending; only inside `exclusive`."""
        ...

    def local_manifest(self) -> Path:
        """A local file with the manifest's lines as they are now, for reading.

        Raises:
            StorageError: There is no manifest.
        """
        ...

    def shared_keys(self) -> "SharedKeys":
        """Which images of other batches under the same root can be taken over."""
        ...


def is_url(root: str | Path) -> bool:
    """Whether `root` names an object store and not a folder."""
    return isinstance(root, str) and "://" in root and urlsplit(root).scheme not in _LOCAL


def root_of(root: str | Path) -> str | Path:
    """An output root as it is used: a URL without a slash at its end, or an absolute path."""
    if is_url(root):
        return str(root).rstrip("/")
    text = str(root)
    if "://" in text:
        text = unquote(text.split("://", 1)[1])
    return Path(text).expanduser().absolute()


def open_batch(root: str | Path, batch_id: str) -> BatchStore:
    """The store of a batch.

    Args:
        root: The output folder (made when missing), or a URL: `oss://bucket/prefix`, `s3://`, `gs://`,
            `file://`, or any other that fsspec knows and that puts whole objects.
        batch_id: Names the batch below the root; the rule is that of prompt ids.

    Raises:
        InputError: `batch_id` is not safe as a name.
        StorageError: The folder cannot be made, the driver of the URL is not installed, or there are no
            credentials.
    """
    from raynest_pipeline.images.object_store import ObjectStore
    from raynest_pipeline.images.store import BatchFolder

    root = root_of(root)
    return BatchFolder(root, batch_id) if isinstance(root, Path) else ObjectStore(root, batch_id)


def checked_name(name: str) -> str:
    """`name`, unless it is a way out of the batch: each part must be a safe name.

    Raises:
        StorageError: It is not.
    """
    # At one look for most: once for each image of a resumed batch.
    if len(name) <= MAX_FILE_NAME and _FINE.fullmatch(name):
        return name
    parts = name.split("/")
    if len(parts) > 2 or any(name_problem(part, MAX_FILE_NAME) for part in parts):
        raise StorageError(f"{name[:300]!r} is not a name inside the batch's folder.")
    return name
