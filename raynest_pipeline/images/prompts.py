"""One prompt, and the checks that turn a row of a file into one.

A row that has a problem yields `Problem`s instead of a `Prompt`; prompt_file.py collects them.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.names import json_list, name_problem

COLUMNS = ("id", "prompt", "negative_prompt", "seed", "size", "steps", "guidance", "count")
"""The columns with a meaning. Only `prompt` is required."""
FREE_PREFIX = "x_"
"""Columns with this prefix are free: kept in the manifest, never sent."""
MAX_PROMPT = 4000
"""Characters in a prompt, a negative prompt, or a free column."""
MAX_SEED = 2**63 - 1
MAX_COUNT = 10_000

_INTEGER = re.compile(r"(-?[0-9]{1,20})(\.0*)?")
# What no text encoder has a use for; a tab or a line break inside a quoted CSV cell is plain space.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One image to make.

    Attributes:
        id: Unique in its batch and safe as a file name (see `names.name_problem`).
        prompt: What to draw, 1 to 4,000 characters.
        seed: 0 to 2**63 - 1. When the row has none it is `derived_seed(prompt, id)`.
        negative_prompt: What to avoid; may be empty.
        size: Width and height in pixels, a multiple of 8; None: the settings', else the endpoint's own.
        steps: Denoising steps; None likewise.
        guidance: Classifier-free guidance scale; None likewise.
        extra: The free columns, JSON values by column name.
    """

    id: str
    prompt: str
    seed: int
    negative_prompt: str = ""
    size: int | None = None
    steps: int | None = None
    guidance: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A defect of a prompt file: where, and what.

    Attributes:
        line: From 1; 0 where the defect is the whole file's.
        column: Or the field of a prompt set; may be "".
        message: What is wrong, to be read after the place.
        unit: What `line` counts: lines, or the rows of a file that has no lines.
        part: What `column` is: a column, or a field.
    """

    line: int
    column: str
    message: str
    unit: str = "line"
    part: str = "column"

    def __str__(self) -> str:
        where = [f"{self.unit} {self.line}"] if self.line else []
        where += [f"{self.part} {self.column}"] if self.column else []
        return f"{', '.join(where)}: {self.message}" if where else self.message


def derived_seed(prompt: str, prompt_id: str) -> int:
    """The seed of a prompt that names none, so that a rerun makes the same image.

    It is the first four bytes (big-endian) of SHA-256(prompt, a NUL byte, id), shifted right by one
    bit: 31 bits, which every generator and every JSON reader takes.
    """
    digest = hashlib.sha256(f"{prompt}\0{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def make_prompt(prompt: str, **values: Any) -> Prompt:
    """One prompt from code or a command line, checked as a file's row is.

    Args:
        prompt: What to draw.
        values: Any other column except `count`; None means absent.

    Raises:
        InputError: Names each field and what is wrong with it.
    """
    prompts, problems = prompts_of_row(1, 1, {"prompt": prompt} | values)
    if problems:
        raise InputError(
            "The prompt is not valid:\n" + "\n".join(f"  {p.column}: {p.message}" for p in problems)
        )
    return prompts[0]


def prompts_of_row(line: int, row: int, values: Mapping[str, Any]) -> tuple[list[Prompt], list[Problem]]:
    """The prompts of one row (`count` of them), or what is wrong with it.

    Args:
        line: Line (or row) of the file, for messages.
        row: Number of the row, from 1: part of the id of a row that has none.
        values: Cells by column: text, or JSON values. None and "" mean absent.
    """
    taken, problems = _checked(line, values)
    if "prompt" not in taken and not any(problem.column == "prompt" for problem in problems):
        problems.insert(0, Problem(line, "prompt", "is empty"))
    if problems:
        return [], problems

    text, seed, name = taken["prompt"], taken.get("seed"), taken.get("id")
    negative, count = taken.get("negative_prompt", ""), taken.get("count", 1)
    size, steps, guidance = taken.get("size"), taken.get("steps"), taken.get("guidance")
    extra: dict[str, Any] = {}
    if len(taken) > 1:
        extra = {column: value for column, value in taken.items() if column.startswith(FREE_PREFIX)}
    if name is None:
        content = json_list((text, negative, seed, size, steps, guidance), ", ")
        name = f"{row:06d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    prompts: list[Prompt] = []
    for copy in range(count):
        own = name if count == 1 else f"{name}-{copy + 1}"
        # A given id has been checked, and a derived one is always good.
        if count > 1 and (wrong := name_problem(own)):
            return [], [Problem(line, "id", f"{shown(own)}, made by count, {wrong}")]
        own_seed = derived_seed(text, own) if seed is None else seed + copy
        if own_seed > MAX_SEED:
            return [], [Problem(line, "seed", f"plus count is above {MAX_SEED}")]
        prompts.append(Prompt(own, text, own_seed, negative, size, steps, guidance, extra))
    return prompts, []


def _checked(line: int, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """What is given, converted, by column; and what is wrong with the rest."""
    taken: dict[str, Any] = {}
    problems: list[Problem] = []
    for column, value in values.items():
        if value is None or value == "":
            continue
        check = _CHECKS.get(column) or (free_value if column.startswith(FREE_PREFIX) else None)
        if check is not None:
            try:
                taken[column] = check(value)
            except ValueError as error:
                problems.append(Problem(line, column, str(error)))
    return taken, problems


def shown(value: object) -> str:
    """The value for a message, never a 100 kB one."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def text_value(value: object) -> str:
    """The text without the white space around it.

    Raises:
        ValueError: It is too long, or holds what is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be text, is {shown(value)}")
    if len(value) > MAX_PROMPT:
        raise ValueError(f"has {len(value):,} characters; at most {MAX_PROMPT:,} are allowed")
    if bad := _CONTROL.search(value):
        raise ValueError(f"contains the control character {bad.group()!r}")
    _check_characters(value)
    return value.strip()


def _check_characters(text: str) -> None:
    """Raise ValueError for what JSON can spell and UTF-8, and so Parquet and an endpoint, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair, which is not a character") from None


