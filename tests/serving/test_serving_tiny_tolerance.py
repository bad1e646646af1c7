"""Prompts with strange words: how they are made, and what each of their tokens is to read as."""

import copy
import random

import pytest
import torch

from raynest_pipeline.serving.tinymodel.model import MAX_TOKENS, build_text_encoder, build_tokenizer
from raynest_pipeline.serving.tinymodel.scenes import vocabulary
from raynest_pipeline.serving.tinymodel.train_text import tokenize
from raynest_pipeline.serving.tinymodel.train_tolerance import (
    COMMON,
    example,
    strange_word,
    strewn,
    train_tolerance,
)

TOKENIZER = build_tokenizer()
START, END = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def ids_of(word: str) -> list[int]:
    found: list[int] = TOKENIZER(word, add_special_tokens=False).input_ids
    return found


def test_strange_words_are_none_that_it_knows() -> None:
    rng = random.Random(0)
    known = set(vocabulary())
    assert not known & set(COMMON)
    seen = {strange_word(rng) for _ in range(2000)}
    assert len(seen) > 500 and len(seen & known) <= 3


@pytest.mark.parametrize("seed", range(30))
def test_the_known_words_keep_their_order_and_their_owners(seed: int) -> None:
    words = ["a", "small", "red", "circle", "left", "of", "a", "large", "blue", "square"]
    ids, owners = strewn(words, random.Random(seed), ids_of)
    alone = [token for word in words for token in ids_of(word)]
    assert [token for token, owner in zip(ids, owners, strict=True) if owner >= 0] == alone
    assert [owner for owner in owners if owner >= 0] == list(range(len(alone)))
    assert len(ids) > len(alone)


def test_an_example_is_one_for_the_pipeline_s_tokenizer() -> None:
    rng = random.Random(1)
    blank = 0
    for _ in range(200):
        clean, mixed, positions = example(rng, ids_of, START, END)
        assert len(clean) == len(mixed) == len(positions) == MAX_TOKENS
        assert (clean[0], mixed[0], positions[0]) == (START, START, 0)
        assert clean[-1] == mixed[-1] == END
        blank += clean[1] == END
        for token, position in zip(mixed, positions, strict=True):
            # Each token reads as itself, or, if it is a strange one, as padding.
            assert clean[position] in (token, END)
    assert 5 < blank < 60
    (tokens,) = tokenize(TOKENIZER, ["a red circle"]).tolist()
    words = [token for word in ("a", "red", "circle") for token in ids_of(word)]
    assert tokens == [START, *words] + [END] * (MAX_TOKENS - 4)


def test_it_learns_without_forgetting() -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(TOKENIZER).eval()
    before = copy.deepcopy(encoder)
    ids = tokenize(TOKENIZER, ["a small red circle on a blue background"])
    untrained = train_tolerance(copy.deepcopy(encoder), TOKENIZER, 1, 0, batch=16)
    trained = train_tolerance(encoder, TOKENIZER, 40, 0, batch=16)
    assert trained < 0.7 * untrained
    with torch.no_grad():
        wanted, now = before(ids).last_hidden_state, encoder(ids).last_hidden_state
    assert torch.nn.functional.mse_loss(now, wanted) < 0.5 * wanted.var()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
