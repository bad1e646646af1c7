"""Readable ids: `large_red_circle` of the values that a prompt is made of, unique by construction."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from raynest_pipeline.images.names import MAX_NAME, name_problem

MAX_SLUG = 32
HASH_DIGITS = 8
CUT_DIGITS = 16

_OTHER = re.compile(r"[^a-z0-9]+")


def tokens_of(variable: str, words: Sequence[str]) -> list[str]:
    """A short name for each value of a variable, of a-z, 0-9 and -; no two are the same.

    Where the plain name would not tell a value from another, or be cut, digits of a hash follow it. So a
    value keeps its name when others are added.
    """
    slugs = [_OTHER.sub("-", (word or f"no {variable}").lower()).strip("-") for word in words]
    often = Counter(slugs)
    tokens = [
        slug
        if slug and often[slug] == 1 and len(slug) <= MAX_SLUG and name_problem(slug) is None
        else _with_digits(slug, word, HASH_DIGITS)
        for slug, word in zip(slugs, words, strict=True)
    ]
    # Eight digits are short: two of some ten thousand values without a letter of a-z may share them.
    often = Counter(tokens)
    return [
        token if often[token] == 1 else _with_digits(slug, word, CUT_DIGITS)
        for token, slug, word in zip(tokens, slugs, words, strict=True)
    ]


def _with_digits(slug: str, word: str, digits: int) -> str:
    return f"{slug[:MAX_SLUG]}-{_digest(word)[:digits]}".strip("-")


def id_of(tokens: Sequence[str], copy: str) -> str:
    """The id of an image: its tokens, then which of its prompt's images it is ("" where it is the only one).

    One that would be too long is cut, and digits of a hash stand for the rest.
    """
    name = "_".join(tokens)
    room = MAX_NAME - len(copy)
    if len(name) > room:
        name = f"{name[: room - CUT_DIGITS - 1]}-{_digest(name)[:CUT_DIGITS]}"
    return name + copy


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
