"""Scenes to pixels: anti-aliased flat shapes, 96x96, drawn with Pillow."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from raynest_pipeline.serving.tinymodel.scenes import FULL, PALETTE, Scene, Vocabulary, caption, sample_scene

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EDGE = 96
"""Image edge in pixels."""
OVERSAMPLE = 4
RADII = {"small": 10.0, "medium": 14.5, "large": 21.0}
"""Half extent of a thing in pixels; areas are about 1 : 2.1 : 4.4."""
CENTERS = {"center": (48, 48), "left": (24, 48), "right": (72, 48), "top": (48, 24), "bottom": (48, 72)}
PAIR_CENTERS = {
    "left of": ((24, 48), (72, 48)),
    "right of": ((72, 48), (24, 48)),
    "above": ((48, 24), (48, 72)),
    "below": ((48, 72), (48, 24)),
}
JITTER = 1.0
"""Things stray from their place by at most this many pixels, along each axis."""

Point = tuple[float, float]


def outline(shape: str, x: float, y: float, radius: float) -> list[Point]:
    """Corners of a shape around (x, y); a circle has many."""
    if shape == "circle":
        return ring(x, y, [radius * 0.96] * 48)
    if shape == "square":
        return ring(x, y, [radius * 0.86 * math.sqrt(2)] * 4, turn=math.pi / 4)
    if shape == "diamond":
        return ring(x, y, [radius * 1.08] * 4)
    if shape == "triangle":
        half = radius
        return [(x, y - half), (x + half * 1.05, y + half * 0.85), (x - half * 1.05, y + half * 0.85)]
    if shape == "star":
        return ring(x, y + radius * 0.05, [radius * 1.1, radius * 0.46] * 5, turn=-math.pi / 2)
    if shape == "cross":
        a, b = radius * 0.98, radius * 0.36
        steps = [(b, a), (b, b), (a, b), (a, -b), (b, -b), (b, -a)]
        return [(x + dx, y + dy) for dx, dy in steps] + [(x - dx, y - dy) for dx, dy in steps]
    raise ValueError(f"unknown shape {shape!r}")


def ring(x: float, y: float, radii: list[float], turn: float = 0.0) -> list[Point]:
    """Points around (x, y) at equal angles."""
    angles = [turn + 2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def render(scene: Scene, rng: random.Random) -> NDArray[np.uint8]:
    """Pixels (96, 96, 3) of `scene`; `rng` jitters the places."""
    import numpy as np
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (EDGE * OVERSAMPLE, EDGE * OVERSAMPLE), PALETTE[scene.background])
    draw = ImageDraw.Draw(image)
    if scene.relation is not None:
        centers = list(PAIR_CENTERS[scene.relation])
    else:
        centers = [CENTERS[scene.position or "center"]]
    for thing, (x, y) in zip(scene.things, centers, strict=True):
        jittered = (x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER))
        corners = outline(thing.shape, *jittered, RADII[thing.size])
        draw.polygon([(px * OVERSAMPLE, py * OVERSAMPLE) for px, py in corners], fill=PALETTE[thing.color])
    return np.asarray(image.resize((EDGE, EDGE), Image.Resampling.BOX))


def captioned(seed: int, count: int, vocabulary: Vocabulary = FULL) -> tuple[list[str], NDArray[np.uint8]]:
    """`count` captions and their images (count, 96, 96, 3); the same seed gives the same data."""
    import numpy as np

    rng = random.Random(seed)
    scenes = [sample_scene(rng, vocabulary) for _ in range(count)]
    return [caption(scene, rng) for scene in scenes], np.stack([render(scene, rng) for scene in scenes])
