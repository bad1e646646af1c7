"""`raynest prompts preview`: what a person and a script see of a prompt file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_world import World

Raynest = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("opened")
EXAMPLES = Path(__file__).parents[2] / "examples"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_prompt_set_as_a_person_sees_it(raynest: Raynest, world: World) -> None:
    said = raynest("prompts", "preview", str(EXAMPLES / "prompt-set.yaml"), "--count", "2")
    assert said.code == 0 and said.err == ""
    assert "images:   24" in said.out
    assert "24 different texts of 815 possible" in said.out
    assert "no images repeat another" in said.out
    assert said.out.count(" on a ") == 2 and "and 22 more" in said.out
    assert world.calls == [], "a preview asks nobody"


def test_a_prompt_file_as_a_script_sees_it(raynest: Raynest) -> None:
    said = raynest("prompts", "preview", str(EXAMPLES / "prompts.csv"), "--json", "--count", "1")
    document = json.loads(said.out)
    assert said.code == 0 and said.err == ""
    assert (document["images"], document["prompts"], document["repeated"]) == (16, 16, 0)
    assert document["batch"] == f"prompts-{document['sha256'][:8]}" and document["combinations"] is None
    (first,) = document["first"]
    assert first["id"] == "01-red-circle" and first["seed"] == 11 and first["extra"] == {}


def test_parameters_have_columns_only_where_there_are_any(raynest: Raynest, tmp_path: Path) -> None:
    plain = raynest("prompts", "preview", write(tmp_path, "a.csv", "prompt\na cat\n"))
    sized = raynest(
        "prompts", "preview", write(tmp_path, "b.csv", "prompt,size,negative_prompt\na cat,64,[b]ad\n")
    )
    assert "size" not in plain.out and "more" not in plain.out
    assert "size" in sized.out and "64" in sized.out and "[b]ad" in sized.out


def test_repetitions_are_named(raynest: Raynest, tmp_path: Path) -> None:
    said = raynest("prompts", "preview", write(tmp_path, "a.csv", "id,prompt,seed\na,cat,1\nb,cat,1\n"))
    assert said.code == 0
    assert "1 different texts" in said.out and "b is a" in said.out


@pytest.mark.parametrize("as_json", [False, True])
def test_all_problems_of_a_bad_file(raynest: Raynest, tmp_path: Path, as_json: bool) -> None:
    rows = "".join(f"../{n},p\n" for n in range(50))
    path = write(tmp_path, "bad.csv", f"id,prompt\n{rows}")
    said = raynest("prompts", "preview", path, *(["--json"] if as_json else []))
    assert said.code == 2
    words = json.loads(said.out)["error"]["what"] if as_json else said.err
    assert "has 50 problems" in words and words.count("column id") == 50


def test_a_bad_set_names_line_and_field(raynest: Raynest, tmp_path: Path) -> None:
    said = raynest("prompts", "preview", write(tmp_path, "s.yaml", "templates:\n  - a {colour}\n"))
    assert said.code == 2 and said.out == ""
    assert "line 2, field templates: 'colour' is not a variable of this set" in said.err


def test_a_file_that_is_not_there(raynest: Raynest, tmp_path: Path) -> None:
    said = raynest("prompts", "preview", str(tmp_path / "none.csv"))
    assert said.code == 2 and "does not exist" in said.err


@pytest.mark.parametrize("arguments", [["--count", "-1"], ["--nope"], []])
def test_what_it_does_not_take(raynest: Raynest, arguments: list[str]) -> None:
    assert raynest("prompts", "preview", *arguments).code == 2


def test_generate_checks_a_set_before_anything_else(raynest: Raynest, world: World, tmp_path: Path) -> None:
    said = raynest("generate", "--prompts", write(tmp_path, "s.yaml", "templates: ['a {']"))
    assert said.code == 2 and world.calls == []
    assert "without its partner" in said.err
