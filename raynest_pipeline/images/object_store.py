"""A batch below a URL of an object store: `<root>/<batch id>/images/*.png`, and so on as in a folder.

What a folder has and this does not: appending (object_manifest.py), locks (lease.py), hard links
(a copy inside the store).
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raynest_pipeline.errors import InputError, StorageError
from raynest_pipeline.images.batch_store import IMAGES, MANIFEST, SHEET, Entry, checked_name
from raynest_pipeline.images.lease import Lease
from raynest_pipeline.images.names import name_problem
from raynest_pipeline.images.objects import Objects

if TYPE_CHECKING:
    from raynest_pipeline.images.manifest import Manifest
    from raynest_pipeline.images.shared_keys import SharedKeys


class ObjectStore:
    """A batch on an object store (a `BatchStore`). Every object is whole or not there at all."""

    remote = True

    def __init__(self, root: str, batch_id: str, *, objects: Objects | None = None) -> None:
        """
        Args:
            root: URL of the output; nothing is made.
            batch_id: The rule is that of prompt ids.
            objects: Of the batch's URL; for tests that break them.

        Raises:
            InputError: `batch_id` is not safe as a name.
            StorageError: There is no driver, or it finds no credentials.
        """
        if wrong := name_problem(batch_id):
            raise InputError(f"The batch id {batch_id[:140]!r} {wrong}.", fix="Choose another id.")
        self.root = root.rstrip("/")
        self.batch_id = batch_id
        self.objects = objects or Objects(f"{self.root}/{batch_id}")
        self._lease: Lease | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._copies: dict[str, Entry] = {}

    @property
    def manifest_path(self) -> str:
        """The manifest's URL."""
        return self.place(MANIFEST)

    @property
    def sheet_path(self) -> str:
        """The contact sheet's URL."""
        return self.place(SHEET)

    def place(self, name: str = "") -> str:
        """The URL of a name, or of the batch."""
        return self.objects.url_of(checked_name(name) if name else "")

    def write(self, name: str, data: bytes, *, to_go: int = 1) -> str:
        """Put `data` under `name`; returns the stamp.

        Raises:
            StorageError: It could not be put.
            RefusedError: The batch is another process's by now.
        """
        self.check_held()
        return self.objects.put(checked_name(name), data, to_go=to_go).stamp

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`; None when there are none."""
        return self.objects.get(checked_name(name))

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether `name` is there with this very content; reads it."""
        entry = self.entry(name)
        if entry is None or entry.size != size:
            return False
        data = self.read(name)
        return data is not None and hashlib.sha256(data).hexdigest() == sha256

    def entry(self, name: str) -> Entry | None:
        """Size and stamp of `name`; None when it is not there."""
        return self.objects.entry(checked_name(name))

    def entries(self) -> Iterator[Entry]:
        """All that lies under `images/`, by one listing."""
        yield from self.objects.list(IMAGES)

    def names(self) -> list[str]:
        """The objects beside `images/`."""
        return sorted(e.name for e in self.objects.list("") if not name_problem(e.name))

    def remove(self, name: str) -> None:
        """Delete `name`; it may be gone already."""
        self.check_held()
        self.objects.remove(checked_name(name))

    def put_file(self, path: Path, name: str) -> None:
        """Put a copy of a local file under `name`."""
        self.check_held()
        self.objects.put_file(checked_name(name), path)

    def local(self, name: str) -> Path | None:
        """A local copy of `name`, which goes with this object; None when it is not there."""
        path = self.scratch() / checked_name(name).replace("/", "-")
        entry = self.entry(name)
        if entry is None or (self._copies.get(name) == entry and path.is_file()):
            return None if entry is None else path
        part = path.with_name(f".{path.name}")
        if not self.objects.get_file(name, part):
            return None
        os.replace(part, path)
        self._copies[name] = entry
        return path

    def take_over(self, batch_id: str, name: str, own: str, *, size: int, sha256: str) -> Entry | None:
        """Copy an object of another batch here, inside the store; None when it is not there in this size.

        The store vouches for the copy's bytes: to read them would cost as much as to have them painted.
        """
        self.check_held()
        source, name, own = checked_name(batch_id), checked_name(name), checked_name(own)
        other = Objects(f"{self.root}/{source}")
        there = other.entry(name)
        if there is None or there.size != size:
            return None
        return self.objects.copy_from(other, name, own)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the batch by a lease, see lease.py for what that is worth.

        Raises:
            RefusedError: Another process is at work on this batch.
            StorageError: The store cannot be read or written.
        """
        lease = Lease(self.objects)
        lease.take()
        self._lease = lease
        try:
            yield
        finally:
            self._lease = None
            lease.close()

    def check_held(self) -> None:
        """See that a batch that was held still is.

        Raises:
            RefusedError: Another process has taken it over.
        """
        if self._lease is not None:
            self._lease.check()

    def open_manifest(self) -> "Manifest":
        """The manifest, for appending; only inside `exclusive`."""
        from raynest_pipeline.images.object_manifest import ObjectManifest

        return ObjectManifest(self, self.shared_keys())

    def local_manifest(self) -> Path:
        """A local copy of the manifest and its segments."""
        from raynest_pipeline.images.object_manifest import fetch

        path = self.scratch() / MANIFEST
        if fetch(self.objects, path).end == 0:
            raise StorageError(f"{self.place(MANIFEST)} does not exist.", fix="Has the batch been made?")
        return path

    def shared_keys(self) -> "SharedKeys":
        """Which images of other batches under the same root can be taken over."""
        from raynest_pipeline.images.shared_objects import ObjectKeys

        return ObjectKeys(self.root, self.batch_id)

    def scratch(self) -> Path:
        """A folder for local copies; removed with this object."""
        if self._scratch is None:
            try:
                self._scratch = tempfile.TemporaryDirectory(prefix="raynest-")
            except OSError as error:
                raise StorageError(
                    "There is no room for temporary files.",
                    why=str(error),
                    fix="Free some space in the folder for temporary files (TMPDIR).",
                ) from None
        return Path(self._scratch.name)
