"""The YAML of a prompt set, as pydantic models; mistakes are named by line and field.

Every scalar is read as the text that it is: `no`, `on`, 007 and 1e3 are values like any other word, not
what YAML 1.1 makes of them. Numbers are recognised where a number is wanted.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raynest_pipeline.images.prompts import MAX_COUNT, MAX_SEED, Problem, shown

MAX_IMAGES = 1_000_000_000
MAX_SET_BYTES = 1 << 20
"""A set is for a person to write; lists that long belong in a CSV or Parquet file."""

QUOTES = "a text that begins with { or holds ': ' must be in quotes, and in a [list] any with { in it"

Weight = Annotated[Decimal, Field(gt=0, le=1_000_000, decimal_places=3)]


_SAME = re.compile(r"(\w+)\s*==\s*(\w+)")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TemplateEntry(_Part):
    """A template; in the file a text, or a mapping with `text`."""

    text: str
    name: str | None = Field(None, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=32)
    """Goes into the ids; t1, t2, ... without."""
    weight: Weight | None = None
    parameters: dict[str, str] = {}
    """Stronger than the set's."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        return {"text": given} if isinstance(given, str) else given


class ValueEntry(_Part):
    """A value of a variable; in the file a text, or a mapping with `value`."""

    value: str
    weight: Weight | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        return {"value": given} if isinstance(given, str) else given

    @property
    def word(self) -> str:
        """The value without the white space around it: what ids, rules and the manifest show."""
        return self.value.strip()


class ExcludeEntry(_Part):
    """Combinations that are left out; in the file `a == b`, or values by variable that meet in one prompt."""

    same: tuple[str, str] | None = None
    values: dict[str, list[str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_rule(cls, given: Any) -> Any:
        if isinstance(given, str):
            rule = _SAME.fullmatch(given.strip())
            if rule is None:
                raise ValueError("must be `variable == variable`, or values by variable")
            return {"same": rule.groups()}
        if isinstance(given, dict) and given:
            return {"values": {name: [v] if isinstance(v, str) else v for name, v in given.items()}}
        raise ValueError("must be `variable == variable`, or values by variable")


class SetFile(_Part):
    """A prompt set as it stands in its file."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)
    templates: list[TemplateEntry] = Field(min_length=1)
    variables: dict[str, list[ValueEntry]] = {}
    mode: Literal["product", "sample"] = "product"
    count: int | None = Field(None, ge=1, le=MAX_IMAGES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    limit: int | None = Field(None, ge=1, le=MAX_IMAGES)
    exclude: list[ExcludeEntry] = []
    parameters: dict[str, str] = {}
    seeds_per_prompt: int = Field(1, ge=1, le=MAX_COUNT)
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] | None = Field(
        None, min_length=1, max_length=MAX_COUNT
    )


class SetProblemsError(Exception):
    """A prompt set has mistakes."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = list(problems)


class Lines:
    """Finds the line that a part of the YAML file stands on."""

    def __init__(self, root: yaml.Node) -> None:
        self._root = root

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        """A problem of the part at `path` (keys and positions from the top)."""
        field = ".".join(str(step) for step in path if isinstance(step, str))
        return Problem(self.line(path), field, message, part="field")

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the part, or of the innermost part above it that is there."""
        node, line = self._root, self._root.start_mark.line + 1
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            node, line = found
        return line


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item, item.start_mark.line + 1
    return None


def parse_set(text: str) -> tuple[SetFile, Lines]:
    """The set in a YAML text, its structure checked.

    Raises:
        SetProblemsError: It is not YAML, or a key is unknown, missing or of the wrong kind.
    """
    if len(text) > MAX_SET_BYTES:
        what = f"has more than {MAX_SET_BYTES:,} characters, too many for a prompt set. Use CSV or Parquet"
        raise SetProblemsError([Problem(0, "", what)])
    root, document = _read_yaml(text)
    lines = Lines(root)
    try:
        return SetFile.model_validate(document), lines
    except ValidationError as error:
        raise SetProblemsError([_explained(lines, detail) for detail in error.errors()]) from None


def _read_yaml(text: str) -> tuple[yaml.Node, Any]:
    """The file as nodes, which know their lines, and as lists, mappings and texts."""
    try:
        loader = yaml.BaseLoader(text)
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise SetProblemsError([Problem(1, "", "must be a mapping whose first key is `templates`")])
            if problems := list(_misleading(root)):
                raise SetProblemsError(problems)
            return root, loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise SetProblemsError([_no_yaml(error, text)]) from None
    except RecursionError:
        raise SetProblemsError([Problem(1, "", "is not a prompt set: it is nested too deeply")]) from None


def _misleading(root: yaml.Node) -> Iterator[Problem]:
    """Keys that stand twice in one mapping (YAML silently takes the last), and aliases, which can explode."""
    waiting, met = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [value for _, value in node.value]
            keys: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in keys:
                    yield Problem(key.start_mark.line + 1, str(key.value), "appears twice", part="field")
                keys.add(str(key.value))
        for child in children:
            if id(child) in met:
                yield Problem(node.start_mark.line + 1, "", "uses a YAML alias (*); write the values out")
                continue
            met.add(id(child))
            waiting.append(child)


def _no_yaml(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        hint = f"; {QUOTES}" if "{" in "".join(text.splitlines()[mark.line : mark.line + 1]) else ""
        return Problem(mark.line + 1, str(mark.column + 1), f"is not valid YAML: {error.problem}{hint}")
    return Problem(0, "", f"is not valid YAML: {str(error).splitlines()[0]}")


def _explained(lines: Lines, detail: Any) -> Problem:
    """A pydantic error in the words of this project."""
    path, kind, given = detail["loc"], detail["type"], detail["input"]
    told = {
        "missing": f"is missing; {QUOTES}" if len(path) > 1 else "is missing",
        "too_short": "is empty",
        "extra_forbidden": _unknown_key(path),
        "model_type": "must be a text, or a mapping with `text` (a template) or `value` (a value)",
        "string_type": f"must be text or a number, is {shown(given)}",
        "list_type": f"must be a list, is {shown(given)}",
        "dict_type": f"must be a mapping, is {shown(given)}",
        "string_pattern_mismatch": f"must be letters, digits and hyphens, is {shown(given)}",
    }
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    message = told.get(kind) or f"{message[0].lower()}{message[1:]}, is {shown(given)}"
    return lines.problem(path, message)


def _unknown_key(path: Sequence[str | int]) -> str:
    kinds: dict[str, type[BaseModel]] = {"templates": TemplateEntry, "variables": ValueEntry}
    known = list((SetFile if len(path) == 1 else kinds.get(str(path[0]), SetFile)).model_fields)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f". Known are {', '.join(known)}"
    return f"is not a key that is known here{hint}"
