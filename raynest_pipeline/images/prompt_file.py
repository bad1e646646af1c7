"""Prompt files of every kind: CSV, JSON lines, plain text, Parquet, and prompt sets in YAML.

The whole file is checked before anything is sent. Both passes stream: a file of any length takes the same
memory. A prompt set is checked by its parts, so that one of a million images is opened at once.
"""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NoReturn, TextIO

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.names import name_problem
from raynest_pipeline.images.prompt_parquet import parquet_rows
from raynest_pipeline.images.prompt_rows import Row, csv_rows, json_rows, text_rows
from raynest_pipeline.images.prompts import Problem, Prompt, prompts_of_row
from raynest_pipeline.images.sets.reading import PromptSet, read_set
from raynest_pipeline.images.sets.schema import MAX_SET_BYTES, SetProblemsError
from raynest_pipeline.images.used_ids import UsedIds

MAX_PROBLEMS = 20
"""Problems listed one by one; the rest are counted."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PromptFile:
    """A prompt file that has been checked from end to end.

    Attributes:
        path: The file.
        images: Images it asks for (`count` included).
        sha256: Of the file's bytes: names the same batch wherever the file lies.
        name: The prompt set's own name, else the file's without its ending.
        combinations: Different prompts that the prompt set could make; None for a file of prompts.
    """

    path: Path
    images: int
    sha256: str
    name: str
    combinations: int | None
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
            for number, row in enumerate(_kind(self.path).rows(raw), start=1):
                problems = [row] if isinstance(row, Problem) else []
                if not isinstance(row, Problem):
                    prompts, problems = prompts_of_row(row[0], number, row[1])
                    yield from prompts
                if problems:
                    _fail(self.path, f"has changed since it was checked: {problems[0]}.")


def open_prompts(path: Path, *, most_problems: int = MAX_PROBLEMS) -> PromptFile:
    """Check a prompt file.

    The format follows the ending: .csv (with a header), .jsonl or .ndjson (an object a line), .txt
    (a prompt a line), .parquet, .yaml or .yml (a prompt set). Text is UTF-8, with or without a byte
    order mark.

    Args:
        path: The file.
        most_problems: How many defects the error lists in full.

    Raises:
        InputError: Lists the defects by file, line and column.
        StorageError: No room for a temporary file with the ids.
    """
    with _opened(path) as raw:
        kind = _kind(path)
        stamp, sha256 = _stamp(raw), _check_bytes(path, raw, text=kind.is_text)
        name, combinations, images, found = path.stem, None, 0, 0
        problems: list[Problem] = []
        if kind.is_set:
            try:
                prompt_set = _read_set(raw)
            except SetProblemsError as error:
                problems, found = error.problems[:most_problems], len(error.problems)
            else:
                name, images = prompt_set.file.name or name, prompt_set.images
                combinations = prompt_set.combinations
        else:
            images, found, problems = _check_rows(kind, raw, most_problems)
    if problems:
        more = f"\n  and {found - len(problems)} more" if found > len(problems) else ""
        listed = "\n".join(f"  {path}, {problem}" for problem in problems)
        _fail(path, f"has {found} problem{'s' * (found > 1)}; nothing has been sent:\n{listed}{more}")
    if not images:
        _fail(path, "contains no prompts.")
    return PromptFile(path, images, sha256, name, combinations, stamp)


def _check_rows(kind: "_Kind", raw: BinaryIO, most: int) -> tuple[int, int, list[Problem]]:
    """Images that the rows ask for, the number of defects, and the first `most` of them."""
    images = found = 0
    problems: list[Problem] = []
    with UsedIds(kind.unit) as used:
        for number, row in enumerate(kind.rows(raw), start=1):
            if isinstance(row, Problem):
                wrong = [row]
            else:
                prompts, wrong = prompts_of_row(row[0], number, row[1])
                # A row that is wrong elsewhere still takes its id, so that one run tells everything.
                ids = [prompt.id for prompt in prompts] or [str(row[1].get("id") or "")]
                for prompt_id in ids:
                    if prompts or name_problem(prompt_id) is None:
                        used.add(prompt_id, row[0])
                images += len(prompts)
            found += len(wrong)
            problems += wrong[: most - len(problems)]
        clashing, clashes = used.clashes(most)
    listed = sorted([*problems, *clashes], key=lambda problem: problem.line)[:most]
    return images, found + clashing, [replace(p, unit=kind.unit) for p in listed]


def _read_set(raw: BinaryIO) -> PromptSet:
    raw.seek(0)
    # A little more than a set may have (UTF-8: up to four bytes a character), however long the file is.
    return read_set(raw.read(4 * MAX_SET_BYTES + 4).decode("utf-8-sig", "ignore"))


def _set_rows(raw: BinaryIO) -> Iterator[Row | Problem]:
    try:
        yield from _read_set(raw).rows()
    except SetProblemsError as error:
        yield from error.problems


def _binary_rows(raw: BinaryIO) -> Iterator[Row | Problem]:
    raw.seek(0)
    return parquet_rows(raw)


@dataclass(frozen=True)
class _Kind:
    """How a kind of file is read.

    Attributes:
        rows: From the file, wherever it stands.
        unit: What its rows are counted in.
    """

    rows: Callable[[BinaryIO], Iterator[Row | Problem]]
    unit: str = "line"
    is_text: bool = True
    is_set: bool = False


def _lines(
    reader: Callable[[TextIO], Iterator[Row | Problem]], newline: str | None = None
) -> Callable[[BinaryIO], Iterator[Row | Problem]]:
    """The rows of a file that is read line by line."""

    def rows(raw: BinaryIO) -> Iterator[Row | Problem]:
        raw.seek(0)
        with open(raw.fileno(), encoding="utf-8-sig", newline=newline, closefd=False) as lines:
            yield from reader(lines)

    return rows


_KINDS = {
    ".csv": _Kind(_lines(csv_rows, newline="")),
    ".jsonl": _Kind(_lines(json_rows)),
    ".ndjson": _Kind(_lines(json_rows)),
    ".txt": _Kind(_lines(text_rows)),
    ".parquet": _Kind(_binary_rows, unit="row", is_text=False),
    ".yaml": _Kind(_set_rows, is_set=True),
    ".yml": _Kind(_set_rows, is_set=True),
}
ENDINGS = tuple(_KINDS)
"""Of prompt files, in lower case."""


def _kind(path: Path) -> _Kind:
    return _KINDS[path.suffix.lower()]


def _fail(path: Path, what: str, fix: str = "Correct the file and run again.") -> NoReturn:
    raise InputError(f"The prompt file {path} {what}", fix=fix)


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() not in _KINDS:
        known = ", ".join(_KINDS)
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


def _check_bytes(path: Path, raw: BinaryIO, *, text: bool) -> str:
    """The SHA-256 of the file; of a text, once every byte of it is known to be UTF-8."""
    if not text:
        whole = hashlib.sha256()
        while chunk := raw.read(CHUNK_BYTES):
            whole.update(chunk)
        return whole.hexdigest()
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
