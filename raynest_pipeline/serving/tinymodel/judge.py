"""Looks at pixels and says what is there. Knows the palette, but neither the renderer's geometry nor a model.

Shapes are told by comparing an object's mask, stretched to a square, with shapes written as inequalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raynest_pipeline.serving.tinymodel.scenes import PALETTE

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRID = 48
"""Masks are compared on a grid of this edge."""
MIN_AREA = 30
"""Smaller specks (in pixels) are not objects."""
TIP_AREA = 6
"""A region of an eroded mask that has so few pixels may be the tip of a larger one."""
OFF_CENTER = 0.1
"""From this share of the edge on, an object is left, right, top or bottom of the center."""

NAMES = tuple(PALETTE)
COLORS = np.array([PALETTE[name] for name in NAMES], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Seen:
    """One object: its colour and shape in words, its center (x, y) and area in shares of the image."""

    color: str
    shape: str
    x: float
    y: float
    area: float
    extent: float
    """Longer side of the bounding box, in shares of the edge."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What an image shows: the background's colour and the objects, largest first."""

    background: str
    objects: tuple[Seen, ...]


def look(pixels: NDArray[np.uint8]) -> Sight:
    """Read an image: (height, width, 3)."""
    image = pixels.astype(np.float64)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = np.median(border, axis=0)
    distinct = np.linalg.norm(image - background, axis=-1) > 55
    found = [
        describe(image, mask, background)
        for region in bodies(erode(distinct), distinct)
        for mask in split_by_color(image, regrow(region, distinct))
        if mask.sum() >= MIN_AREA
    ]
    return Sight(nearest_name(background), tuple(sorted(found, key=lambda seen: -seen.area)))


def nearest_name(color: NDArray[np.float64]) -> str:
    """The palette's name for an RGB colour."""
    return NAMES[int(np.linalg.norm(COLORS - color, axis=-1).argmin())]


def describe(image: NDArray[np.float64], mask: NDArray[np.bool_], background: NDArray[np.float64]) -> Seen:
    """Colour, shape, place and size of the object under `mask`."""
    core = erode(mask)
    color = np.median(image[core if core.any() else mask], axis=0)
    # A blended pixel on the rim counts when more than half of it is the object's.
    nearer = np.linalg.norm(image - color, axis=-1) < np.linalg.norm(image - background, axis=-1)
    mask = mask & nearer if (mask & nearer).any() else mask
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return Seen(
        color=nearest_name(color),
        shape=nearest_shape(mask),
        x=float(columns.mean() + 0.5) / width,
        y=float(rows.mean() + 0.5) / height,
        area=float(mask.sum()) / mask.size,
        extent=float(max(np.ptp(rows) + 1, np.ptp(columns) + 1)) / max(mask.shape),
    )


def place_of(seen: Seen) -> str:
    """center, left, right, top or bottom."""
    dx, dy = seen.x - 0.5, seen.y - 0.5
    if max(abs(dx), abs(dy)) < OFF_CENTER:
        return "center"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def size_of(seen: Seen) -> str:
    """small, medium or large, by its extent: about a fifth, three tenths and over four tenths of the edge."""
    return "small" if seen.extent < 0.24 else "medium" if seen.extent < 0.355 else "large"


def split_by_color(image: NDArray[np.float64], mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Touching objects of different colours are two; the blended pixels on a rim go to the nearer colour."""
    core = erode(mask)
    if not core.any():
        return [mask]
    names = np.linalg.norm(image[:, :, None] - COLORS, axis=-1).argmin(-1)
    present = [
        index for index in np.unique(names[core]) if erode(core & (names == index)).sum() >= MIN_AREA // 2
    ]
    if len(present) < 2:
        return [mask]
    owner = np.linalg.norm(image[:, :, None] - COLORS[present], axis=-1).argmin(-1)
    return [mask & (owner == index) for index in range(len(present))]


def templates() -> dict[str, NDArray[np.bool_]]:
    """The shapes, each filling the square from -1 to 1 as its bounding box."""
    axis = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    x, y = np.meshgrid(axis, axis)
    # A star of radius 1 is 1.902 wide and reaches from 1 above its center to 0.809 below.
    star_x, star_y = x * 0.951, y * 0.9045 - 0.0955
    angle, radius = np.arctan2(star_x, -star_y), np.hypot(star_x, star_y)
    # A five-pointed star: within each tenth of a turn its edge is a straight line from tip to notch.
    tenth = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    edge = 0.42 * np.sin(np.pi / 5) / np.maximum(np.sin(tenth) + 0.42 * np.sin(np.pi / 5 - tenth), 1e-9)
    return {
        "square": np.ones_like(x, dtype=bool),
        "circle": x**2 + y**2 <= 1,
        "diamond": np.abs(x) + np.abs(y) <= 1,
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) <= 0.37) | (np.abs(y) <= 0.37),
        "star": radius <= edge,
    }


TEMPLATES = templates()


def nearest_shape(mask: NDArray[np.bool_]) -> str:
    """The template that overlaps best with the mask's bounding box stretched to a square."""
    rows, columns = np.nonzero(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    ys = top + ((np.arange(GRID) + 0.5) * (bottom - top) / GRID).astype(int)
    xs = left + ((np.arange(GRID) + 0.5) * (right - left) / GRID).astype(int)
    stretched = mask[np.ix_(ys, xs)]
    overlaps = {
        name: (stretched & template).sum() / (stretched | template).sum()
        for name, template in TEMPLATES.items()
    }
    return max(overlaps, key=lambda name: overlaps[name])


def components(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected regions of a mask."""
    left = mask.copy()
    regions = []
    while left.any():
        row, column = np.argwhere(left)[0]
        region = np.zeros_like(mask)
        region[row, column] = True
        while True:
            grown = dilate(region) & left
            if (grown == region).all():
                break
            region = grown
        left &= ~region
        regions.append(region)
    return regions


def bodies(eroded: NDArray[np.bool_], distinct: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected regions of the eroded mask, without the tips of others: a star's arm, a little noisy,
    comes off its body by the erosion, and grows back into it.
    """
    regions = components(eroded)
    large = [region for region in regions if region.sum() > TIP_AREA]
    grown = [regrow(region, distinct) for region in large]
    tips = [region for region in regions if region.sum() <= TIP_AREA]
    return large + [tip for tip in tips if not any((dilate(tip) & body).any() for body in grown)]


def regrow(region: NDArray[np.bool_], within: NDArray[np.bool_], pixels: int = 5) -> NDArray[np.bool_]:
    """Give an eroded region back its thin parts, a star's tips say: up to `pixels` steps inside `within`."""
    for _ in range(pixels):
        region = dilate(region) & within
    return region


def dilate(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow by one pixel, diagonals included."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    grown: NDArray[np.bool_] = np.zeros_like(mask)
    for dy in range(3):
        for dx in range(3):
            grown |= padded[dy : dy + height, dx : dx + width]
    return grown


def erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Shrink by one pixel; outside the image counts as part of the mask."""
    shrunk: NDArray[np.bool_] = ~dilate(~mask)
    return shrunk
