import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raynest_pipeline.images.manifest import Record
from raynest_pipeline.images.sheet import (
    INLINE_CHARACTERS,
    INLINE_WIDTH,
    MAX_CELLS,
    chosen,
    inline_sheet,
    small_sheet,
    write_sheet,
)
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.images.summary import Summary

PREFIX = "](data:image/jpeg;base64,"


def record(number: int, **changes: Any) -> Record:
    base = Record(
        id=f"p{number:03d}",
        batch="b",
        status="made",
        key="k",
        prompt=f"a small red circle number {number} left of a large blue square on a white background",
        negative_prompt="",
        seed=number,
        size=64,
        steps=1,
        guidance=1.0,
        model="sd",
        revision="",
        made_at="2026-01-01T00:00:00+00:00",
        file=f"images/p{number:03d}.png",
        width=64,
        height=64,
    )
    return replace(base, **changes)


@pytest.fixture
def batch(tmp_path: Path, kit: Any) -> tuple[BatchFolder, list[Record]]:
    store = BatchFolder(tmp_path, "b")
    records = [record(i) for i in range(16)]
    for one in records:
        store.write(str(one.file), kit.png(one.prompt, one.seed, 64))
    return store, records


def inline_image(markdown: str) -> Image.Image:
    head, data = markdown.split(PREFIX)
    assert head == "![contact sheet of b"
    return Image.open(io.BytesIO(base64.b64decode(data.removesuffix(")"))))


def test_the_full_sheet_is_a_jpeg_on_disk(batch: tuple[BatchFolder, list[Record]]) -> None:
    store, records = batch
    assert write_sheet(store, Summary.of(records)) == "sheet.jpg"
    with Image.open(store.sheet_path) as sheet:
        assert sheet.format == "JPEG" and sheet.width > 6 * 256
        assert len(sheet.getcolors(1 << 24) or ()) > 1000


def test_the_inline_sheet_keeps_the_uis_limits(batch: tuple[BatchFolder, list[Record]]) -> None:
    # Noise is the worst there is for a JPEG.
    markdown = inline_sheet(batch[0], Summary.of(batch[1]))
    assert 10_000 < len(markdown) <= INLINE_CHARACTERS
    assert inline_image(markdown).width <= INLINE_WIDTH
    assert "\n" not in markdown


def test_both_are_the_same_on_every_run_and_in_any_order(batch: tuple[BatchFolder, list[Record]]) -> None:
    store, records = batch
    write_sheet(store, Summary.of(records))
    first, inline = store.sheet_path.read_bytes(), inline_sheet(store, Summary.of(records))
    write_sheet(store, Summary.of(records[::-1]))
    assert store.sheet_path.read_bytes() == first
    assert inline_sheet(store, Summary.of(records[::-1])) == inline


def test_captions_change_the_picture(batch: tuple[BatchFolder, list[Record]]) -> None:
    store, records = batch
    other = [replace(r, id=r.id + "x") for r in records]
    assert inline_sheet(store, Summary.of(records)) != inline_sheet(store, Summary.of(other))


def reddish(image: Image.Image) -> int:
    """Pixels of the warning's colour among the first two lines."""
    top = image.convert("RGB").crop((0, 0, image.width, 44))
    return sum(
        n for n, c in top.getcolors(1 << 20) or () if isinstance(c, tuple) and c[0] > 150 and c[1] < 110
    )


def test_an_untrained_model_is_named_in_the_warning_colour(batch: tuple[BatchFolder, list[Record]]) -> None:
    store, records = batch
    untrained = [replace(r, model="tiny-untrained (random weights)") for r in records]
    shown = {}
    for name, those in (("untrained", untrained), ("trained", records)):
        write_sheet(store, Summary.of(those))
        with Image.open(store.sheet_path) as full:
            shown[name] = (reddish(full), reddish(inline_image(inline_sheet(store, Summary.of(those)))))
    assert min(shown["untrained"]) > 10
    assert shown["trained"] == (0, 0)


def test_missing_failed_and_foreign_letters_do_not_break_a_sheet(
    batch: tuple[BatchFolder, list[Record]],
) -> None:
    store, records = batch
    (store.path / str(records[0].file)).unlink()
    records[1] = replace(records[1], status="failed", file=None)
    records[2] = replace(records[2], prompt="一只猫 🐈 \t عربي " * 50)
    records[3] = replace(records[3], prompt="x" * 4000, id="i" * 128)
    write_sheet(store, Summary.of(records))
    assert inline_image(inline_sheet(store, Summary.of(records))).width == INLINE_WIDTH


def test_an_empty_batch_still_has_a_sheet(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    write_sheet(store, Summary.of([]))
    assert inline_image(inline_sheet(store, Summary.of([]))).width == INLINE_WIDTH


def test_large_images_are_scaled_down(tmp_path: Path, kit: Any) -> None:
    store = BatchFolder(tmp_path, "b")
    records = [record(i, width=512, height=512) for i in range(3)]
    for one in records:
        store.write(str(one.file), kit.png(one.prompt, one.seed, 512))
    write_sheet(store, Summary.of(records))
    with Image.open(store.sheet_path) as sheet:
        assert sheet.width == 4 * 266 + 10


def test_the_selection_is_even_and_keeps_both_ends() -> None:
    records = [record(i) for i in range(1000)]
    shown = chosen(records, MAX_CELLS)
    assert len(shown) == len({r.id for r in shown}) == MAX_CELLS
    assert (shown[0].id, shown[-1].id) == ("p000", "p999")
    assert chosen(records[:5], 60) == records[:5]
    assert chosen(records, 1) == records[:1]


def test_the_small_sheet_fits_the_uis_table(batch: tuple[BatchFolder, list[Record]]) -> None:
    data = small_sheet(batch[0], Summary.of(batch[1]))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and image.width <= 360
    assert len(data) < 60_000
