"""Prompt sets from their YAML to prompts: what they mean."""

import itertools
import tracemalloc
from collections import Counter
from pathlib import Path

import yaml
from images_prompt_sets import SHAPES, opened, prompts

from raynest_pipeline.images.prompts import derived_seed


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
