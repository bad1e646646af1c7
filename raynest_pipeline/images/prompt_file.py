"""Prompt files: CSV, JSONL and plain text. The whole file is checked before anything is sent.

Both passes stream: a file of any length takes the same memory (ids are remembered in a temporary
SQLite file, not in the process).
"""

import codecs
import csv
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from raynest_pipeline.errors import InputError, StorageError
from raynest_pipeline.images.names import MAX_NAME
from raynest_pipeline.images.prompts import COLUMNS, FREE_PREFIX, Problem, Prompt, prompts_of_row

MAX_PROBLEMS = 20
"""Problems listed one by one; the rest are counted."""
CHUNK_BYTES = 1 << 20

Row = tuple[int, dict[str, Any]]
"""The line a row starts on, and its cells by column."""


@dataclass(frozen=True)
class PromptFile:
    """A prompt file that has been checked from end to end.

    Attributes:
        path: The file.
        images: Images it asks for (`count` included).
        sha256: Of the file's bytes: names the same batch wherever the file lies.
    """

    path: Path
    images: int
    sha256: str
    _stamp: tuple[int, int]

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in order, read anew from the file.

        Raises:
            InputError: The file has changed since it was checked.
        """
        with _opened(self.path) as raw:
            if _stamp(raw) != self._stamp:
                _fail(self.path, "has changed since it was checked.", "Start the batch again.")
            for number, row in enumerate(_rows(self.path, raw), start=1):
                problems = [row] if isinstance(row, Problem) else []
                if not isinstance(row, Problem):
                    prompts, problems = prompts_of_row(row[0], number, row[1])
                    yield from prompts
                if problems:
                    _fail(self.path, f"has changed since it was checked: {problems[0]}.")


def open_prompts(path: Path) -> PromptFile:
    """Check a prompt file.

    The format follows the ending: .csv (with a header), .jsonl or .ndjson (an object a line), .txt
    (a prompt a line). UTF-8, with or without a byte order mark.

    Raises:
        InputError: Lists every defect by file, line and column; the first 20 in full.
    """
    with _opened(path) as raw:
        stamp, sha256 = _stamp(raw), _check_encoding(path, raw)
        problems: list[Problem] = []
        images = found = 0
        seen = _Seen()
        for number, row in enumerate(_rows(path, raw), start=1):
            if isinstance(row, Problem):
                wrong = [row]
            else:
                prompts, wrong = prompts_of_row(row[0], number, row[1])
                # A row that is wrong elsewhere still takes its id, so that one run tells everything.
                ids = [prompt.id for prompt in prompts] or [str(row[1].get("id") or "")]
                wrong += [clash for name in ids if name and (clash := seen.clash(name, row[0]))]
                images += len(prompts)
            found += len(wrong)
            problems += wrong[: MAX_PROBLEMS - len(problems)]
    if problems:
        more = f"\n  and {found - len(problems)} more" if found > len(problems) else ""
        listed = "\n".join(f"  {path}, {problem}" for problem in problems)
        _fail(path, f"has {found} problem{'s' * (found > 1)}; nothing has been sent:\n{listed}{more}")
    if not images:
        _fail(path, "contains no prompts.")
    return PromptFile(path, images, sha256, stamp)


class _Seen:
    """Remembers ids on disk. File systems of macOS and Windows ignore case, so ids do, too."""

    def __init__(self) -> None:
        self._ids = sqlite3.connect("")
        self._ids.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")

    def clash(self, prompt_id: str, line: int) -> Problem | None:
        """A problem if the id has been seen before; else remember it."""
        folded = prompt_id.lower().encode(errors="surrogatepass")
        try:
            added = self._ids.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (folded, line)).rowcount
            if added:
                return None
            (first,) = self._ids.execute("SELECT line FROM ids WHERE id = ?", (folded,)).fetchone()
        except sqlite3.Error as error:
            raise StorageError("Prompt ids cannot be kept in a temporary file.", why=str(error)) from None
        what = f"{prompt_id[:MAX_NAME]!r} is already used on line {first} (upper or lower case is the same)"
        return Problem(line, "id", what)


def _fail(path: Path, what: str, fix: str = "Correct the file and run again.") -> NoReturn:
    raise InputError(f"The prompt file {path} {what}", fix=fix)


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() not in _READERS:
        known = ", ".join(_READERS)
        _fail(path, f"has the ending {path.suffix!r}; known are {known}.", "Rename or convert it.")
    try:
        if not path.exists():
            _fail(path, "does not exist.", "Check the path; it is relative to the current directory.")
        if not path.is_file():
            _fail(path, "is not a regular file.")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(f"The prompt file {path} cannot be read.", why=str(error)) from None


def _stamp(raw: BinaryIO) -> tuple[int, int]:
    status = os.fstat(raw.fileno())
    return status.st_size, status.st_mtime_ns


def _check_encoding(path: Path, raw: BinaryIO) -> str:
    """The SHA-256 of the file, once every byte of it is known to be UTF-8."""
    digest, decode = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    while True:
        chunk = raw.read(CHUNK_BYTES)
        digest.update(chunk)
        if offset == 0 and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            _fail(path, "is UTF-16, as spreadsheets write it.", "Save it as UTF-8 (in Excel: CSV UTF-8).")
        pending = len(decode.getstate()[0])
        try:
            line += decode.decode(chunk, final=not chunk).count("\n")
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            line += error.object[: error.start].count(b"\n")
            byte = f"byte {at} is 0x{error.object[error.start]:02x}"
            _fail(path, f"is not UTF-8: line {line}, {byte} ({error.reason}).", "Save it as UTF-8.")
        offset += len(chunk)
        if not chunk:
            return digest.hexdigest()


def _rows(path: Path, raw: BinaryIO) -> Iterator[Row | Problem]:
    raw.seek(0)
    newline = "" if path.suffix.lower() == ".csv" else None
    with open(raw.fileno(), encoding="utf-8-sig", newline=newline, closefd=False) as lines:
        yield from _READERS[path.suffix.lower()](lines)


def _column_problem(column: str) -> str | None:
    if column in COLUMNS or (column.startswith(FREE_PREFIX) and column.isascii() and column.isidentifier()):
        return None
    return (
        f"is not a known column. Known are {', '.join(COLUMNS)}; "
        f"a column of your own must start with {FREE_PREFIX!r} (it is kept in the manifest)"
    )


def _header_problems(header: list[str], line: int) -> list[Problem]:
    problems = []
    for position, column in enumerate(header):
        if column in header[:position]:
            problems.append(Problem(line, repr(column), "appears twice in the header"))
        elif wrong := _column_problem(column):
            if {";", "\t"} & set(column):
                wrong += "; is the file separated by something other than commas?"
            problems.append(Problem(line, repr(column[:60]), wrong))
    if "prompt" not in header:
        problems.append(Problem(line, "prompt", "is missing: the header must name it"))
    return problems


def _csv_rows(lines: TextIO) -> Iterator[Row | Problem]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not any(cells):
                pass
            elif header is None:
                header = [cell.strip() for cell in cells]
                if problems := _header_problems(header, line):
                    yield from problems
                    return
            elif len(cells) != len(header):
                yield Problem(line, "", f"has {len(cells)} cells, the header has {len(header)}")
            else:
                yield line, dict(zip(header, (cell.strip() for cell in cells), strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        yield Problem(line, "", f"is not valid CSV: {error}")


def _json_rows(lines: TextIO) -> Iterator[Row | Problem]:
    for line, text in enumerate(lines, start=1):
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
        unknown = [Problem(line, repr(c[:60]), wrong) for c in values if (wrong := _column_problem(c))]
        yield from unknown
        if not unknown:
            yield line, values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _text_rows(lines: TextIO) -> Iterator[Row | Problem]:
    for line, text in enumerate(lines, start=1):
        if text.strip():
            yield line, {"prompt": text.rstrip("\n")}


_READERS: dict[str, Callable[[TextIO], Iterator[Row | Problem]]] = {
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _text_rows,
}
