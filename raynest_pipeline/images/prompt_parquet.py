"""The rows of a Parquet prompt file, streamed: a row group of any size is never read whole.

The columns and their rules are those of the other formats. Their types are checked once, before the first
row; the values row by row.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from raynest_pipeline.images.prompt_rows import Row, header_problems
from raynest_pipeline.images.prompts import FREE_PREFIX, Problem

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1000
BUFFER_BYTES = 1 << 18
"""Read at once of a column of a row group; pyarrow reads it whole without this."""


def parquet_rows(raw: BinaryIO) -> Iterator[Row | Problem]:
    """The rows of a Parquet file, numbered from 1. A file that is damaged ends in a `Problem`."""
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        file = pyarrow.parquet.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False)
        schema = file.schema_arrow
        if problems := [*header_problems(schema.names, 0), *_type_problems(schema)]:
            yield from (_with_hint(problem) for problem in problems)
            return
        repair = {field.name: fix for field in schema if (fix := _repair(field.type))}
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist():
                row += 1
                for column, fix in repair.items():
                    values[column] = fix(values[column])
                yield row, values
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"after row {row}: " if row else ""
        yield Problem(0, "", f"is not a whole Parquet file; {where}{str(error).strip().splitlines()[0]}")


def _type_problems(schema: "pyarrow.Schema") -> Iterator[Problem]:
    for field in schema:
        allowed: _Check = (
            _json_like if field.name.startswith(FREE_PREFIX) else _KINDS.get(field.name, _is_scalar)
        )
        if not allowed(field.type):
            yield Problem(0, field.name, f"has the type {field.type}; {_EXPECTED[allowed]}")


def _plain(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """The type of the values, for a column that is dictionary-encoded."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    kind = _plain(kind)
    view = getattr(types, "is_string_view", lambda _: False)
    return types.is_string(kind) or types.is_large_string(kind) or view(kind) or types.is_null(kind)


def _is_scalar(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    plain = _plain(kind)
    return _is_text(kind) or types.is_integer(plain) or types.is_float32(plain) or types.is_float64(plain)


def _json_like(kind: "pyarrow.DataType") -> bool:
    """Whether JSON, and so the manifest, can hold the values as they are."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _json_like(kind.value_type)
    if types.is_struct(kind):
        return all(_json_like(field.type) for field in kind)
    return _is_scalar(kind) or types.is_boolean(kind)


_Check = Callable[["pyarrow.DataType"], bool]
_KINDS: dict[str, _Check] = {"prompt": _is_text, "negative_prompt": _is_text}
_EXPECTED: dict[_Check, str] = {
    _is_text: "it must be text (string)",
    _is_scalar: "it must be one number or text (int64, double, string)",
    _json_like: "cast it to what JSON can hold: text, a number, true or false, or lists and structs of these",
}


def _repair(kind: "pyarrow.DataType") -> Callable[[Any], Any] | None:
    """What makes 7.1 of a 32-bit column 7.1 again, not 7.099999904632568: another number, another image."""
    from pyarrow import types

    if not types.is_float32(_plain(kind)):
        return None
    return lambda value: None if value is None else float(f"{value:.7g}")


def _with_hint(problem: Problem) -> Problem:
    if problem.column.startswith("'__index_level_"):
        hint = "is the index of a data frame; write the file without it (in pandas: index=False)"
        return Problem(problem.line, problem.column, hint)
    return problem
