import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raynest_pipeline.images.quality import IncompleteImageError, WrongImageError, check_png


@pytest.fixture
def good(kit: Any) -> bytes:
    data: bytes = kit.png("a cat", 1, 40)
    return data


def test_a_good_image_passes_with_its_facts(kit: Any) -> None:
    png = check_png(kit.png("x", size=48, text={"seed": "12", "model": "模型"}), 48)
    assert (png.width, png.height, png.text) == (48, 48, {"seed": "12", "model": "模型"})


def test_every_cut_is_noticed(good: bytes) -> None:
    for length in [0, 1, 8, 20, 33, len(good) // 2, *range(len(good) - 20, len(good))]:
        with pytest.raises(IncompleteImageError):
            check_png(good[:length])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_flipped_byte_is_noticed(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((32, 32)).save(buffer, "PNG")
    whole = bytearray(buffer.getvalue())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((IncompleteImageError, WrongImageError)):
        check_png(bytes(whole), 32)


def test_trailing_bytes_are_not_accepted(good: bytes) -> None:
    with pytest.raises(IncompleteImageError, match="followed by 6 bytes"):
        check_png(good + b"<html>")


@pytest.mark.parametrize("data", [b"<html>502 Bad Gateway</html>", b"{}", b"\xff\xd8\xff\xe0JFIF"])
def test_other_files_are_not_images(data: bytes) -> None:
    with pytest.raises(IncompleteImageError, match="does not start like a PNG"):
        check_png(data)


def test_another_size_is_told(good: bytes) -> None:
    with pytest.raises(WrongImageError, match="40x40 pixels, not 64x64"):
        check_png(good, 64)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_a_single_colour_is_blank_in_every_mode(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16), 0).save(buffer, "PNG")
    with pytest.raises(WrongImageError, match="one colour"):
        check_png(buffer.getvalue(), 16)


def test_one_other_pixel_is_not_blank() -> None:
    image = Image.new("RGB", (16, 16), "white")
    image.putpixel((3, 3), (255, 255, 254))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert check_png(buffer.getvalue(), 16).width == 16


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_pixels_that_cannot_be_inflated_are_noticed() -> None:
    header = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"rubbish") + chunk(b"IEND", b"")
    with pytest.raises(IncompleteImageError, match="decoded"):
        check_png(data, 32)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    with pytest.raises(WrongImageError, match="100000x100000"):
        check_png(data)


def test_a_png_must_start_with_its_header() -> None:
    with pytest.raises(IncompleteImageError, match="no header"):
        check_png(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""))
