"""Prompt sets from their YAML to prompts: what they mean, and what is said about a bad one."""

import itertools
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.batch import batch_id_for, batch_prompts, run_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.prompt_file import PromptFile, open_prompts
from raynest_pipeline.images.prompts import Prompt, derived_seed, prompts_of_row
from raynest_pipeline.images.sets.reading import PromptSet, read_set
from raynest_pipeline.images.sets.schema import MAX_SET_BYTES, SetProblemsError
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.serving.tinymodel.scenes import SMALL, vocabulary
from raynest_pipeline.settings import Batch

EXAMPLE = Path(__file__).parents[2] / "examples" / "prompt-set.yaml"
SHAPES = """
templates:
  - a {size} {colour} {shape}
variables:
  size: [small, large]
  colour: [red, blue, black]
  shape: [circle, cross]
"""


def opened(folder: Path, text: str, name: str = "set.yaml") -> PromptFile:
    path = folder / name
    path.write_text(dedent(text), encoding="utf-8")
    return open_prompts(path)


def prompts(text: str) -> list[Prompt]:
    """The prompts of a set, each row checked as a file's."""
    found = []
    for number, (line, row) in enumerate(read_set(dedent(text)).rows(), start=1):
        made, problems = prompts_of_row(line, number, row)
        assert problems == []
        found += made
    return found


def mistakes(text: str) -> list[str]:
    with pytest.raises(SetProblemsError) as caught:
        read_set(dedent(text))
    assert caught.value.problems
    return [str(problem) for problem in caught.value.problems]


