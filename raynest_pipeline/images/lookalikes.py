"""Images that look the same although their seeds differ: a model or an endpoint that repeats itself.

Each image becomes a 64-bit difference hash (dHash: whether brightness rises from each of 9x8 cells to its
right neighbour) and a 16x16 colour miniature. Hashes that differ in at most 3 bits agree in at least one of
four bands of 16 (pigeonhole), so only images that share a band are compared. The hash is blind to colour and
says little about plain images; the miniature decides.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raynest_pipeline.images.record import Record
from raynest_pipeline.images.side_by_side import side_by_side

BANDS = 4
BAND_BITS = 16
MOST_BITS = BANDS - 1
"""Hashes that differ in more bits are of different images."""
LEAST_RISE = 4
"""Of 255; less is noise on a plain ground, which would make the bits of it random."""
MOST_COLOUR = 40
"""Difference of the miniatures, of 255, in the channel of the cell that differs most, up to which two images
look the same. Not the mean: on a plain ground a circle and a cross differ in a few cells only."""
MOST_COMPARED = 64
"""Images of one band that a new one is held against: plain images may all share a band."""
SIDE = 8
MINIATURE = 16
FORMATS = ("PNG", "WEBP", "JPEG")


@dataclass(frozen=True)
class Print:
    """What is kept of an image: hash and miniature (16x16 RGB, 768 bytes)."""

    dhash: int
    miniature: bytes


@dataclass(frozen=True)
class Pair:
    """Two prompt ids whose images look the same."""

    first: str
    second: str


def fingerprint(data: bytes) -> Print | None:
    """The print of an image file; None when it cannot be read as one."""
    from PIL import Image  # slow to import, and not needed to make a batch

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    grey = rgb.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(SIDE):
        for column in range(SIDE):
            at = row * (SIDE + 1) + column
            bits = bits << 1 | (grey[at + 1] - grey[at] >= LEAST_RISE)
    return Print(bits, rgb.resize((MINIATURE, MINIATURE), Image.Resampling.BOX).tobytes())


def alike(a: Print, b: Print) -> bool:
    """Whether two images look the same."""
    if (a.dhash ^ b.dhash).bit_count() > MOST_BITS:
        return False
    return all(abs(x - y) <= MOST_COLOUR for x, y in zip(a.miniature, b.miniature, strict=True))


def lookalikes(
    records: Iterable[Record], read: Callable[[str], bytes | None], *, most: int = 100
) -> tuple[int, list[Pair]]:
    """Pairs of images that look the same and have different seeds.

    Args:
        records: Finished ones; each image is read once.
        read: Gives the bytes of a file name; None: not there. Called in several threads.
        most: Pairs to list.

    Returns:
        How many images were looked at, and the pairs.
    """
    bands: list[dict[int, list[tuple[Record, Print]]]] = [{} for _ in range(BANDS)]
    pairs: list[Pair] = []
    seen = 0

    def look(record: Record) -> tuple[Record, Print | None]:
        data = read(record.file) if record.file else None
        return record, fingerprint(data) if data is not None else None

    for record, own in side_by_side(look, records):
        if own is None:
            continue
        seen += 1
        compared: set[str] = set()
        for band, known in enumerate(bands):
            sharing = known.setdefault(own.dhash >> band * BAND_BITS & 0xFFFF, [])
            for other, theirs in sharing[-MOST_COMPARED:]:
                if other.id in compared or other.seed == record.seed:
                    continue
                compared.add(other.id)
                if len(pairs) < most and alike(own, theirs):
                    pairs.append(Pair(other.id, record.id))
            sharing.append((record, own))
    return seen, pairs


def difference(a: bytes, b: bytes) -> int | None:
    """The largest difference of any channel of any pixel, 0 to 255; None when the sizes differ.

    Raises:
        ValueError: One of them is not an image.
    """
    from PIL import Image, ImageChops

    try:
        with (
            Image.open(io.BytesIO(a), formats=FORMATS) as first,
            Image.open(io.BytesIO(b), formats=FORMATS) as second,
        ):
            one, two = first.convert("RGB"), second.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not an image: {error}") from None
    if one.size != two.size:
        return None
    return max(ImageChops.difference(one, two).tobytes())