def _prompt_text(value: object) -> str:
    text = text_value(value)
    if not text:
        raise ValueError("is empty")
    return text


def _id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"must be text, is {shown(value)}")
    if wrong := name_problem(value):
        raise ValueError(f"{shown(value)} {wrong}")
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        number: int | None = None
        # Spreadsheets and data frames write whole numbers as 42.0 when the column has gaps.
        if isinstance(value, str) and (match := _INTEGER.fullmatch(value.strip())):
            number = int(match[1])
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None:
            raise ValueError(f"must be a whole number, is {shown(value)}")
        if not low <= number <= high:
            raise ValueError(f"must be {low} to {high}, is {shown(value)}")
        return number

    return check


_pixels = _whole(8, 4096)


def _size(value: object) -> int:
    size = _pixels(value)
    if size % 8:
        raise ValueError(f"must be a multiple of 8, is {size}; the nearest is {round(size / 8) * 8}")
    return size


def _guidance(value: object) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"must be a number, is {shown(value)}")
    if not math.isfinite(number) or not 0 <= number <= 100:
        raise ValueError(f"must be 0 to 100, is {shown(value)}")
    return number


def free_value(value: object) -> object:
    """The value of a free column, as it is.

    Raises:
        ValueError: JSON cannot hold it, or it is too long.
    """
    if isinstance(value, str) and len(value) <= MAX_PROMPT // 12 - 1:
        # Short enough even where JSON needs 12 characters for one.
        _check_characters(value)
        return value
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("contains a number that JSON cannot hold") from None
    if len(text) > MAX_PROMPT:
        raise ValueError(f"has {len(text):,} characters; at most {MAX_PROMPT:,} are allowed")
    if not isinstance(value, (int, float)):
        _check_characters(json.dumps(value, ensure_ascii=False))
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _id,
    "prompt": _prompt_text,
    "negative_prompt": text_value,
    "seed": _whole(0, MAX_SEED),
    "size": _size,
    "steps": _whole(1, 1000),
    "guidance": _guidance,
    "count": _whole(1, MAX_COUNT),
}
