"""Pixels to bytes: lossless PNG with its provenance, and the two lossy formats."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raynest_pipeline.serving.contract import ImageFormat
from raynest_pipeline.serving.encode import MEDIA_TYPES, encode

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


def test_png_keeps_every_pixel_and_the_metadata() -> None:
    data = encode(PIXELS, "png", {"prompt": "a red circle", "seed": "7"})
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.text == {"prompt": "a red circle", "seed": "7"}
    assert np.array_equal(np.asarray(image), PIXELS)


# PNG ends text at a NUL and surrogates are not text; the API never lets either through to a model.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200)


@settings(max_examples=50, deadline=None)
@given(TEXT)
def test_any_prompt_survives_in_png_text(prompt: str) -> None:
    image = Image.open(io.BytesIO(encode(PIXELS, "png", {"prompt": prompt})))
    image.load()
    assert image.text["prompt"] == prompt


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_lossy_formats_are_what_they_say_and_close(image_format: ImageFormat) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    image = Image.open(io.BytesIO(encode(smooth, image_format, {"prompt": "x"})))
    assert (image.format or "").lower() == image_format
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - smooth)
    assert difference.mean() < 4


def test_every_format_has_a_media_type() -> None:
    assert MEDIA_TYPES == {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
