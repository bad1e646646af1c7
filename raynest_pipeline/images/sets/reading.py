"""A prompt set from its text to its rows: checked whole, counted by arithmetic, expanded row by row."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from raynest_pipeline.images.prompt_rows import Row
from raynest_pipeline.images.prompts import FREE_PREFIX, Problem, derived_seed
from raynest_pipeline.images.sets.checks import TEMPLATE_COLUMN, merged, problems_of, template_names
from raynest_pipeline.images.sets.expansion import Product, Sample, TooManyStrataError
from raynest_pipeline.images.sets.ids import id_of, tokens_of
from raynest_pipeline.images.sets.schema import (
    MAX_IMAGES,
    ExcludeEntry,
    Lines,
    SetFile,
    SetProblemsError,
    parse_set,
)
from raynest_pipeline.images.sets.space import Axis, Rule, TiedError, axes_of
from raynest_pipeline.images.sets.template import Template, parse_template


@dataclass(frozen=True)
class PromptSet:
    """A prompt set without mistakes.

    Attributes:
        file: As written.
        images: How many it asks for.
        combinations: Different prompts that its templates can make, `exclude` considered.
    """

    file: SetFile
    images: int
    combinations: int
    _choices: Product | Sample
    _templates: Sequence[Template]
    _lines: Sequence[int]
    _names: Sequence[str]
    _parameters: Sequence[Mapping[str, str]]
    _tokens: Mapping[str, Sequence[str]]

    def rows(self) -> Iterator[Row]:
        """A row for each image, with the columns of a prompt file; the same on every call."""
        copies = [f"-s{seed}" for seed in self.file.seeds or ()] or [
            f"-{number}" for number in range(1, self.file.seeds_per_prompt + 1)
        ]
        for image in range(self.images):
            number, copy = divmod(image, len(copies))
            at, positions = self._choices.choice(number)
            yield self._lines[at], self._row(at, positions, copy, copies[copy] if len(copies) > 1 else "")

    def _row(self, at: int, positions: Mapping[str, int], copy: int, suffix: str) -> dict[str, str | int]:
        file, template = self.file, self._templates[at]
        chosen = {name: file.variables[name][position] for name, position in positions.items()}
        text = template.render({name: value.value for name, value in chosen.items()})
        names = [name for name in file.variables if name in chosen]
        own = self._names[at]
        parts = [own] if len(self._templates) > 1 or not names else []
        name = id_of([*parts, *(self._tokens[name][positions[name]] for name in names)], suffix)
        row: dict[str, str | int] = {"id": name, "prompt": text, **self._parameters[at]}
        row |= {FREE_PREFIX + name: chosen[name].word for name in names}
        if len(self._templates) > 1:
            row[FREE_PREFIX + TEMPLATE_COLUMN] = own
        if file.seeds is not None:
            row["seed"] = file.seeds[copy]
        elif file.seed is not None:
            row["seed"] = derived_seed(f"{file.seed}\0{text}", name)
        return row


def read_set(text: str) -> PromptSet:
    """The set in a YAML text.

    Raises:
        SetProblemsError: Every mistake, with its line and field.
    """
    file, lines = parse_set(text)
    if problems := problems_of(file, lines):
        raise SetProblemsError(problems)
    templates = [parse_template(entry.text) for entry in file.templates]
    spaces = _spaces(file, lines, templates)
    product = Product(spaces)
    prompts = _prompts(file, lines, product.total)
    images = prompts * len(file.seeds or range(file.seeds_per_prompt))
    images = min(images, file.limit or images)
    if images > MAX_IMAGES:
        most = f"at most {MAX_IMAGES:,} are allowed: set `limit`, or `mode: sample`"
        raise SetProblemsError([Problem(0, "", f"asks for {images:,} images; {most}")])
    return PromptSet(
        file=file,
        images=images,
        combinations=product.total,
        _choices=product if file.mode == "product" else _sample(file, lines, spaces, prompts),
        _templates=templates,
        _lines=[lines.line(["templates", at]) for at in range(len(templates))],
        _names=template_names(file),
        _parameters=[merged(file, entry) for entry in file.templates],
        _tokens={
            name: tokens_of(name, [value.word for value in values]) for name, values in file.variables.items()
        },
    )


def _prompts(file: SetFile, lines: Lines, total: int) -> int:
    """How many prompts are chosen of all there are."""
    if file.mode == "product":
        return total
    count = file.count or 0
    if count > total:
        few = (
            f"is {count:,}, but there are only {total:,} different prompts; "
            "`seeds_per_prompt` makes several images of each"
        )
        raise SetProblemsError([lines.problem(["count"], few)])
    return count


def _spaces(file: SetFile, lines: Lines, templates: Sequence[Template]) -> list[list[Axis]]:
    rules = [_rule(file, entry) for entry in file.exclude]
    spaces: list[list[Axis]] = []
    problems: list[Problem] = []
    for at, template in enumerate(templates):
        sizes = {name: len(values) for name, values in file.variables.items() if name in template.fields}
        own = [rule for rule in rules if sizes.keys() >= set(rule.names)]
        try:
            spaces.append(axes_of(sizes, own))
        except TiedError as error:
            problems.append(lines.problem(["exclude"], str(error)))
        else:
            if not all(map(len, spaces[-1])):
                nothing = "has no prompts: the `exclude` rules leave no combination"
                problems.append(lines.problem(["templates", at], nothing))
    if problems:
        raise SetProblemsError(problems)
    return spaces


def _rule(file: SetFile, entry: ExcludeEntry) -> Rule:
    words = {name: [value.word for value in values] for name, values in file.variables.items()}
    if entry.same is not None:
        one, other = entry.same
        return Rule(entry.same, lambda at: words[one][at[one]] == words[other][at[other]])
    bad = {name: {words[name].index(w.strip()) for w in given} for name, given in entry.values.items()}
    return Rule(tuple(bad), lambda at: all(at[name] in positions for name, positions in bad.items()))


def _sample(file: SetFile, lines: Lines, spaces: Sequence[Sequence[Axis]], count: int) -> Sample:
    weights = {
        name: [Fraction(value.weight or 1) for value in values] for name, values in file.variables.items()
    }

    def weigh(axis: Axis) -> list[Fraction] | None:
        if all(len(set(weights[name])) == 1 for name in axis.names):
            return None
        return [
            math.prod((weights[name][at] for name, at in axis.choose(number)), start=Fraction(1))
            for number in range(len(axis))
        ]

    shares = [Fraction(entry.weight or 1) for entry in file.templates]
    key = hashlib.sha256(b"raynest-sample/1 %d" % (file.seed or 0)).digest()
    try:
        return Sample(spaces, shares, weigh, count, key)
    except TooManyStrataError as error:
        message = f"is sample, but the values with weights {error}"
        raise SetProblemsError([lines.problem(["mode"], message)]) from None
