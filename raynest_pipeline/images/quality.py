"""Whether bytes are the whole, right image: the checks before anything is stored."""

import io
import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 8192
"""Pixels; a header that claims more is not believed (a decompression bomb)."""


class IncompleteImageError(ValueError):
    """The data are not a whole PNG: cut off or damaged on the way."""


class WrongImageError(ValueError):
    """A whole PNG, but not the picture that was asked for: its size, or nothing on it."""


@dataclass(frozen=True)
class PngFacts:
    """Width and height in pixels, and the text chunks (keyword to value)."""

    width: int
    height: int
    text: dict[str, str]


def check_png(data: bytes, expected_size: int | None = None) -> PngFacts:
    """Check every chunk's CRC, decode the pixels, and look at them.

    Args:
        data: What claims to be a PNG file.
        expected_size: Width and height in pixels; None: any.

    Raises:
        IncompleteImageError: Not a PNG, cut off, damaged, or followed by other data.
        WrongImageError: Another size, or a single colour all over.
    """
    from PIL import Image, UnidentifiedImageError  # PIL is slow to import, and only needed for real data

    width, height = _walk_chunks(data)
    if expected_size is not None and (width, height) != (expected_size, expected_size):
        raise WrongImageError(f"is {width}x{height} pixels, not {expected_size}x{expected_size}")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise WrongImageError(f"claims {width}x{height} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            text = {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
            rgb = image.convert("RGB")
            bands = [rgb.getchannel(band).getextrema() for band in range(3)]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, zlib.error) as error:
        raise IncompleteImageError(f"cannot be decoded: {error}") from None
    if all(darkest == brightest for darkest, brightest in bands):
        raise WrongImageError("is blank: one colour all over")
    return PngFacts(width, height, text)


def _walk_chunks(data: bytes) -> tuple[int, int]:
    """Width and height from the header, once every chunk from IHDR to IEND is whole."""
    if not data.startswith(SIGNATURE):
        raise IncompleteImageError("does not start like a PNG" if data else "is empty")
    position, width, height, first = len(SIGNATURE), 0, 0, True
    while True:
        if position + 12 > len(data):
            raise IncompleteImageError(f"ends after {len(data)} bytes, before its end marker")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise IncompleteImageError(f"ends after {len(data)} bytes, within a chunk of {length}")
        body = memoryview(data)[position + 4 : end - 4]
        if zlib.crc32(body) != struct.unpack_from(">I", data, end - 4)[0]:
            raise IncompleteImageError(f"is damaged: the checksum of a {kind!r} chunk is wrong")
        if first:
            if kind != b"IHDR" or length != 13:
                raise IncompleteImageError("has no header")
            width, height = struct.unpack_from(">II", data, position + 8)
            first = False
        if kind == b"IEND":
            if end != len(data):
                raise IncompleteImageError(f"is followed by {len(data) - end} bytes of something else")
            return width, height
        position = end