class TestProduct:
    def test_every_combination_in_order_with_readable_ids(self) -> None:
        found = prompts(SHAPES)
        expected = itertools.product(("small", "large"), ("red", "blue", "black"), ("circle", "cross"))
        assert [(p.id, p.prompt) for p in found] == [
            ("_".join(words), f"a {' '.join(words)}") for words in expected
        ]
        assert found[0].extra == {"x_size": "small", "x_colour": "red", "x_shape": "circle"}

    def test_seeds_are_derived_as_a_files_are(self) -> None:
        first = prompts(SHAPES)[0]
        assert first.seed == derived_seed(first.prompt, first.id)

    def test_a_seed_of_the_set_gives_other_images(self) -> None:
        plain, one, two = (prompts(SHAPES + more) for more in ("", "seed: 1", "seed: 2"))
        assert [p.id for p in plain] == [p.id for p in one] == [p.id for p in two]
        assert not {p.seed for p in plain} & {p.seed for p in one}
        assert not {p.seed for p in one} & {p.seed for p in two}

    def test_seeds_per_prompt(self) -> None:
        found = prompts(SHAPES + "seeds_per_prompt: 3")
        assert len(found) == 36 and len({p.seed for p in found}) == 36
        assert [p.id for p in found[:4]] == [
            *(f"small_red_circle-{n}" for n in (1, 2, 3)),
            "small_red_cross-1",
        ]
        assert len({p.prompt for p in found[:3]}) == 1

    def test_the_same_seeds_for_every_prompt(self) -> None:
        found = prompts(SHAPES + "seeds: [7, 42]")
        assert Counter(p.seed for p in found) == {7: 12, 42: 12}
        assert [p.id for p in found[:2]] == ["small_red_circle-s7", "small_red_circle-s42"]
        assert [p.id for p in prompts(SHAPES + "seeds: [7]")][0] == "small_red_circle"

    def test_a_limit_cuts_it_off(self) -> None:
        assert prompts(SHAPES + "limit: 5") == prompts(SHAPES)[:5]
        assert len(prompts(SHAPES + "limit: 500")) == 12
        assert [p.id[-2:] for p in prompts(SHAPES + "limit: 4\nseeds_per_prompt: 3")] == [
            *("-1", "-2", "-3", "-1")
        ]

    def test_parameters_and_those_of_a_template(self) -> None:
        plain, own = prompts(
            """
            templates:
              - a cat
              - text: a dog
                name: hound
                parameters: {guidance: 3.5, negative_prompt: ""}
            parameters: {size: 64, steps: 20, guidance: 7, negative_prompt: blur}
            """
        )
        assert (plain.size, plain.steps, plain.guidance, plain.negative_prompt) == (64, 20, 7.0, "blur")
        assert (own.size, own.steps, own.guidance, own.negative_prompt) == (64, 20, 3.5, "")
        assert (plain.id, own.id) == ("t1", "hound")
        assert (plain.extra, own.extra) == ({"x_template": "t1"}, {"x_template": "hound"})

    def test_a_template_only_goes_through_its_own_variables(self) -> None:
        found = prompts("{templates: ['{a}', '{a} and {b}'], variables: {a: [x, y], b: [u, v, w]}}")
        assert [p.prompt for p in found[:3]] == ["x", "y", "x and u"]
        assert len(found) == 2 + 6
        assert found[2].id == "t2_x_u"

    def test_words_are_words_whatever_yaml_makes_of_them(self) -> None:
        found = prompts(
            "{templates: ['{v}'], variables: {v: [no, on, 007, 1e3, 12:30, 1.50, null, ~, 2026-01-01]}}"
        )
        assert [p.prompt for p in found] == [
            *("no", "on", "007", "1e3", "12:30", "1.50", "null", "~", "2026-01-01")
        ]

    def test_an_empty_value_leaves_no_gap(self) -> None:
        found = prompts("{templates: ['a {mood} cat'], variables: {mood: ['', sad]}}")
        assert [(p.id, p.prompt) for p in found] == [("no-mood", "a cat"), ("sad", "a sad cat")]
        assert found[0].extra == {}

    def test_braces_and_line_breaks(self) -> None:
        text = "templates:\n  - |\n    {{not}} a\n    {v} one\nvariables: {v: [red]}\n"
        assert prompts(text)[0].prompt == "{not} a red one"

    def test_a_variable_may_come_twice(self) -> None:
        assert [p.prompt for p in prompts("{templates: ['{v} on { v }'], variables: {v: [a, b]}}")] == [
            "a on a",
            "b on b",
        ]

    def test_a_product_of_ten_million_is_opened_and_read_without_listing_it(self, tmp_path: Path) -> None:
        values = [f"w{n}" for n in range(10)]
        names = "abcdefg"
        document = {
            "templates": [" ".join(f"{{{n}}}" for n in names)],
            "variables": dict.fromkeys(names, values),
        }
        text = (
            yaml.safe_dump(document, default_flow_style=None)
            .replace("&id001", "")
            .replace("*id001", str(values))
        )
        tracemalloc.start()
        try:
            file = opened(tmp_path, text)
            assert len(file) == 10_000_000
            assert [p.id for p in itertools.islice(file, 2)][1] == "w0_w0_w0_w0_w0_w0_w1"
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


class TestExclude:
    def test_equal_values_never_meet(self) -> None:
        found = prompts(
            """
            templates: ["{colour} on {background}"]
            variables: {colour: [red, black], background: [black, white, red]}
            exclude: [colour == background]
            """
        )
        assert [p.prompt for p in found] == ["red on black", "red on white", "black on white", "black on red"]

    def test_values_that_do_not_go_together(self) -> None:
        found = prompts(SHAPES + "exclude: [{size: small, shape: cross, colour: [red, blue]}]")
        left_out = {"small_red_cross", "small_blue_cross"}
        assert len(found) == 10 and not left_out & {p.id for p in found}

    def test_a_rule_leaves_templates_alone_that_lack_one_of_its_variables(self) -> None:
        found = prompts(
            "{templates: ['{a}', '{a} {b}'], variables: {a: [x, y], b: [x, y]}, exclude: [a == b]}"
        )
        assert [p.prompt for p in found] == ["x", "y", "x y", "y x"]


