"""Stage 1: the text encoder alone learns to name the attributes of its captions, in about a minute.

Trained jointly with the UNet instead, a small model follows no words for thousands of steps.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from raynest_pipeline.serving.tinymodel.model import TEXT_WIDTH, build_text_encoder, build_tokenizer
from raynest_pipeline.serving.tinymodel.progress import Clock, cosine_rate, report, set_rate
from raynest_pipeline.serving.tinymodel.scenes import (
    BACKGROUNDS,
    COLORS,
    FULL,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    sample_scene,
)

NONE = "none"
HEADS: dict[str, tuple[str, ...]] = {
    "background": BACKGROUNDS,
    "position": (*POSITIONS, NONE),
    "relation": (*RELATIONS, NONE),
    "shape 1": SHAPES,
    "color 1": COLORS,
    "size 1": SIZES,
    "shape 2": (*SHAPES, NONE),
    "color 2": (*COLORS, NONE),
    "size 2": (*SIZES, NONE),
}
"""Attribute -> its values. One linear head each, on the states from the end token on."""


def attributes(scene: Scene) -> dict[str, str]:
    """The value of every head for `scene`."""
    first, second = scene.things[0], scene.things[1] if len(scene.things) > 1 else None
    return {
        "background": scene.background,
        "position": scene.position or NONE,
        "relation": scene.relation or NONE,
        "shape 1": first.shape,
        "color 1": first.color,
        "size 1": first.size,
        "shape 2": second.shape if second else NONE,
        "color 2": second.color if second else NONE,
        "size 2": second.size if second else NONE,
    }


def tokenize(tokenizer: Any, captions: list[str]) -> Any:
    """Token ids (count, MAX_TOKENS), padded and cut exactly as the pipeline does it."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def train_text_encoder(steps: int, seed: int, batch: int = 64) -> tuple[Any, Any, float]:
    """The tokenizer, the trained encoder, and its accuracy: the share of unseen captions with every attribute
    right.
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    rng, words = random.Random(seed), replace(FULL, pair_share=0.6)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer)
    heads = torch.nn.ModuleDict(
        {name: torch.nn.Linear(TEXT_WIDTH, len(values)) for name, values in HEADS.items()}
    )
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    clock = Clock(steps)

    def losses_and_hits(scenes: list[Scene]) -> tuple[Any, Any]:
        ids = tokenize(tokenizer, [caption(scene, rng) for scene in scenes])
        states = encoder(ids).last_hidden_state
        after_end = (ids == tokenizer.eos_token_id).unsqueeze(-1)
        summary = (states * after_end).sum(1) / after_end.sum(1)
        loss, hit = torch.zeros(()), torch.ones(len(scenes), dtype=torch.bool)
        for name, values in HEADS.items():
            target = torch.tensor([values.index(attributes(scene)[name]) for scene in scenes])
            logits = heads[name](summary)
            loss = loss + functional.cross_entropy(logits, target)
            hit &= logits.argmax(-1) == target
        return loss, hit

    for step in range(steps):
        set_rate(optimizer, 1e-3 * cosine_rate(clock.fraction(step)))
        loss, hit = losses_and_hits([sample_scene(rng, words) for _ in range(batch)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            report("text", step, clock, loss=loss.item(), all_right=hit.float().mean().item())
    encoder.eval()
    with torch.no_grad():
        _, hit = losses_and_hits([sample_scene(rng, words) for _ in range(1000)])
    return tokenizer, encoder, hit.float().mean().item()
