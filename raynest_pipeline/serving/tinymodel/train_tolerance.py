"""Stage 2: the text encoder learns to read over words that it does not know.

They fall into letters and bytes that no caption of stage 1 holds, and untrained pieces among the known words
turn all that follows into something else. The encoder of stage 1 is the teacher: a caption with strange words
strewn in must come out as the caption alone does.
"""

from __future__ import annotations

import copy
import functools
import random
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raynest_pipeline.serving.tinymodel.model import MAX_TOKENS
from raynest_pipeline.serving.tinymodel.progress import Clock, cosine_rate, report, set_rate
from raynest_pipeline.serving.tinymodel.scenes import FULL, caption, sample_scene

PEAK_RATE = 1e-3
EMPTY_SHARE = 0.12
"""Prompts without a single known word: they are to read as the empty one."""
PUNCTUATION = (",", ".", "!", ":", "-", "(", ")", '"')
COMMON = (
    *("with", "very", "shiny", "bright", "simple", "draw", "paint", "please", "picture", "photo", "image"),
    *("drawing", "painting", "style", "realistic", "detailed", "beautiful", "my", "one", "some", "that"),
    *("apple", "table", "wooden", "cat", "dog"),
)
LETTERS = string.ascii_lowercase
OTHERS = "äöéж模型123"


def strange_word(rng: random.Random) -> str:
    """Punctuation, a common word that the model does not know, or letters at random."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(PUNCTUATION)
    if kind < 0.5:
        return rng.choice(COMMON)
    return "".join(rng.choice(LETTERS if rng.random() < 0.97 else OTHERS) for _ in range(rng.randint(1, 8)))


IdsOf = Callable[[str], list[int]]


def strewn(words: list[str], rng: random.Random, ids_of: IdsOf) -> tuple[list[int], list[int]]:
    """The token ids of `words` with up to three strange ones among them, and for each token which token of
    `words` alone it stands for; -1 for the strange ones. Without the start token.
    """
    ids: list[int] = []
    owners: list[int] = []
    known = 0
    gaps = sorted(rng.randint(0, len(words)) for _ in range(rng.randint(1, 3)))
    for place in range(len(words) + 1):
        for _ in range(gaps.count(place)):
            pieces = ids_of(strange_word(rng))
            ids += pieces
            owners += [-1] * len(pieces)
        if place < len(words):
            pieces = ids_of(words[place])
            ids += pieces
            owners += range(known, known + len(pieces))
            known += len(pieces)
    return ids, owners


def example(
    rng: random.Random, ids_of: IdsOf, start: int, end: int
) -> tuple[list[int], list[int], list[int]]:
    """A caption's token ids, the same with strange words in it, and for each token of the latter the position
    in the former whose state it is to have: strange words that of the padding. Each MAX_TOKENS long.
    """
    last = MAX_TOKENS - 1
    while True:
        scene = sample_scene(rng, replace(FULL, pair_share=0.5))
        words = [] if rng.random() < EMPTY_SHARE else caption(scene, rng).split()
        clean = [start, *(token for word in words for token in ids_of(word))]
        ids, owners = strewn(words, rng, ids_of)
        if len(ids) > MAX_TOKENS - 2:
            continue
        mixed = [start, *ids]
        padding = MAX_TOKENS - len(mixed)
        positions = [0, *(last if owner < 0 else owner + 1 for owner in owners)]
        positions += [min(len(clean) + number, last) for number in range(padding)]
        return clean + [end] * (MAX_TOKENS - len(clean)), mixed + [end] * padding, positions


def train_tolerance(encoder: Any, tokenizer: Any, steps: int, seed: int, batch: int = 64) -> float:
    """Train `encoder` in place; the mean squared error of its states on the last batch with strange words."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = random.Random(seed + 1)
    teacher = copy.deepcopy(encoder).eval().requires_grad_(False)
    encoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=PEAK_RATE, weight_decay=0.0)
    clock = Clock(steps)
    error = 0.0

    @functools.lru_cache(maxsize=4096)
    def ids_of(word: str) -> list[int]:
        found: list[int] = tokenizer(word, add_special_tokens=False).input_ids
        return found

    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for step in range(steps):
        set_rate(optimizer, PEAK_RATE * cosine_rate(clock.fraction(step)))
        examples = [example(rng, ids_of, start, end) for _ in range(batch)]
        clean, mixed, positions = (torch.tensor(column) for column in zip(*examples, strict=True))
        with torch.no_grad():
            wanted = teacher(clean).last_hidden_state
        moved = torch.gather(wanted, 1, positions.unsqueeze(-1).expand_as(wanted))
        loss = functional.mse_loss(encoder(mixed).last_hidden_state, moved)
        # The UNet knows the teacher's words: they may not change.
        kept = functional.mse_loss(encoder(clean).last_hidden_state, wanted)
        optimizer.zero_grad()
        (loss + kept).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        error = loss.item()
        if step % 100 == 0 or step == steps - 1:
            report("tolerance", step, clock, strange=error, kept=kept.item())
    encoder.eval().requires_grad_(False)
    return error