class TestSample:
    SAMPLE = SHAPES + "mode: sample\n"

    def test_different_prompts_of_the_product(self) -> None:
        every = {p.prompt for p in prompts(SHAPES)}
        found = [p.prompt for p in prompts(self.SAMPLE + "count: 7")]
        assert len(found) == len(set(found)) == 7 and set(found) < every
        assert {p.prompt for p in prompts(self.SAMPLE + "count: 12")} == every

    def test_the_seed_decides(self) -> None:
        one, again, other = (
            [p.id for p in prompts(self.SAMPLE + f"count: 6\nseed: {seed}")] for seed in (1, 1, 2)
        )
        assert one == again != other

    def test_ids_and_images_are_the_products_own(self) -> None:
        """So that a sample and the whole set share their images."""
        every = {p.id: p for p in prompts(SHAPES)}
        assert all(every[p.id] == p for p in prompts(self.SAMPLE + "count: 5"))

    def test_weights(self) -> None:
        found = prompts(
            """
            templates:
              - {text: "{colour} {n}", weight: 3}
              - {text: "just {n}", name: just}
            variables:
              colour: [{value: red, weight: 4}, blue]
              n: [NUMBERS]
            mode: sample
            count: 80
            """.replace("NUMBERS", ", ".join(str(n) for n in range(200)))
        )
        assert Counter(p.extra["x_template"] for p in found) == {"t1": 60, "just": 20}
        assert Counter(p.extra.get("x_colour") for p in found) == {"red": 48, "blue": 12, None: 20}

    def test_with_seeds_and_a_limit(self) -> None:
        found = prompts(self.SAMPLE + "count: 3\nseeds_per_prompt: 2\nlimit: 5")
        assert [len(list(same)) for _, same in itertools.groupby(found, lambda p: p.prompt)] == [2, 2, 1]

    def test_what_exclude_leaves_out_is_never_drawn(self) -> None:
        found = prompts(self.SAMPLE + "count: 8\nexclude: [{colour: [black]}]")
        assert len({p.id for p in found}) == 8 and not [p for p in found if "black" in p.prompt]


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "templates: ['a {color}']\nvariables: {colour: [red]}",
                "line 1, field templates: 'color' is not a variable",
            ),
            ("templates: ['a {color}']\nvariables: {colour: [red]}", "did you mean 'colour'?"),
            ("templates: ['{x}']", "known are none"),
            (
                "templates: [a cat]\nvariables:\n  colour: [red]",
                "line 3, field variables.colour: is used by no template",
            ),
            (
                "templates:\n- fine\n- 'a {b'",
                "line 3, field templates: has a '{' without its partner at character 3",
            ),
            ("templates: ['a } b']", "for a brace as such write '}}'"),
            ("templates: ['a {} b']", "has '{}' at character 3; between braces goes the name"),
            ("templates: ['{a!r}']", "has '{a!r}' at character 1"),
            ("templates: ['{v:>3}']\nvariables: {v: [a]}", "has '{v:>3}'"),
            ("templates: ['{V}']\nvariables: {V: [a]}", "V: is no name for a variable"),
            ("templates: ['{template}']\nvariables: {template: [a]}", "'template' is taken"),
            ("templates: ['{v}']\nvariables: {v: []}", "line 2, field variables.v: has no values"),
            ("templates: ['{v}']\nvariables: {v: red}", "must be a list, is 'red'"),
            ("templates: ['{v}']\nvariables: {v: [[a]]}", "must be a text, or a mapping"),
            (
                "templates: ['{v}']\nvariables:\n  v:\n  - a\n  - b\n  - a",
                "line 4, field variables.v: has the value 'a' 2",
            ),
            ("templates: ['{v}']\nvariables: {v: [\"a\\x01\"]}", "control character"),
            ("templates: ['{v}']\nvariables: {v: [\"\\ud800\"]}", "surrogate"),
            (
                "templates: ['{v}']\nvariables: {v: [%s]}" % ("猫" * 700),
                "has 4,202 characters; at most 4,000",
            ),
            (
                "templates: ['{v}{v}']\nvariables: {v: [%s]}" % ("x" * 2001),
                "can become 4,002 characters long",
            ),
            ("templates: []", "field templates: is empty"),
            ("templates: ['']", "field templates: is empty"),
            ("templates: ['{v}']\nvariables: {v: ['', a]}", "becomes empty when its variables take"),
            ("templates: [a, a]", "is there twice"),
            ("templates: [{text: a, name: x}, {text: b, name: x}]", "has the name 'x', as another"),
            ("templates: [{text: a, name: t2}, b]", "has the name 't2', as another"),
            ("templates: [{text: a, name: A B}]", "must be letters, digits and hyphens"),
            (
                "templates: [{text: a, weigth: 2}]",
                "templates.weigth: is not a key that is known here; did you mean 'weight'?",
            ),
            ("templates: [{name: a}]", "templates.text: is missing"),
            ("variables: {}", "field templates: is missing"),
            (
                "templates: [a]\ncolour: red",
                "line 2, field colour: is not a key that is known here. Known are name, templates",
            ),
            (
                "templates: [a]\nmode: smaple",
                "line 2, field mode: must be 'product' or 'sample', is 'smaple'",
            ),
            ("templates: [a]\nmode: sample", "field mode: is sample, so `count` must say"),
            ("templates: [a]\ncount: 3", "field count: belongs to mode sample"),
            (
                "templates: [a]\nmode: sample\ncount: 3",
                "line 3, field count: is 3, but there are only 1 different",
            ),
            ("templates: [a]\nmode: sample\ncount: many", "field count: must be a valid integer"),
            ("templates: [a]\nlimit: 0", "field limit: must be greater than or equal to 1, is '0'"),
            ("templates: [a]\nlimit:", "field limit: must be a valid integer"),
            ("templates: [a]\nseed: -1", "field seed: must be greater"),
            ("templates: [a]\nseeds: []", "field seeds: is empty"),
            ("templates: [a]\nseeds: [1, 1]", "field seeds: has a seed twice"),
            ("templates: [a]\nseeds: [1]\nseeds_per_prompt: 2", "and `seeds` exclude each other"),
            ("templates: [a]\nseeds_per_prompt: 10001", "less than or equal to 10000"),
            ("templates: [{text: a, weight: 2}]", "templates.weight: means nothing in mode product"),
            (
                "templates: ['{v}']\nvariables: {v: [{value: a, weight: 2}]}",
                "has a weight, which means nothing in mode product",
            ),
            ("templates: [{text: a, weight: 0}]", "must be greater than 0, is '0'"),
            ("templates: [{text: a, weight: heavy}]", "must be a valid decimal, is 'heavy'"),
            ("templates: [{text: a, weight: 0.00001}]", "no more than 3 decimal places"),
            (
                "templates: [a]\nparameters: {size: 63}",
                "parameters.size: must be a multiple of 8, is 63; the nearest is 64",
            ),
            (
                "templates: [a]\nparameters: {steps: few}",
                "parameters.steps: must be a whole number, is 'few'",
            ),
            ("templates: [a]\nparameters: {colour: red}", "parameters.colour: is not a parameter. Known are"),
            (
                "templates: [{text: a, parameters: {guidance: 101}}]",
                "templates.parameters.guidance: must be 0 to 100",
            ),
            (
                "templates: ['{v}']\nvariables: {v: [a]}\nparameters: {negative_prompt: '{v}'}",
                "takes no variables",
            ),
            ("templates: [a]\nexclude: [a = b]", "must be `variable == variable`, or values by variable"),
            ("templates: [a]\nexclude: [{}]", "must be `variable == variable`"),
            ("templates: ['{v}']\nvariables: {v: [a]}\nexclude: [v == w]", "exclude: 'w' is not a variable"),
            ("templates: ['{v}']\nvariables: {v: [a]}\nexclude: [v == v]", "compares a variable with itself"),
            ("templates: ['{v}']\nvariables: {v: [a]}\nexclude: [{v: b}]", "'b' is not a value of v"),
            ("templates: ['{v}']\nvariables: {v: [a]}\nexclude: [{v: []}]", "names no value of v"),
            (
                "templates: ['{v}', '{w}']\nvariables: {v: [a], w: [a]}\nexclude: [v == w]",
                "no template has v and w together",
            ),
            (
                "templates: ['{v}']\nvariables: {v: [a]}\nexclude: [{v: a}]",
                "has no prompts: the `exclude` rules leave no",
            ),
            ("templates: [a]\ntemplates: [b]", "line 2, field templates: appears twice"),
            ("templates: &x [a]\nseeds: *x", "uses a YAML alias"),
            ("templates: [a", "is not valid YAML"),
            (
                "templates: [a {b}]",
                "line 1, column 15: is not valid YAML: expected ',' or ']', but got '{'; a text",
            ),
            ("templates:\n- {a} cat", "that begins with { or holds ': ' must be in quotes"),
            ("templates:\n- {a}", "templates.text: is missing; a text that begins with {"),
            ("templates:\n- a cat: asleep", "or holds ': ' must be in quotes"),
            ("templates:\n\t- a", "line 2, column 1: is not valid YAML"),
            ("templates: [a]\n---\ntemplates: [b]", "is not valid YAML"),
            ("templates: [\x07]", "is not valid YAML"),
            ("- a", "must be a mapping whose first key is `templates`"),
            ("", "must be a mapping"),
            ("[" * 5000, "nested too deeply"),
            ("name: a b\ntemplates: [a]", "line 1, field name: must be letters"),
        ],
    )
    def test_each_is_told_with_its_place(self, text: str, expected: str) -> None:
        told = mistakes(text)
        assert any(expected in message for message in told), told

    def test_all_of_them_at_once_in_order(self) -> None:
        told = mistakes(
            """\
            templates:
              - a {size} {color}
              - "{size"
            variables:
              size: [small, small]
              colour: []
            exclude: [size == sise]
            parameters: {steps: 0}
            """
        )
        lines = [int(message.split(",")[0].removeprefix("line ")) for message in told]
        assert lines == [2, 3, 5, 6, 7, 8]

    def test_a_product_beyond_reason(self) -> None:
        values = ", ".join(f"w{n}" for n in range(100))
        fields, variables = "", ""
        for name in "abcdef":
            fields, variables = fields + f"{{{name}}} ", variables + f"  {name}: [{values}]\n"
        text = f"templates: ['{fields}']\nvariables:\n{variables}"
        assert mistakes(text) == [
            "asks for 1,000,000,000,000 images; at most 1,000,000,000 are allowed: "
            "set `limit`, or `mode: sample`"
        ]
        assert read_set(text + "limit: 10").images == 10
        many = read_set(text + "mode: sample\ncount: 1000000")
        assert (many.images, many.combinations) == (1_000_000, 10**12)

    def test_rules_that_tie_too_much(self) -> None:
        values = ", ".join(f"w{n}" for n in range(1001))
        text = f"templates: ['{{a}} {{b}}']\nvariables:\n  a: [{values}]\n  b: [{values}]\nexclude: [a == b]"
        assert "tie a, b together, which have 1,002,001 combinations" in mistakes(text)[0]

    def test_weights_on_too_much(self) -> None:
        values = ", ".join(f"{{value: w{n}, weight: {n + 1}}}" for n in range(400))
        text = f"templates: ['{{a}} {{b}}']\nvariables:\n  a: [{values}]\n  b: [{values}]\n"
        text += "mode: sample\ncount: 9"
        assert "the values with weights have more than 100,000 combinations" in mistakes(text)[0]

    def test_a_set_is_no_data_file(self) -> None:
        assert "Use CSV or Parquet" in mistakes("#" * (MAX_SET_BYTES + 1))[0]


