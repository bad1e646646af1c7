"""Contact sheets: the batch at a glance, on disk and inside the Dagster UI.

The same records give the same bytes. The UI shows a data URI inside a markdown value, cuts off what
is wider than about 450 pixels, and every byte of it is stored several times over in the event log
(measured in Dagster 1.13.27); hence the limits of `inline_sheet`.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raynest_pipeline.images.batch_store import SHEET, BatchStore
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.summary import MOST_SHOWN, Summary, even

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

INLINE_WIDTH = 450
INLINE_CHARACTERS = 60_000
SMALL_WIDTH = 360
SMALL_CELLS = 12
MAX_CELLS = MOST_SHOWN
"""Images on a full sheet; of a larger batch, a selection at even distances."""
BACKGROUND, INK, FAINT, WARNING = "#f7f7f5", "#1c1c1c", "#6b6b6b", "#b3261e"
MARGIN = 10


@dataclass(frozen=True)
class _Layout:
    columns: int
    cell: int
    """Side of a picture, pixels."""
    caption_lines: int
    font_size: int

    @property
    def line_height(self) -> int:
        return round(self.font_size * 1.35)


def write_sheet(store: BatchStore, batch: Summary) -> str:
    """Write `sheet.jpg` with the images of a batch.

    Returns:
        Its name, relative to the batch's folder.

    Raises:
        StorageError: It cannot be written.
    """
    columns = 6 if batch.finished + batch.failed > 12 else 4
    layout = _Layout(columns=columns, cell=_whole_multiple(batch.shown, 256), caption_lines=4, font_size=14)
    image = _compose(store, batch, layout, MAX_CELLS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, optimize=True)
    store.write(SHEET, buffer.getvalue())
    return SHEET


def inline_sheet(store: BatchStore, batch: Summary) -> str:
    """A markdown image with the sheet in it: at most 450 pixels wide and 60,000 characters long."""
    layout = _Layout(columns=4, cell=(INLINE_WIDTH - 5 * MARGIN) // 4, caption_lines=1, font_size=10)
    markdown = ""
    for cells in (16, 12, 8, 4, 2, 1):
        image = _compose(store, batch, layout, cells)
        for quality in (85, 70, 55, 40):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, optimize=True)
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            markdown = f"![contact sheet of {store.batch_id}](data:image/jpeg;base64,{data})"
            if len(markdown) <= INLINE_CHARACTERS:
                return markdown
    return markdown


def small_sheet(store: BatchStore, batch: Summary) -> bytes:
    """A JPEG of up to 12 images for the UI to show in place: the metadata table of a window 1400 pixels wide
    leaves 370 for it.
    """
    layout = _Layout(columns=3, cell=(SMALL_WIDTH - 4 * MARGIN) // 3, caption_lines=1, font_size=10)
    buffer = io.BytesIO()
    _compose(store, batch, layout, SMALL_CELLS).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def chosen(records: Sequence[Record], most: int) -> list[Record]:
    """The finished records by id, or `most` of them at even distances, the first and the last included.

    By id, since the manifest's own order is that in which the images happened to be finished.
    """
    finished = sorted(
        (record for record in records if record.file is not None and record.status != "failed"),
        key=lambda record: record.id,
    )
    return [finished[i] for i in even(len(finished), most)]


def _whole_multiple(records: Sequence[Record], most: int) -> int:
    """Up to `most` pixels: a multiple of small images' side, so that whole factors enlarge them."""
    side = max((record.width or 0 for record in records), default=0)
    return most // side * side if 0 < side <= most else most


def _compose(store: BatchStore, batch: Summary, layout: _Layout, most: int) -> "Image.Image":
    from PIL import Image, ImageDraw, ImageFont  # slow to import, and not needed to make a batch

    shown = chosen(batch.shown, most)
    font = ImageFont.load_default(layout.font_size)
    rows = max(1, -(-len(shown) // layout.columns))
    pitch = layout.cell + layout.caption_lines * layout.line_height + MARGIN
    width = layout.columns * (layout.cell + MARGIN) + MARGIN
    head = 2 * layout.line_height + 2 * MARGIN
    sheet = Image.new("RGB", (width, head + rows * pitch), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _title(draw, store.batch_id, batch, len(shown), font, layout, width)
    for index, record in enumerate(shown):
        left = MARGIN + (index % layout.columns) * (layout.cell + MARGIN)
        top = head + (index // layout.columns) * pitch
        picture = _picture(store, record, layout.cell)
        if picture is None:
            draw.rectangle((left, top, left + layout.cell - 1, top + layout.cell - 1), outline=WARNING)
            draw.text((left + 6, top + 6), "missing", fill=WARNING, font=font)
        else:
            middle = ((layout.cell - picture.width) // 2, (layout.cell - picture.height) // 2)
            sheet.paste(picture, (left + middle[0], top + middle[1]))
        for line, text in enumerate(_caption(record, font, layout)):
            at = (left, top + layout.cell + 2 + line * layout.line_height)
            draw.text(at, text, fill=INK if line == 0 else FAINT, font=font)
    return sheet


def _title(
    draw: "ImageDraw.ImageDraw",
    batch_id: str,
    batch: Summary,
    shown: int,
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
    layout: _Layout,
    width: int,
) -> None:
    finished = batch.finished
    counts = f"{shown:,} of {finished:,} images" if shown < finished else f"{finished:,} images"
    if batch.failed:
        counts += f", {batch.failed:,} failed"
    models = sorted({record.model for record in batch.shown if record.model})
    name = _readable(", ".join(models)) or "not named by the endpoint"
    untrained = "untrained" in name or "random weights" in name
    room = width - 2 * MARGIN
    draw.text((MARGIN, MARGIN), _fit(f"{batch_id}: {counts}", font, room), fill=INK, font=font)
    draw.text(
        (MARGIN, MARGIN + layout.line_height),
        _fit(f"model: {name}", font, room),
        fill=WARNING if untrained else FAINT,
        font=font,
    )


def _picture(store: BatchStore, record: Record, side: int) -> "Image.Image | None":
    from PIL import Image

    data = store.read(record.file) if record.file else None
    if data is None:
        return None
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        rgb = image.convert("RGB")
    if max(rgb.size) <= side // 2:
        # Small images (the built-in model's) are enlarged by whole factors, so that they stay crisp.
        factor = side // max(rgb.size)
        return rgb.resize((rgb.width * factor, rgb.height * factor), Image.Resampling.NEAREST)
    rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
    return rgb


def _caption(
    record: Record, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", layout: _Layout
) -> list[str]:
    """The id, then as much of the prompt as there is room for."""
    lines = [_fit(record.id, font, layout.cell)]
    words = _readable(record.prompt).split()
    while words and len(lines) < layout.caption_lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= layout.cell:
            line += " " + words.pop(0)
        if words and len(lines) == layout.caption_lines - 1:
            line += " ..."
        lines.append(_fit(line, font, layout.cell))
    return lines


def _readable(text: str) -> str:
    """`text` as far as PIL's own font has letters for it: Latin."""
    return "".join(letter if letter.isprintable() and ord(letter) < 0x180 else "·" for letter in text)


def _fit(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """`text`, shortened to `width` pixels; an over-long one is not measured letter by letter."""
    text = text[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
