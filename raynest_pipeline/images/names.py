"""Names that are safe as file names on every system, and the content key of an image."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

MAX_NAME = 128
"""Characters in a prompt id or a batch id: leaves room for the key within the 255 bytes of a file name."""
KEY_IN_NAME = 16
"""Hex digits of the content key in a file name: 64 bits, so a clash within one id is out of reach."""
MAX_FILE_NAME = MAX_NAME + 1 + KEY_IN_NAME + len(".png")
"""Characters in the name of an image file."""

_CANONICAL = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False)
_TEXT_OF: dict[type, Callable[[Any], str]] = {str: _quoted, int: repr}
FINE_NAME = r"(?!(?:con|prn|aux|nul|com[1-9]|lpt[1-9])(?:[./]|\Z))[A-Z0-9_](?:[A-Z0-9._-]*[A-Z0-9_-])?"
"""A pattern, case and length aside, for names that `name_problem` has nothing to say about."""
_FINE = re.compile(FINE_NAME, re.IGNORECASE | re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


def name_problem(name: str, most: int = MAX_NAME) -> str | None:
    """Why `name` must not become part of a path; None when it may.

    Allowed are 1 to `most` of A-Z a-z 0-9 . _ - as far as Linux, macOS and Windows all take them.
    """
    if len(name) <= most and _FINE.fullmatch(name):
        return None
    if not name:
        return "is empty"
    if len(name) > most:
        return f"has {len(name)} characters; at most {most} are allowed"
    if bad := _UNSAFE.search(name):
        return f"contains {bad.group()!r}; allowed are A-Z a-z 0-9 . _ -"
    if name[0] in ".-":
        return f"starts with {name[0]!r}"
    if name[-1] == ".":
        return "ends with a dot, which Windows drops"
    if name.split(".")[0].lower() in _RESERVED:
        return f"is the Windows device name {name.split('.')[0]!r}"
    return None


def content_key(
    *,
    model: str,
    revision: str,
    prompt: str,
    negative_prompt: str,
    seed: int,
    size: int | None,
    steps: int | None,
    guidance: float | None,
) -> str:
    """What makes an image what it is, as 64 hex digits (SHA-256 of a canonical JSON list).

    None stands for "the endpoint's own default, which it does not tell".
    """
    # 7 and 7.5 may come from JSON as int and float; the same value must give the same key.
    scale = None if guidance is None else float(guidance)
    start, end = _same_for_many(model, revision, size, steps, scale)
    text = f"{start},{_quoted(prompt)},{_quoted(negative_prompt)},{seed:d},{end}"
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@lru_cache(maxsize=256)
def _same_for_many(
    model: str, revision: str, size: int | None, steps: int | None, guidance: float | None
) -> tuple[str, str]:
    """The two ends of the list in a content key, which most prompts of a batch have in common."""
    # A zero with a minus is the same key to the cache, so it must be the same text.
    scale = guidance + 0.0 if guidance is not None else None
    return json_list(("raynest-image/1", model, revision), ",")[:-1], json_list((size, steps, scale), ",")[1:]


def json_list(values: Sequence[str | int | float | None], separator: str) -> str:
    """The values as a JSON list, byte for byte as `json.dumps` writes them; that takes several times as long.

    Raises:
        ValueError: JSON cannot hold a number.
    """
    texts = ["null" if v is None else _TEXT_OF.get(type(v), _CANONICAL.encode)(v) for v in values]
    return f"[{separator.join(texts)}]"


def image_name(prompt_id: str, key: str) -> str:
    """File name of an image: the readable id first, then the key."""
    return f"{prompt_id}-{key[:KEY_IN_NAME]}.png"
