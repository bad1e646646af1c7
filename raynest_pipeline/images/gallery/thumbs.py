"""Thumbnails: small pictures of large images, made once."""

import io
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from raynest_pipeline.images.gallery.place import Place
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.side_by_side import side_by_side

THUMBS = "thumbs"
QUALITY = 82
WORTH = 1.5
"""An image is only made smaller when its longer side is more than this times the thumbnail's."""
FORMATS = ("PNG", "WEBP", "JPEG")


def thumb_name(record: Record, pixels: int) -> str | None:
    """The name of the thumbnail that stands for a record; None when the image is shown itself.

    It holds the image's own name, and with it the content key: a thumbnail never goes stale.
    """
    side = max(record.width or 0, record.height or 0)
    if not record.file or side <= pixels * WORTH:
        return None
    return f"{THUMBS}/{PurePosixPath(record.file).stem}-{pixels}.webp"


def with_thumbs(
    batch: Place, records: Iterable[Record], *, pixels: int, most: int
) -> Iterator[tuple[Record, str | None]]:
    """Each record with the name of its thumbnail, which is there by then; None: show the image itself.

    Args:
        batch: The batch's place.
        records: In the order in which they come back.
        pixels: Longer side.
        most: Thumbnails to have; images beyond are shown themselves.

    Raises:
        StorageError: The place can't be read or written.
    """
    there = batch.names(THUMBS)

    def named() -> Iterator[tuple[Record, str | None]]:
        left = most
        for record in records:
            name = thumb_name(record, pixels)
            left -= name is not None
            yield record, name if left >= 0 else None

    def work(item: tuple[Record, str | None]) -> tuple[Record, str | None]:
        record, name = item
        if name is None or name.removeprefix(f"{THUMBS}/") in there:
            return record, name
        data = shrink(batch.read(str(record.file)), pixels)
        if data is None:
            return record, None
        batch.write(name, data)
        return record, name

    return side_by_side(work, named())


def shrink(data: bytes | None, pixels: int) -> bytes | None:
    """An image as a WebP with `pixels` on its longer side; None when it cannot be read as an image."""
    from PIL import Image  # slow to import, and not needed to make a batch

    if data is None:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (pixels, pixels))
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    rgb.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()
