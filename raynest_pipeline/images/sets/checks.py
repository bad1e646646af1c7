"""What can be wrong with a prompt set beyond its structure: all of it is found before anything is drawn."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from raynest_pipeline.images.prompts import (
    MAX_PROMPT,
    Problem,
    free_value,
    prompts_of_row,
    shown,
    text_value,
)
from raynest_pipeline.images.sets.schema import Lines, SetFile, TemplateEntry, ValueEntry
from raynest_pipeline.images.sets.template import (
    Template,
    TemplateError,
    is_variable_name,
    parse_template,
    unknown_variable,
)

PARAMETERS = ("negative_prompt", "size", "steps", "guidance")
TEMPLATE_COLUMN = "template"
"""The name of the template in the manifest; no variable may be called so."""


def template_names(file: SetFile) -> list[str]:
    """The name of each template, its own or its number."""
    return [entry.name or f"t{number}" for number, entry in enumerate(file.templates, start=1)]


def problems_of(file: SetFile, lines: Lines) -> list[Problem]:
    """All mistakes that can be seen without counting combinations, by line."""
    parsed: dict[int, Template] = {}
    found = [*_variables(file, lines), *_templates(file, lines, parsed)]
    # A template that cannot be read may use anything.
    whole = len(parsed) == len(file.templates)
    used = [set(template.fields) for template in parsed.values()] if whole else [set(file.variables)]
    found += [*_unused(file, lines, used), *_rules(file, lines, used)]
    found += [*_choice(file, lines), *parameter_problems(lines, ["parameters"], file.parameters, file)]
    return sorted(found, key=lambda problem: problem.line)


def _variables(file: SetFile, lines: Lines) -> Iterator[Problem]:
    for name, values in file.variables.items():
        path: list[str | int] = ["variables", name]
        if not is_variable_name(name) or name == TEMPLATE_COLUMN:
            reserved = f"; {TEMPLATE_COLUMN!r} is taken" if name == TEMPLATE_COLUMN else ""
            yield lines.problem(path, f"is no name for a variable: up to 40 of a-z, 0-9 and _{reserved}")
        if not values:
            yield lines.problem(path, "has no values")
        often = Counter(value.word for value in values)
        for at, value in enumerate(values):
            yield from (lines.problem([*path, at], wrong) for wrong in _value(file, value))
            if often[value.word] > 1:
                times = f"has the value {shown(value.word)} {often[value.word]} times"
                yield lines.problem([*path, at], times)
                often[value.word] = 1


def _value(file: SetFile, value: ValueEntry) -> Iterator[str]:
    try:
        text_value(value.value)
        free_value(value.word)
    except ValueError as error:
        yield str(error)
    if value.weight is not None and file.mode == "product":
        yield "has a weight, which means nothing in mode product; the other mode is sample"


def _templates(file: SetFile, lines: Lines, parsed: dict[int, Template]) -> Iterator[Problem]:
    names, seen = Counter(template_names(file)), set[str]()
    for at, (entry, name) in enumerate(zip(file.templates, template_names(file), strict=True)):
        path: list[str | int] = ["templates", at]
        try:
            parsed[at] = parse_template(entry.text)
            text_value(entry.text)
        except ValueError as error:
            yield lines.problem(path, str(error))
            if not isinstance(error, TemplateError):
                continue
        else:
            yield from (lines.problem(path, wrong) for wrong in _text(parsed[at], file))
        if entry.text.strip() in seen:
            yield lines.problem(path, "is there twice")
        seen.add(entry.text.strip())
        if names[name] > 1:
            yield lines.problem(path, f"has the name {name!r}, as another template")
            names[name] = 1
        if entry.weight is not None and file.mode == "product":
            yield lines.problem([*path, "weight"], "means nothing in mode product; the other mode is sample")
        yield from parameter_problems(lines, [*path, "parameters"], entry.parameters, file)


def _text(template: Template, file: SetFile) -> Iterator[str]:
    for name in dict.fromkeys(template.fields):
        if name not in file.variables:
            yield unknown_variable(name, file.variables)
    values = [file.variables.get(name) or [ValueEntry(value="?")] for name in template.fields]
    longest = sum(map(len, template.literals)) + sum(max(len(v.value) for v in one) for one in values)
    if longest > MAX_PROMPT:
        yield f"can become {longest:,} characters long; at most {MAX_PROMPT:,} are allowed"
    if not "".join(template.literals).strip() and all(any(not v.word for v in one) for one in values):
        yield "is empty" if not values else "becomes empty when its variables take their empty values"


def _unused(file: SetFile, lines: Lines, used: Sequence[set[str]]) -> Iterator[Problem]:
    for name in file.variables:
        if not any(name in fields for fields in used):
            yield lines.problem(["variables", name], "is used by no template")


def _rules(file: SetFile, lines: Lines, used: Sequence[set[str]]) -> Iterator[Problem]:
    for at, rule in enumerate(file.exclude):
        names = set(rule.same or rule.values)
        unknown = sorted(names - file.variables.keys())
        found = [unknown_variable(name, file.variables) for name in unknown]
        for name in rule.values.keys() & file.variables.keys():
            known = {value.word for value in file.variables[name]}
            wrong = [word for word in rule.values[name] if word.strip() not in known]
            found += [f"{shown(word)} is not a value of {name}" for word in wrong]
            found += [] if rule.values[name] else [f"names no value of {name}"]
        if rule.same and len(names) == 1:
            found.append("compares a variable with itself")
        if not found and not any(names <= fields for fields in used):
            found.append(f"is never of use: no template has {' and '.join(sorted(names))} together")
        yield from (lines.problem(["exclude", at], message) for message in found)


def _choice(file: SetFile, lines: Lines) -> Iterator[Problem]:
    if file.mode == "sample" and file.count is None:
        yield lines.problem(["mode"], "is sample, so `count` must say how many prompts to draw")
    if file.mode == "product" and file.count is not None:
        yield lines.problem(["count"], "belongs to mode sample; `limit` cuts a product off")
    if file.seeds is not None:
        if "seeds_per_prompt" in file.model_fields_set:
            yield lines.problem(["seeds_per_prompt"], "and `seeds` exclude each other")
        if len(set(file.seeds)) < len(file.seeds):
            yield lines.problem(["seeds"], "has a seed twice")


def parameter_problems(
    lines: Lines, path: Sequence[str | int], parameters: Mapping[str, str], file: SetFile
) -> Iterator[Problem]:
    """What is wrong with the parameters of a set or of a template; the rules are those of a row."""
    for name, value in parameters.items():
        if name not in PARAMETERS:
            wrong = f"is not a parameter. Known are {', '.join(PARAMETERS)}"
            yield lines.problem([*path, name], wrong)
            continue
        _, problems = prompts_of_row(1, 1, {"prompt": "any", name: value})
        yield from (lines.problem([*path, name], problem.message) for problem in problems)
        if name == "negative_prompt" and any(f"{{{variable}}}" in value for variable in file.variables):
            yield lines.problem([*path, name], "takes no variables; only templates do")


def merged(file: SetFile, entry: TemplateEntry) -> dict[str, str]:
    """The parameters of a template's prompts: its own, else the set's."""
    return {**file.parameters, **entry.parameters}
