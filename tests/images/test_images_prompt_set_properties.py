"""What holds for any prompt set, and for any text that is none."""

from collections import Counter
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.images.prompts import prompts_of_row
from raynest_pipeline.images.sets.reading import PromptSet, read_set
from raynest_pipeline.images.sets.schema import SetProblemsError

words = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12).filter(str.strip)
values = st.lists(words, min_size=1, max_size=4, unique_by=str.strip)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid set, small enough to list."""
    names = draw(
        st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), min_size=1, max_size=3, unique=True)
    )
    variables: dict[str, Any] = {name: draw(values) for name in names if name != "template"}
    uses = [[*variables], *draw(st.lists(st.lists(st.sampled_from([*variables] or ["-"])), max_size=2))]
    texts = [
        f"t{at} " + " ".join(f"{{{name}}}" for name in own if name in variables)
        for at, own in enumerate(uses)
    ]
    document: dict[str, Any] = {"templates": texts, "variables": variables}
    if draw(st.booleans()):
        document |= {"mode": "sample", "count": 1}
        for name in variables:
            weight = draw(st.integers(1, 5))
            document["variables"][name] = [
                {"value": v, "weight": weight + at} for at, v in enumerate(variables[name])
            ]
    document |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "seed": st.integers(0, 99),
                "limit": st.integers(1, 50),
                "seeds_per_prompt": st.integers(1, 3),
                "parameters": st.just({"size": 64, "negative_prompt": "blur"}),
            },
        )
    )
    return document


def written(document: dict[str, Any]) -> str:
    text: str = yaml.dump(document, Dumper=_NoAliases, allow_unicode=True, sort_keys=False)
    return text


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def largest(document: dict[str, Any]) -> dict[str, Any]:
    """The same set with a sample of everything there is."""
    if document.get("mode") != "sample":
        return document
    return document | {"count": read_set(written(document)).combinations}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_any_set_gives_valid_rows_with_unique_ids_the_same_each_time(document: dict[str, Any]) -> None:
    text = written(largest(document))
    one, again = read_set(text), read_set(text)
    rows = list(one.rows())
    assert rows == list(again.rows())
    assert len(rows) == one.images
    found = [prompts_of_row(line, 1, row) for line, row in rows]
    assert [problems for _, problems in found if problems] == []
    ids = [prompt.id.lower() for made, _ in found for prompt in made]
    assert len(set(ids)) == len(ids) == one.images


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_nothing_is_lost(document: dict[str, Any]) -> None:
    """Without a limit each combination of each template is there exactly once per seed."""
    document = {key: value for key, value in largest(document).items() if key != "limit"}
    prompt_set: PromptSet = read_set(written(document))
    per_prompt = document.get("seeds_per_prompt", 1)
    sizes = {name: len(one) for name, one in document["variables"].items()}
    expected = 0
    for text in document["templates"]:
        product = 1
        for name, size in sizes.items():
            product *= size if f"{{{name}}}" in text else 1
        expected += product
    assert prompt_set.images == expected * per_prompt
    often = Counter(
        tuple(sorted((k, v) for k, v in row.items() if k.startswith("x_"))) for _, row in prompt_set.rows()
    )
    assert set(often.values()) == {per_prompt} and len(often) == expected


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(1, 30))
def test_a_limit_is_the_beginning(document: dict[str, Any], limit: int) -> None:
    whole = list(read_set(written(document | {"limit": 1000})).rows())
    cut = list(read_set(written(document | {"limit": limit})).rows())
    assert cut == whole[:limit]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.text("{}[]:-,ab \n'\"&*!|>#", max_size=60))
def test_any_text_is_a_set_or_is_explained(text: str) -> None:
    try:
        assert read_set(text).images >= 1
    except SetProblemsError as error:
        assert all(str(problem) for problem in error.problems)
