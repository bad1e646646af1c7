import hashlib
import json
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import checked_name
from raynest_pipeline.images.names import (
    MAX_FILE_NAME,
    MAX_NAME,
    content_key,
    image_name,
    json_list,
    name_problem,
)

VALUES = {
    "model": "m",
    "revision": "r",
    "prompt": "a cat",
    "negative_prompt": "",
    "seed": 1,
    "size": 64,
    "steps": 10,
    "guidance": 7.5,
}


@pytest.mark.parametrize(
    "name", ["a", "A-1_b.c", "0", "_x", "con1", "console", "x" * MAX_NAME, "com0", "nul-x"]
)
def test_safe_names_pass(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("../up", "'/'"),
        ("..", "starts with '.'"),
        (".hidden", "starts with '.'"),
        ("-rf", "starts with '-'"),
        ("a/b", "'/'"),
        ("a\\b", r"'\\'"),
        ("a\0b", r"'\x00'"),
        ("a\nb", r"'\n'"),
        ("a b", "' '"),
        ("é", "'é'"),
        ("trailing.", "dot"),
        ("CON", "device"),
        ("nul.txt", "device"),
        ("lPt9.a.b", "device"),
        ("x" * (MAX_NAME + 1), "129 characters"),
    ],
)
def test_unsafe_names_say_why(name: str, reason: str) -> None:
    assert reason in (name_problem(name) or "")


@given(st.text())
def test_no_accepted_name_can_leave_a_folder(name: str) -> None:
    if name_problem(name) is None:
        assert name.isascii()
        assert not set(name) & set("/\\\0:") and name not in (".", "..")
        assert len(image_name(name, "0" * 64).encode()) <= 255
        assert name_problem(image_name(name, "0" * 64), MAX_FILE_NAME) is None


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model", "n"),
        ("revision", "s"),
        ("prompt", "a dog"),
        ("negative_prompt", "blur"),
        ("seed", 2),
        ("size", 72),
        ("size", None),
        ("steps", 11),
        ("guidance", 7.6),
        ("guidance", None),
    ],
)
def test_every_part_changes_the_key(field: str, other: object) -> None:
    assert content_key(**VALUES) != content_key(**VALUES | {field: other})  # type: ignore[arg-type]


def test_the_key_is_stable_across_releases_and_number_types() -> None:
    key = content_key(**VALUES | {"guidance": 7})  # type: ignore[arg-type]
    assert key == content_key(**VALUES | {"guidance": 7.0})  # type: ignore[arg-type]
    # Changing this value orphans every finished batch: bump "raynest-image/1" knowingly.
    assert key == "7d25998bf6a23685bdab204c19b28b386145bf794e9852c4fae7c5da3a8da124"


def test_parts_do_not_run_together() -> None:
    one = content_key(**VALUES | {"prompt": "a", "negative_prompt": "b"})  # type: ignore[arg-type]
    two = content_key(**VALUES | {"prompt": "a\0b", "negative_prompt": ""})  # type: ignore[arg-type]
    assert one != two


def in_words(name: str, most: int) -> bool:
    """The rule of `name_problem`, spelled out."""
    plain = 0 < len(name) <= most and set(name) <= set(string.ascii_letters + string.digits + "._-")
    stem = name.split(".")[0].lower()
    reserved = stem in {"con", "prn", "aux", "nul"} or re.fullmatch(r"(com|lpt)[1-9]", stem) is not None
    return plain and name[0] not in ".-" and name[-1] != "." and not reserved


@given(st.from_regex(r"(con|NUL|com1|lpt0|Com9|aux\.|)[a.\-_Z9\nſKé/]{0,6}", fullmatch=True))
def test_the_quick_look_and_the_words_say_the_same(name: str) -> None:
    assert (name_problem(name) is None) == in_words(name, MAX_NAME)
    try:
        inside = checked_name(f"images/{name}") == f"images/{name}"
    except StorageError:
        inside = False
    assert inside == in_words(name, MAX_FILE_NAME)


JSON = (
    st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
)


@given(st.lists(JSON), st.sampled_from([", ", ","]))
def test_a_list_is_written_as_json_writes_it(values: list[Any], separator: str) -> None:
    assert json_list(values, separator) == json.dumps(values, separators=(separator, ": "))


@given(st.text(), st.text(), st.integers(0, 2**63 - 1), st.floats(0, 100) | st.integers(0, 100) | st.none())
def test_the_content_key_is_the_hash_of_a_canonical_list(
    prompt: str, negative: str, seed: int, guidance: float | None
) -> None:
    scale = None if guidance is None else float(guidance) + 0.0
    parts = ["raynest-image/1", "m", "é", prompt, negative, seed, 8, None, scale]
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    given = {"model": "m", "revision": "é", "prompt": prompt, "negative_prompt": negative, "seed": seed}
    key = content_key(**given, size=8, steps=None, guidance=guidance)  # type: ignore[arg-type]
    assert key == hashlib.sha256(text.encode()).hexdigest()


def test_a_number_that_json_cannot_hold_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        content_key(**(VALUES | {"guidance": float("nan")}))  # type: ignore[arg-type]
