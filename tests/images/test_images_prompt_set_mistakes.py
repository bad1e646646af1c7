"""What is said about a bad prompt set."""

from textwrap import dedent

import pytest

from raynest_pipeline.images.sets.reading import read_set
from raynest_pipeline.images.sets.schema import MAX_SET_BYTES, SetProblemsError


def mistakes(text: str) -> list[str]:
    with pytest.raises(SetProblemsError) as caught:
        read_set(dedent(text))
    assert caught.value.problems
    return [str(problem) for problem in caught.value.problems]


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
