"""How well images follow their prompts: `python -m raynest_pipeline.serving.tinymodel.evaluate --model DIR`.

Paints held-out prompts with fixed seeds and lets the judge look at the pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raynest_pipeline.serving.tinymodel.judge import Seen, look, place_of, size_of
from raynest_pipeline.serving.tinymodel.scenes import VOCABULARIES, Scene, Vocabulary, caption, sample_scene

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TARGETS = {
    "background": 0.99,
    "color": 0.97,
    "position": 0.95,
    "shape": 0.90,
    "size": 0.90,
    "size order": 0.90,
}
"""Line of the score -> the share that must be right."""
PACE = 4.0
"""Images per second in batches of 8 that two CPU cores must make."""

AXES = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was right in one image: line of the score -> right or not. Lines that do not apply are absent."""

    scene: Scene
    prompt: str
    seed: int
    lines: dict[str, bool]


def held_out_prompts(count: int, vocabulary: Vocabulary, seed: int = 2024) -> list[tuple[Scene, str]]:
    """`count` scenes that training never saw, each with its prompt."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng, vocabulary, unseen=True) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def judge(scene: Scene, prompt: str, seed: int, pixels: NDArray[np.uint8]) -> Verdict:
    """Compare an image with the scene that its prompt describes.

    Colours and shapes are right only if they are for every thing; a missing or an extra object makes them
    wrong.
    """
    sight = look(pixels)
    lines = {"background": sight.background == scene.background}
    complete = len(sight.objects) == len(scene.things)
    ordered = arrange(scene, sight.objects) if complete else []
    pairs = list(zip(scene.things, ordered, strict=False))
    lines["color"] = complete and all(thing.color == seen.color for thing, seen in pairs)
    lines["shape"] = complete and all(thing.shape == seen.shape for thing, seen in pairs)
    if scene.relation is None:
        lines["position"] = complete and place_of(ordered[0]) == scene.position
        lines["size"] = complete and size_of(ordered[0]) == scene.things[0].size
        return Verdict(scene, prompt, seed, lines)
    lines["position"] = complete and apart(scene.relation, ordered)
    first, second = (("small", "medium", "large").index(thing.size) for thing in scene.things)
    if first != second:
        lines["size order"] = complete and (ordered[0].extent > ordered[1].extent) == (first > second)
    return Verdict(scene, prompt, seed, lines)


def arrange(scene: Scene, objects: Sequence[Seen]) -> list[Seen]:
    """The objects in the order of the scene's things.

    Two things are told apart by colour, so that a swap shows as a wrong position; of one colour, by shape;
    else by place.
    """
    if len(objects) < 2 or scene.relation is None:
        return list(objects)
    first, second = scene.things
    for feature in ("color", "shape"):
        wanted = (getattr(first, feature), getattr(second, feature))
        seen = tuple(getattr(each, feature) for each in objects)
        if wanted[0] != wanted[1] and sorted(seen) == sorted(wanted):
            return list(objects) if seen == wanted else list(reversed(objects))
    axis, direction = AXES[scene.relation]
    return sorted(objects, key=lambda each: direction * float(getattr(each, axis)))


def apart(relation: str, ordered: Sequence[Seen]) -> bool:
    """Whether the first object stands in `relation` to the second, along the right axis and clearly."""
    axis, direction = AXES[relation]
    other = "y" if axis == "x" else "x"
    along = direction * (getattr(ordered[1], axis) - getattr(ordered[0], axis))
    across = abs(getattr(ordered[1], other) - getattr(ordered[0], other))
    return bool(along > 0.15 and along > across)


def paint(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Any:
    """Images (count, edge, edge, 3) as bytes, in batches of 8."""
    import numpy as np
    import torch

    images = []
    for start in range(0, len(prompts), 8):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[start : start + 8]]
        with torch.inference_mode():
            output = pipeline(
                prompt=list(prompts[start : start + 8]),
                generator=generators,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="np",
            )
        images.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


def rates(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of right images per line of the score, over the images to which the line applies."""
    return {
        line: sum(v.lines[line] for v in verdicts if line in v.lines) / sum(line in v.lines for v in verdicts)
        for line in TARGETS
        if any(line in v.lines for v in verdicts)
    }


