"""The small model's data: scenes, captions, tokens and pixels."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynest_pipeline.serving.tinymodel.data import EDGE, captioned, outline, render
from raynest_pipeline.serving.tinymodel.model import MAX_TOKENS, build_tokenizer
from raynest_pipeline.serving.tinymodel.scenes import (
    COLORS,
    FULL,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    SMALL,
    Scene,
    Thing,
    caption,
    draw_scene,
    held_out,
    sample_scene,
    vocabulary,
)
from raynest_pipeline.serving.tinymodel.train_text import HEADS, NONE, attributes, tokenize

SEEDS = st.integers(0, 2**32)


def test_the_vocabulary_is_as_large_as_promised() -> None:
    assert len(COLORS) >= 8
    assert len(SHAPES) >= 6
    assert len(SIZES) >= 3
    assert len(POSITIONS) >= 5
    assert len(RELATIONS) == 4


def test_the_issue_s_own_prompt_is_a_caption() -> None:
    scene = Scene(
        (Thing("circle", "red", "small"), Thing("square", "blue", "large")), "white", relation="left of"
    )
    expected = "a small red circle left of a large blue square on a white background"
    assert caption(scene, random.Random(0), canonical=True) == expected


@given(SEEDS)
def test_things_differ_from_their_background_and_words_are_known(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert all(thing.color != scene.background for thing in scene.things)
    assert (scene.relation is None) == (len(scene.things) == 1) == (scene.position is not None)
    assert set(caption(scene, rng).split()) <= set(vocabulary())


@given(SEEDS)
def test_training_never_draws_a_held_out_scene(seed: int) -> None:
    assert not held_out(sample_scene(random.Random(seed)))
    assert held_out(sample_scene(random.Random(seed), unseen=True))


@given(SEEDS)
def test_a_small_vocabulary_keeps_to_its_words(seed: int) -> None:
    scene = sample_scene(random.Random(seed), SMALL)
    assert scene.background in SMALL.backgrounds
    assert [(thing.color in SMALL.colors, thing.shape in SMALL.shapes) for thing in scene.things] == [
        (True, True)
    ]


def test_about_a_tenth_is_held_out() -> None:
    rng = random.Random(1)
    share = sum(held_out(draw_scene(rng, FULL)) for _ in range(2000)) / 2000
    assert 0.08 < share < 0.12


@given(SEEDS)
def test_what_a_caption_leaves_unsaid_is_a_default(seed: int) -> None:
    """Two scenes with the same words must be the same scene, or the words would be ambiguous."""
    rng = random.Random(seed)
    scene = sample_scene(rng)
    words = caption(scene, rng).split()
    if scene.background != "white":
        assert "background" in words
    if scene.position not in (None, "center"):
        assert scene.position in words
    said = sum(size in words for size in ("small", "tiny", "medium", "large", "big"))
    assert said >= min(1, sum(thing.size != "medium" for thing in scene.things))


def test_articles() -> None:
    scene = Scene((Thing("star", "orange", "medium"),), "orange", position="top")
    rng = random.Random(0)
    captions = {caption(scene, rng) for _ in range(50)}
    assert "an orange star at the top on an orange background" in captions
    assert not any("a orange" in words for words in captions)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_pixels_show_the_background_and_every_color(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    pixels = render(scene, rng)
    assert pixels.shape == (EDGE, EDGE, 3)
    assert pixels.dtype == np.uint8
    from raynest_pipeline.serving.tinymodel.scenes import PALETTE

    shown = {tuple(color) for color in pixels.reshape(-1, 3).tolist()}
    assert {PALETTE[scene.background], *(PALETTE[thing.color] for thing in scene.things)} <= shown


def test_same_seed_same_data() -> None:
    first, second, other = captioned(3, 8), captioned(3, 8), captioned(4, 8)
    assert first[0] == second[0] != other[0]
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_keep_to_their_radius(shape: str) -> None:
    points = np.array(outline(shape, 0, 0, 10))
    assert 8 <= np.abs(points).max() <= 11.5


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        outline("blob", 0, 0, 1)


def test_every_word_is_one_token_and_others_fall_into_pieces() -> None:
    tokenizer = build_tokenizer()
    for word in vocabulary():
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("elephant")) > 1


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_no_caption_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    assert len(caption(sample_scene(rng, replace(FULL, pair_share=1.0)), rng).split()) + 2 <= MAX_TOKENS


def test_tokens_are_padded_and_cut_to_the_encoder_s_length() -> None:
    ids = tokenize(build_tokenizer(), ["", "a red circle", "red " * 100])
    assert ids.shape == (3, MAX_TOKENS)


@given(SEEDS)
def test_attributes_have_a_value_of_every_head(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    named = attributes(scene)
    assert named.keys() == HEADS.keys()
    assert all(named[head] in values for head, values in HEADS.items())
    assert (named["shape 2"] == NONE) == (scene.relation is None)