class TestAsPromptFile:
    def test_a_file_of_any_length_is_refused_without_being_read_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "set.yaml"
        with path.open("wb") as file:
            file.write(b"# \xe7\x8c\xab")
            file.truncate(64_000_000)
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match="too many for a prompt set"):
                open_prompts(path)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 30_000_000

    def test_the_name_and_the_content_name_the_batch(self, tmp_path: Path) -> None:
        one = opened(tmp_path, "name: My-Shapes" + SHAPES, "a.yaml")
        two = opened(tmp_path, "name: My-Shapes" + SHAPES, "b.YML")
        assert batch_id_for(one) == batch_id_for(two) == f"My-Shapes-{one.sha256[:8]}"
        assert batch_id_for(opened(tmp_path, SHAPES, "c.yaml")).startswith("c-")
        assert (len(one), one.combinations) == (12, 12)

    def test_problems_come_as_those_of_any_file(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"has 1 problem; nothing has been sent:(?s:.)*line 1, field colour"
        ):
            opened(tmp_path, "{templates: [a], colour: red}")
        with pytest.raises(InputError, match="is not UTF-8: line 1"):
            (tmp_path / "latin.yaml").write_bytes("templates: [Bär]".encode("latin-1"))
            open_prompts(tmp_path / "latin.yaml")

    def test_only_the_first_problems_are_listed(self, tmp_path: Path) -> None:
        bad = "templates:\n" + "".join(f"- '{n} {{'\n" for n in range(30))
        with pytest.raises(InputError, match=r"has 30 problems(?s:.)*and 10 more"):
            opened(tmp_path, bad)

    def test_a_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbf" + SHAPES.strip().replace("\n", "\r\n").encode())
        assert len(open_prompts(tmp_path / "w.yaml")) == 12

    def test_a_set_that_changes_after_the_check_stops_the_batch(self, tmp_path: Path) -> None:
        file = opened(tmp_path, SHAPES)
        opened(tmp_path, SHAPES + "limit: 3")
        with pytest.raises(InputError, match="has changed since"):
            list(file)

    def test_a_batch_and_again_from_its_own_copy(self, tmp_path: Path, endpoint: Any) -> None:
        checked = opened(tmp_path, SHAPES + "limit: 4\nseeds_per_prompt: 2")
        folder = BatchFolder(tmp_path / "out", batch_id_for(checked))
        first = run_batch(folder, checked, endpoint.target, Batch())
        assert (first.result.made, first.images) == (4, 4)
        one = next(r for r in latest_records(folder) if r.id == "small_red_circle-1")
        assert one.extra == {"x_size": "small", "x_colour": "red", "x_shape": "circle"}
        checked.path.unlink()
        own = batch_prompts(folder, None, tmp_path / "no")
        assert own.path == folder.path / "prompts.yaml" and own.sha256 == checked.sha256
        again = run_batch(folder, own, endpoint.target, Batch())
        assert (again.result.made, again.result.reused) == (0, 4)

    def test_the_example_speaks_the_words_of_the_model_that_ships(self) -> None:
        found = list(open_prompts(EXAMPLE))
        assert len({p.prompt for p in found}) == len(found) == 24
        known = set(vocabulary())
        for prompt in found:
            assert set(prompt.prompt.split()) <= known
            assert prompt.extra["x_colour"] in SMALL.colors and prompt.extra["x_shape"] in SMALL.shapes
            assert prompt.extra["x_background"] in SMALL.backgrounds
            assert prompt.extra["x_colour"] != prompt.extra["x_background"]

    def test_the_page_shows_what_is_so(self) -> None:
        page = (EXAMPLE.parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
        block = page.partition("```yaml\n")[2].partition("```")[0]
        assert read_set(block).images == 30 == len(prompts(block))
        shown = page.partition("```\nfile:")[2].partition("```")[0]
        file = open_prompts(EXAMPLE)
        assert batch_id_for(file) in shown and f"of {file.combinations} possible" in shown
        for prompt in itertools.islice(file, 3):
            assert re.search(rf"^{prompt.id} +{prompt.seed} +{prompt.prompt}$", shown, re.MULTILINE)


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
