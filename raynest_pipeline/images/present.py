"""Which images of a batch are there already: the rules of resuming, the same for every engine.

In this order: a record whose file the store still lists with the recorded size and stamp (nothing is
read); a record whose file, read whole, has the recorded SHA-256; a finished file without a record of it (its
process was killed in between), once it proves whole; an image of the same content key in another batch
under the same root. The latter two are to be recorded as adopted.
"""

import hashlib
from dataclasses import dataclass

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import IMAGES, BatchStore
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.quality import IncompleteImageError, WrongImageError, check_png
from raynest_pipeline.images.shared_keys import SharedImage


@dataclass(frozen=True, slots=True)
class Found:
    """A whole image that the manifest does not know of yet: fields of its record, by their names."""

    file: str
    sha256: str
    size_bytes: int
    width: int
    height: int
    stamp: str | None
    origin: str = ""


class Present:
    """The images of one batch that need not be made. For one thread at a time."""

    def __init__(self, store: BatchStore, manifest: Manifest, *, verify: bool = False) -> None:
        """Lists an object store once; in a folder each image is looked at when its turn comes.

        Args:
            store: Held (`exclusive`).
            manifest: Of the store.
            verify: Read every recorded image and compare its SHA-256, whatever size and stamp say.

        Raises:
            StorageError: It cannot be listed.
        """
        self._store = store
        self._manifest = manifest
        self._verify = verify
        if store.remote:
            manifest.survey(store.entries())

    def has(self, prompt_id: str, key: str, file: str) -> bool:
        """Whether the image of this prompt and content key is on record, and its file there and whole.

        Raises:
            StorageError: It cannot be read.
        """
        if not self._verify and self._unchanged(prompt_id, key, file):
            return True
        record = self._manifest.latest(prompt_id)
        if record is None or record.key != key or record.file != file or record.status == "failed":
            return False
        whole = self._store.holds(file, record.size_bytes or 0, record.sha256 or "")
        self._manifest.use(prompt_id, there=whole)
        return whole

    def adopt(self, key: str, file: str, size: int | None) -> Found | None:
        """A whole image for `file` that is here unrecorded, or in another batch. For after `has` said no.

        Args:
            key: Content key.
            file: Name in this batch.
            size: Expected width and height, pixels; None: any.

        Raises:
            StorageError: What is here cannot be read.
        """
        may_be_here = not self._store.remote or self._manifest.loose(file)
        if may_be_here and (found := self._own(file, size)) and not self._replaced(key, found):
            return found
        shared = self._manifest.shared.find(key) if self._manifest.shared is not None else None
        if shared is None or shared.file != f"{IMAGES}/{image_name(_id_in(shared.file), key)}":
            return None
        try:
            return self._taken_over(shared, file)
        except StorageError:
            # It was only a hint: the image is made. A disk that is full says so again when it is stored.
            return None

    def _unchanged(self, prompt_id: str, key: str, file: str) -> bool:
        if self._store.remote:
            return self._manifest.reuse(prompt_id, key)
        entry = self._store.entry(file)
        return entry is not None and self._manifest.found(prompt_id, key, entry.size, entry.stamp)

    def _own(self, file: str, size: int | None) -> Found | None:
        data, entry = self._store.read(file), self._store.entry(file)
        if data is None or entry is None:
            return None
        try:
            png = check_png(data, size)
        except (IncompleteImageError, WrongImageError):
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        return Found(file, sha256, len(data), png.width, png.height, entry.stamp)

    def _replaced(self, key: str, found: Found) -> bool:
        """Whether the file is on record with other content: somebody has put another picture in its place."""
        record = self._manifest.latest(_id_in(found.file))
        return (
            record is not None
            and (record.key, record.file) == (key, found.file)
            and record.status != "failed"
            and record.sha256 != found.sha256
        )

    def _taken_over(self, shared: SharedImage, file: str) -> Found | None:
        size, sha256 = shared.size_bytes, shared.sha256
        entry = self._store.take_over(shared.batch, shared.file, file, size=size, sha256=sha256)
        if entry is None:
            return None
        return Found(
            file=file,
            sha256=shared.sha256,
            size_bytes=shared.size_bytes,
            width=shared.width,
            height=shared.height,
            stamp=entry.stamp,
            origin=shared.batch,
        )


def _id_in(file: str) -> str:
    return file.removeprefix(f"{IMAGES}/").rpartition("-")[0]
