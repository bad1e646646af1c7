"""The rows of prompt files that are text: CSV, JSON lines and plain lines, read as they stream by."""

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TextIO

from raynest_pipeline.images.prompts import COLUMNS, FREE_PREFIX, Problem

Row = tuple[int, dict[str, Any]]
"""The line (or row) of the file that a row starts on, and its cells by column."""
MAX_LINE = 1_000_000
"""Characters in a line: a file without line ends, say one JSON array, is not read whole to find that out."""


class _LongLineError(csv.Error):
    """A line is too long to be one row."""


def _lines_of(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise _LongLineError(f"it has a line of {MAX_LINE:,} characters or more")
        yield line


def column_problem(column: str) -> str | None:
    """Why a column may not be called that; None when it may."""
    if column in COLUMNS or (column.startswith(FREE_PREFIX) and column.isascii() and column.isidentifier()):
        return None
    return (
        f"is not a known column. Known are {', '.join(COLUMNS)}; "
        f"a column of your own must start with {FREE_PREFIX!r} (it is kept in the manifest)"
    )


def header_problems(header: Sequence[str], line: int) -> list[Problem]:
    """What is wrong with the names of the columns, given in the order of the file."""
    problems = []
    for position, column in enumerate(header):
        if column in header[:position]:
            problems.append(Problem(line, repr(column), "appears twice"))
        elif wrong := column_problem(column):
            if {";", "\t"} & set(column):
                wrong += "; is the file separated by something other than commas?"
            problems.append(Problem(line, repr(column[:60]), wrong))
    if "prompt" not in header:
        problems.append(Problem(line, "prompt", "is missing: every prompt file needs it"))
    return problems


def csv_rows(lines: TextIO) -> Iterator[Row | Problem]:
    """The rows of a CSV file with a header; opened with `newline=""`."""
    reader = csv.reader(_lines_of(lines), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not any(cells):
                pass
            elif header is None:
                header = [cell.strip() for cell in cells]
                if problems := header_problems(header, line):
                    yield from problems
                    return
            elif len(cells) != len(header):
                yield Problem(line, "", f"has {len(cells)} cells, the header has {len(header)}")
            else:
                yield line, dict(zip(header, map(str.strip, cells), strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        yield Problem(line, "", f"is not valid CSV: {error}")


def json_rows(lines: TextIO) -> Iterator[Row | Problem]:
    """The rows of a file with a JSON object on each line."""
    for line, text in _numbered(lines):
        if isinstance(text, Problem):
            yield text
            return
        if not text.strip():
            continue
        try:
            values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            column, reason = "", str(error)
            if isinstance(error, json.JSONDecodeError):
                column, reason = str(error.colno), error.msg
            yield Problem(line, column, f"is not valid JSON: {reason}")
            continue
        if not isinstance(values, dict):
            yield Problem(line, "", "is not a JSON object")
            continue
        unknown = [Problem(line, repr(c[:60]), wrong) for c in values if (wrong := column_problem(c))]
        yield from unknown
        if not unknown:
            yield line, values


def _numbered(file: TextIO) -> Iterator[tuple[int, str | Problem]]:
    """The lines with their numbers; a `Problem` in place of one that is too long, and nothing after it."""
    line = 0
    try:
        for line, text in enumerate(_lines_of(file), start=1):
            yield line, text
    except _LongLineError as error:
        yield line + 1, Problem(line + 1, "", f"cannot be a row: {error}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def text_rows(lines: TextIO) -> Iterator[Row | Problem]:
    """The rows of a file with a prompt on each line."""
    for line, text in _numbered(lines):
        if isinstance(text, Problem):
            yield text
        elif text.strip():
            yield line, {"prompt": text.rstrip("\n")}
