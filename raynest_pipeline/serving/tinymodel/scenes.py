"""What the model can be asked for: the vocabulary, scenes drawn from it, and captions that describe them."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 70),
    "blue": (45, 85, 215),
    "purple": (130, 50, 175),
    "pink": (250, 140, 195),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
    "gray": (140, 140, 140),
}
"""Colour name -> sRGB."""

COLORS = tuple(name for name in PALETTE if name != "gray")
BACKGROUNDS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = ("small", "medium", "large")
POSITIONS = ("center", "left", "right", "top", "bottom")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The part of the words that a training draws its scenes from."""

    colors: tuple[str, ...]
    backgrounds: tuple[str, ...]
    shapes: tuple[str, ...]
    pair_share: float
    """Share of the scenes that hold two things."""


FULL = Vocabulary(COLORS, BACKGROUNDS, SHAPES, 0.4)
SMALL = Vocabulary(
    ("red", "yellow", "green", "blue", "black"),
    ("white", "gray", "black"),
    ("circle", "square", "triangle", "cross"),
    0.0,
)
"""What half an hour on a busy laptop can learn."""
VOCABULARIES = {"full": FULL, "small": SMALL}

DEFAULT_SIZE, DEFAULT_POSITION, DEFAULT_BACKGROUND = "medium", "center", "white"
"""What a caption that is silent about them means."""

PLACES = {
    "center": ("in the center", "in the middle"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
SYNONYMS = {"small": ("small", "small", "tiny"), "large": ("large", "large", "big"), "gray": ("gray", "grey")}


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape."""

    shape: str
    color: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing at a position, or two in a relation, on a background."""

    things: tuple[Thing, ...]
    background: str
    position: str | None = None
    """Of a single thing."""
    relation: str | None = None
    """Of the first of two things to the second."""


def held_out(scene: Scene) -> bool:
    """Whether training never sees this scene: one in ten, chosen by a hash of its content."""
    words = [scene.background, scene.position, scene.relation]
    words += [word for thing in scene.things for word in (thing.size, thing.color, thing.shape)]
    return zlib.crc32(" ".join(map(str, words)).encode()) % 10 == 0


def sample_scene(rng: random.Random, vocabulary: Vocabulary = FULL, unseen: bool = False) -> Scene:
    """A random scene out of the training share, or of the held-out share if `unseen`.

    No thing has its background's colour.
    """
    while True:
        scene = draw_scene(rng, vocabulary)
        if held_out(scene) == unseen:
            return scene


def draw_scene(rng: random.Random, vocabulary: Vocabulary) -> Scene:
    """A random scene of either share. White backgrounds are the most frequent."""
    background = DEFAULT_BACKGROUND if rng.random() < 0.3 else rng.choice(vocabulary.backgrounds)
    if rng.random() < vocabulary.pair_share:
        things = (sample_thing(rng, vocabulary, background), sample_thing(rng, vocabulary, background))
        return Scene(things, background, relation=rng.choice(RELATIONS))
    thing = sample_thing(rng, vocabulary, background)
    return Scene((thing,), background, position=rng.choice(POSITIONS))


def sample_thing(rng: random.Random, vocabulary: Vocabulary, background: str) -> Thing:
    """A random thing that can be told from `background`."""
    color = rng.choice([name for name in vocabulary.colors if name != background])
    return Thing(rng.choice(vocabulary.shapes), color, rng.choice(SIZES))


def caption(scene: Scene, rng: random.Random, canonical: bool = False) -> str:
    """Words for `scene`. Defaults are sometimes left unsaid and synonyms used, unless `canonical`."""
    silent = 0.0 if canonical else 0.5
    words = noun_phrase(scene.things[0], rng, silent, canonical)
    if scene.relation is not None:
        words += f" {scene.relation} {noun_phrase(scene.things[1], rng, silent, canonical)}"
    elif scene.position is not None and not (scene.position == DEFAULT_POSITION and rng.random() < silent):
        words += f" {PLACES[scene.position][0] if canonical else rng.choice(PLACES[scene.position])}"
    if not (scene.background == DEFAULT_BACKGROUND and rng.random() < silent):
        words += f" on {with_article(say(scene.background, rng, canonical))} background"
    return words


def noun_phrase(thing: Thing, rng: random.Random, silent: float, canonical: bool) -> str:
    """`a small red circle`."""
    parts = [say(thing.color, rng, canonical), thing.shape]
    if not (thing.size == DEFAULT_SIZE and rng.random() < silent):
        parts.insert(0, say(thing.size, rng, canonical))
    return with_article(" ".join(parts))


def say(word: str, rng: random.Random, canonical: bool) -> str:
    """The word or one of its synonyms."""
    return word if canonical else rng.choice(SYNONYMS.get(word, (word,)))


def with_article(words: str) -> str:
    """`a red circle`, `an orange star`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted: each becomes one token."""
    phrases = [*COLORS, *BACKGROUNDS, *SHAPES, *SIZES, *RELATIONS, "a an on background and"]
    phrases += [place for places in PLACES.values() for place in places]
    phrases += [synonym for synonyms in SYNONYMS.values() for synonym in synonyms]
    return sorted({word for phrase in phrases for word in phrase.split()})