def load(folder: Path) -> tuple[Any, int, float]:
    """The pipeline of a model folder, and the steps and guidance that it recommends."""
    import torch
    from diffusers import StableDiffusionPipeline

    recommended = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, int(recommended["steps"]), float(recommended["guidance"])


def evaluate(
    folder: Path, count: int, vocabulary: Vocabulary, steps: int | None = None, guidance: float | None = None
) -> Any:
    """Verdicts and images for `count` held-out prompts, and the images per second."""
    pipeline, own_steps, own_guidance = load(folder)
    asked = held_out_prompts(count, vocabulary)
    seeds = list(range(1000, 1000 + count))
    started = time.perf_counter()
    prompts = [prompt for _, prompt in asked]
    scale = own_guidance if guidance is None else guidance
    images = paint(pipeline, prompts, seeds, steps or own_steps, scale)
    pace = count / (time.perf_counter() - started)
    verdicts = [
        judge(scene, prompt, seed, pixels)
        for (scene, prompt), seed, pixels in zip(asked, seeds, images, strict=True)
    ]
    return verdicts, images, pace


def sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Write a PNG with the images in a grid, each over its caption."""
    import textwrap

    from PIL import Image, ImageDraw

    width, height = 160, 150
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width, rows * height), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    for index, (pixels, words) in enumerate(zip(images, captions, strict=True)):
        x, y = index % columns * width, index // columns * height
        page.paste(Image.fromarray(pixels), (x + 32, y + 4))
        draw.multiline_text(
            (x + 4, y + 103), "\n".join(textwrap.wrap(words, 27)[:4]), fill=(0, 0, 0), spacing=1
        )
    page.save(path)


def main() -> None:
    """Command line: figures on stdout, a sheet of failures or of everything on request."""
    parser = argparse.ArgumentParser(description="Judge a model of coloured shapes by its pixels.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="full")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", type=Path, help="write all images here")
    parser.add_argument("--figures", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--failures", type=Path, help="write the failed images here")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    options = parser.parse_args()
    verdicts, images, pace = evaluate(
        options.model, options.count, VOCABULARIES[options.vocabulary], options.steps, options.guidance
    )
    score = rates(verdicts)
    failed = [index for index, verdict in enumerate(verdicts) if wrong(verdict)]
    for line, share in score.items():
        met = "ok" if share >= TARGETS[line] else "MISSED"
        print(f"{line:12} {share:6.1%}  target {TARGETS[line]:.0%}  {met}")
    print(f"{'all lines':12} {1 - len(failed) / len(verdicts):6.1%}  of {len(verdicts)} images")
    print(f"{pace:.1f} images/s in batches of 8", file=sys.stderr)
    if options.figures:
        write_figures(options.figures, options.model, verdicts, options.vocabulary)
    if options.sheet:
        sheet(images, [verdict.prompt for verdict in verdicts], options.sheet)
    if options.failures and failed:
        words = [f"{verdicts[index].prompt} [{', '.join(wrong(verdicts[index]))}]" for index in failed]
        sheet([images[index] for index in failed], words, options.failures)
    if options.check and (pace < PACE or any(share < TARGETS[line] for line, share in score.items())):
        sys.exit(1)


def write_figures(path: Path, model: Path, verdicts: Sequence[Verdict], vocabulary: str) -> None:
    """The score as JSON, with the hash of the weights that earned it."""
    unet = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    figures = {
        "images": len(verdicts),
        "vocabulary": vocabulary,
        "rates": {line: round(share, 3) for line, share in rates(verdicts).items()},
        "all_lines": round(sum(not wrong(verdict) for verdict in verdicts) / len(verdicts), 3),
        "unet_sha256": hashlib.sha256(unet).hexdigest(),
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def wrong(verdict: Verdict) -> list[str]:
    """The lines of the score that the image misses."""
    return [line for line, right in verdict.lines.items() if not right]


if __name__ == "__main__":
    main()
