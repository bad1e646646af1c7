"""A look at a prompt file before anything is drawn: how much it asks for, how it begins, what repeats."""

import hashlib
import itertools
from dataclasses import dataclass

from raynest_pipeline.images.prompt_file import PromptFile
from raynest_pipeline.images.prompts import Prompt

MOST_EXAMINED = 100_000
"""Images that are compared with each other; keeps the time and memory of a preview small."""
MOST_REPEATED = 20
"""Repetitions that are named; the rest are counted."""


@dataclass(frozen=True)
class Repeated:
    """An image that is the same as one before it: same prompt, parameters and seed."""

    id: str
    same_as: str


@dataclass(frozen=True)
class Preview:
    """What a prompt file asks for.

    Attributes:
        images: All of them.
        examined: How many of them, from the first, were compared with each other.
        prompts: Different texts among the examined.
        repeated: Images among the examined that repeat another one.
        repetitions: The first of those.
        first: The first prompts.
    """

    images: int
    examined: int
    prompts: int
    repeated: int
    repetitions: tuple[Repeated, ...]
    first: tuple[Prompt, ...]


def preview(prompts: PromptFile, count: int) -> Preview:
    """Look at a prompt file.

    Args:
        prompts: Checked.
        count: How many of the first prompts to keep.
    """
    texts: set[bytes] = set()
    images: dict[bytes, str] = {}
    first: list[Prompt] = []
    repetitions: list[Repeated] = []
    examined = repeated = 0
    for prompt in itertools.islice(prompts, max(MOST_EXAMINED, count)):
        if len(first) < count:
            first.append(prompt)
        examined += 1
        texts.add(_digest(prompt.prompt))
        one_before = images.setdefault(_digest(_content(prompt)), prompt.id)
        if one_before != prompt.id:
            repeated += 1
            repetitions += [Repeated(prompt.id, one_before)] if len(repetitions) < MOST_REPEATED else []
    return Preview(len(prompts), examined, len(texts), repeated, tuple(repetitions), tuple(first))


def _content(prompt: Prompt) -> str:
    parts = (prompt.prompt, prompt.negative_prompt, prompt.seed, prompt.size, prompt.steps, prompt.guidance)
    return "\0".join(map(str, parts))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
