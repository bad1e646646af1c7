import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from raynest_pipeline.images.png_text import parse_text
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


def filtered(pixels: list[bytes], kinds: list[int], size: int) -> bytes:
    """The rows of a picture under the PNG filters `kinds`, straight from the specification (9.2)."""
    out, above = bytearray(), bytes(len(pixels[0]))
    for row, kind in zip(pixels, kinds, strict=True):
        out.append(kind)
        for i, value in enumerate(row):
            a = row[i - size] if i >= size else 0
            b = above[i]
            c = above[i - size] if i >= size else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        above = row
    return bytes(out)


def file_of(rows: bytes, width: int, height: int, colour: int, pieces: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = zlib.compress(rows)
    step = -(-len(data) // pieces)
    body = b"".join(chunk(b"IDAT", data[i : i + step]) for i in range(0, len(data), step))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_blank_or_not_is_what_pil_sees_whatever_the_filters(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size, colour = data.draw(st.sampled_from([(1, 0), (3, 2)]))
    flat = data.draw(st.binary(min_size=size, max_size=size))
    rows = [bytearray(flat * width) for _ in range(height)]
    if data.draw(st.booleans()):
        row, at = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width * size - 1))
        rows[row][at] ^= data.draw(st.integers(0, 255))
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    whole = file_of(
        filtered([bytes(row) for row in rows], kinds, size),
        width,
        height,
        colour,
        pieces=data.draw(st.integers(1, 3)),
    )
    with Image.open(io.BytesIO(whole)) as image:
        seen = image.convert("RGB")
        blank = all(low == high for low, high in (seen.getchannel(i).getextrema() for i in range(3)))
    if blank:
        with pytest.raises(WrongImageError, match="one colour"):
            check_png(whole)
    else:
        facts = check_png(whole)
        assert (facts.width, facts.height) == (width, height)


def test_a_large_flat_sky_over_something_is_not_blank() -> None:
    image = Image.new("RGB", (256, 256), (90, 140, 200))
    image.putpixel((255, 255), (90, 141, 200))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert check_png(buffer.getvalue(), 256).width == 256


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (b"\0" + b"\x05" * 12, "1 rows of 4"),
        ((b"\0" + b"\x05" * 12) * 5, "make no sense"),
        ((b"\0" + b"\x05" * 12) * 4 + b"\0", "4 rows of 4"),
        (b"\x07" + b"\x05" * 12, "make no sense"),
        (b"", "0 rows of 4"),
    ],
)
def test_flat_pixels_that_are_not_a_picture(rows: bytes, reason: str) -> None:
    with pytest.raises(IncompleteImageError, match=reason):
        check_png(file_of(rows, 4, 4, 2))


def test_pixels_that_end_in_the_middle_are_noticed_while_they_are_looked_at() -> None:
    whole = file_of((b"\0" + b"\x05" * 12) * 4, 4, 4, 2)
    length = struct.unpack(">I", whole[33:37])[0]
    cut = whole[:33] + chunk(b"IDAT", whole[41 : 41 + length - 5]) + chunk(b"IEND", b"")
    with pytest.raises(IncompleteImageError, match="cut off"):
        check_png(cut)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "I;16"])
def test_other_layouts_are_decoded_whole(mode: str) -> None:
    image = Image.new(mode, (16, 16))
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with pytest.raises(WrongImageError, match="one colour"):
        check_png(buffer.getvalue())
    image.putpixel((3, 3), {"P": 1, "RGBA": (9, 9, 9, 0), "LA": (9, 0), "1": 1, "I;16": 60_000}[mode])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert check_png(buffer.getvalue(), 16).width == 16


def test_every_kind_of_text_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("seed", "12")
    info.add_text("model", "sd", zip=True)
    info.add_itxt("prompt", "一只猫", zip=True)
    info.add_itxt("revision", "é")
    buffer = io.BytesIO()
    Image.radial_gradient("L").save(buffer, "PNG", pnginfo=info)
    assert check_png(buffer.getvalue()).text == {
        "seed": "12",
        "model": "sd",
        "prompt": "一只猫",
        "revision": "é",
    }


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"no separator"),
        (b"tEXt", b"\0no keyword"),
        (b"zTXt", b"k\0\0not zlib"),
        (b"zTXt", b"k\0"),
        (b"zTXt", b"k\0\x01" + zlib.compress(b"other method")),
        (b"iTXt", b"k\0"),
        (b"iTXt", b"k\0\0\0\0\0\xff\xfe"),
        (b"iTXt", b"k\0\0\0no end"),
        (b"zTXt", b"k\0\0" + zlib.compress(b"x" * (2 << 20))),
    ],
)
def test_text_that_makes_no_sense_is_left_out(kind: bytes, body: bytes) -> None:
    assert parse_text(kind, body) is None
