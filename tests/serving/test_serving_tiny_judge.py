"""The judge must be right about images that are right, and wrong about none that are wrong."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from raynest_pipeline.serving.tinymodel.data import render
from raynest_pipeline.serving.tinymodel.evaluate import (
    TARGETS,
    Verdict,
    held_out_prompts,
    judge,
    rates,
    sheet,
    wrong,
)
from raynest_pipeline.serving.tinymodel.judge import TEMPLATES, components, look, nearest_shape, place_of
from raynest_pipeline.serving.tinymodel.scenes import FULL, PALETTE, SHAPES, SMALL, Scene, Thing, sample_scene


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
@example(4394)  # A large star covers no more than a medium square.
def test_a_perfect_image_gets_a_perfect_verdict(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert wrong(judge(scene, "", 0, render(scene, rng))) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
@example(476)  # The arm of a small star comes off its body.
@example(858)
@example(2443)
@example(2992)
def test_a_little_noise_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    noise = np.random.default_rng(seed).normal(0, 6, (96, 96, 3))
    noisy = (render(scene, rng) + noise).clip(0, 255).astype(np.uint8)
    verdict = judge(scene, "", 0, noisy)
    assert set(wrong(verdict)) <= {"shape"}
    if all(thing.size != "small" for thing in scene.things):
        assert wrong(verdict) == []


BASE = Scene((Thing("circle", "red", "large"),), "white", position="left")
PAIR = Scene((Thing("circle", "red", "small"), Thing("star", "blue", "large")), "gray", relation="above")


@pytest.mark.parametrize(
    ("asked", "shown", "expected"),
    [
        (BASE, replace(BASE, background="black"), {"background"}),
        (BASE, replace(BASE, position="right"), {"position"}),
        (BASE, replace(BASE, position="center"), {"position"}),
        (BASE, replace(BASE, things=(Thing("circle", "blue", "large"),)), {"color"}),
        (BASE, replace(BASE, things=(Thing("square", "red", "large"),)), {"shape"}),
        (BASE, replace(BASE, things=(Thing("circle", "red", "small"),)), {"size"}),
        (BASE, replace(BASE, things=(Thing("circle", "red", "medium"),)), {"size"}),
        (BASE, replace(PAIR, background="white"), {"color", "shape", "position", "size"}),
        (PAIR, replace(BASE, background="gray"), {"color", "shape", "position", "size order"}),
        (PAIR, replace(PAIR, relation="below"), {"position"}),
        (PAIR, replace(PAIR, relation="left of"), {"position"}),
        (
            PAIR,
            replace(PAIR, things=(Thing("circle", "red", "large"), Thing("star", "blue", "small"))),
            {"size order"},
        ),
    ],
)
def test_each_mistake_is_seen(asked: Scene, shown: Scene, expected: set[str]) -> None:
    assert set(wrong(judge(asked, "", 0, render(shown, random.Random(0))))) == expected


def test_an_empty_image_shows_nothing() -> None:
    sight = look(np.full((96, 96, 3), PALETTE["green"], np.uint8))
    assert (sight.background, sight.objects) == ("green", ())


def test_touching_objects_of_two_colors_are_two() -> None:
    image = Image.new("RGB", (96, 96), PALETTE["white"])
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 30, 47, 60), fill=PALETTE["red"])
    draw.rectangle((48, 30, 85, 60), fill=PALETTE["blue"])
    assert sorted(seen.color for seen in look(np.asarray(image)).objects) == ["blue", "red"]


@pytest.mark.parametrize("shape", SHAPES)
def test_templates_are_told_apart(shape: str) -> None:
    mask = np.pad(TEMPLATES[shape], 5)
    assert nearest_shape(mask) == shape
    assert set(TEMPLATES) == set(SHAPES)


@pytest.mark.parametrize(("size", "smaller"), [("medium", "small"), ("large", "medium")])
def test_sizes_grow(size: str, smaller: str) -> None:
    for shape in SHAPES:
        areas = [
            look(render(Scene((Thing(shape, "red", each),), "white", position="center"), random.Random(0)))
            .objects[0]
            .area
            for each in (smaller, size)
        ]
        assert areas[1] > 1.6 * areas[0]


@pytest.mark.parametrize("position", ["center", "left", "right", "top", "bottom"])
def test_places(position: str) -> None:
    scene = Scene((Thing("star", "red", "medium"),), "white", position=position)
    assert place_of(look(render(scene, random.Random(0))).objects[0]) == position


def test_components_are_separate() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[1:3, 1:3] = mask[5:7, 5:7] = True
    assert [region.sum() for region in components(mask)] == [4, 4]


def test_rates_count_only_where_a_line_applies() -> None:
    verdicts = [
        Verdict(BASE, "", 0, {"background": True, "color": False}),
        Verdict(BASE, "", 0, {"background": True, "color": True}),
        Verdict(PAIR, "", 0, {"background": False, "size order": True}),
    ]
    assert rates(verdicts) == {"background": 2 / 3, "color": 0.5, "size order": 1.0}
    assert set(rates(verdicts)) <= set(TARGETS)


def test_held_out_prompts_are_fixed() -> None:
    assert held_out_prompts(5, FULL) == held_out_prompts(5, FULL)
    assert held_out_prompts(5, FULL) != held_out_prompts(5, FULL, seed=1)
    assert [scene for scene, _ in held_out_prompts(5, FULL)] == [
        scene for scene, _ in held_out_prompts(9, FULL)
    ][:5]
    assert all(scene.relation is None for scene, _ in held_out_prompts(20, SMALL))


def test_a_sheet_holds_every_image(tmp_path: Path) -> None:
    images = [np.full((96, 96, 3), shade, np.uint8) for shade in (10, 20, 30)]
    sheet(images, ["one", "two", "three"], tmp_path / "sheet.png", columns=2)
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (300, 320, 3)
    assert {10, 20, 30} <= set(np.unique(page).tolist())
