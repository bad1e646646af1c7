import datetime as dt
import decimal
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError
from raynest_pipeline.images.batch import batch_id_for, batch_prompts, run_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.images.prompt_parquet import BATCH_ROWS, parquet_rows
from raynest_pipeline.images.prompts import Prompt, derived_seed
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch


def write(folder: Path, columns: dict[str, Any], name: str = "p.parquet", **options: Any) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, folder / name, **options)
    return folder / name


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_prompts(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_column(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "id": ["cat", None],
            "prompt": ["a cat, sitting", "a dog"],
            "negative_prompt": ["blur", None],
            "seed": [7, None],
            "size": [64.0, None],
            "steps": pa.array([20, None], pa.int8()),
            "guidance": [7.5, None],
            "count": [2, None],
            "x_tag": ["pets", None],
            "x_deep": [{"a": [1, 2]}, None],
        },
    )
    file = open_prompts(path)
    one, two, dog = file
    assert len(file) == 3
    extra = {"x_tag": "pets", "x_deep": {"a": [1, 2]}}
    assert one == Prompt("cat-1", "a cat, sitting", 7, "blur", 64, 20, 7.5, extra)
    assert (two.id, two.seed) == ("cat-2", 8)
    assert dog.id.startswith("000002-") and dog.seed == derived_seed("a dog", dog.id)
    assert (dog.size, dog.steps, dog.guidance, dog.extra) == (None, None, None, {})


def test_the_same_rows_as_csv_are_the_same_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,guidance,count\na cat,7.1,3\na dog,,1\n")
    columns = {
        "prompt": pa.array(["a cat", "a dog"]).dictionary_encode(),
        "guidance": pa.array([7.1, None], pa.float32()),
        "count": [3, 1],
    }
    assert list(open_prompts(write(tmp_path, columns))) == list(open_prompts(tmp_path / "p.csv"))


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"id": "../x"}, "id", "'/'"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": None}, "prompt", "is empty"),
        ({"prompt": "x" * 4001}, "prompt", "4,001 characters"),
        ({"seed": -1}, "seed", "0 to"),
        ({"size": 63}, "size", "multiple of 8, is 63; the nearest is 64"),
        ({"steps": 1.5}, "steps", "whole number"),
        ({"guidance": float("nan")}, "guidance", "0 to 100"),
        ({"x_note": float("inf")}, "x_note", "JSON cannot hold"),
        ({"id": "fine"}, "id", "'fine' is already used on row 1"),
    ],
)
def test_a_bad_value_is_named_by_row_and_column(
    tmp_path: Path, row: dict[str, Any], column: str, reason: str
) -> None:
    fine: dict[str, Any] = {"id": "fine", "prompt": "p"}
    rows = [fine | dict.fromkeys(row.keys() - fine.keys()), {"id": "second", "prompt": "q"} | row]
    message = complaint(write(tmp_path, pa.Table.from_pylist(rows)))
    assert f"row 2, column {column}: " in message and reason in message
    assert ", line " not in message


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("prompt", pa.array([5]), "has the type int64; it must be text"),
        ("prompt", pa.array([b"x"]), "has the type binary; it must be text"),
        ("negative_prompt", pa.array([["a"]]), "has the type list<"),
        ("seed", pa.array([[1]]), "it must be one number or text"),
        ("seed", pa.array([{"a": 1}]), "has the type struct<a: int64>"),
        ("seed", pa.array([True]), "has the type bool"),
        ("guidance", pa.array([decimal.Decimal("7.5")]), "has the type decimal128(2, 1)"),
        ("id", pa.array([dt.date(2026, 1, 1)]), "has the type date32[day]"),
        ("x_when", pa.array([dt.datetime(2026, 1, 1)]), "cast it to what JSON can hold"),
        ("x_deep", pa.array([[{"a": b"x"}]]), "cast it to what JSON can hold"),
        ("x_map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "cast it to what JSON can hold"),
    ],
)
def test_a_column_of_an_odd_type_is_told_once(
    tmp_path: Path, column: str, values: pa.Array, reason: str
) -> None:
    columns = {"prompt": pa.array(["a cat"])} | {column: values}
    message = complaint(write(tmp_path, columns))
    assert f"column {column}: " in message and reason in message
    assert "has 1 problem;" in message


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": ["a"], "colour": ["red"]}, "column 'colour': is not a known column"),
        ({"text": ["a"]}, "column prompt: is missing"),
        ({"prompt": ["a"], "__index_level_0__": [3]}, "index=False"),
        (pa.table([["a"], ["b"]], names=["prompt", "prompt"]), "'prompt': appears twice"),
    ],
)
def test_a_bad_schema_is_explained(tmp_path: Path, columns: Any, reason: str) -> None:
    assert reason in complaint(write(tmp_path, columns))


def test_an_empty_file_and_nulls_only(tmp_path: Path) -> None:
    assert "contains no prompts" in complaint(write(tmp_path, {"prompt": pa.array([], pa.string())}))
    assert "row 1, column prompt: is empty" in complaint(write(tmp_path, {"prompt": pa.array([None])}))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,prompt\na,b\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    assert "is not a whole Parquet file" in complaint(tmp_path / "p.parquet")


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": [f"a cat {n}" for n in range(1000)]})
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a whole Parquet file" in complaint(path)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_give_prompts_or_an_input_error(tmp_path: Path, at: int, noise: bytes) -> None:
    path = write(tmp_path, {"id": ["a", "b"], "prompt": ["a cat", "a dog"]}, name="d.parquet")
    whole = bytearray(path.read_bytes())
    # The footer's own length is left whole: it says how much memory the reader asks for.
    at %= len(whole) - 12
    whole[at : at + len(noise)] = noise
    path.write_bytes(whole)
    try:
        assert len(list(open_prompts(path))) >= 1
    except InputError as error:
        assert error.what


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_row_groups_and_batches_are_all_read_in_order(tmp_path: Path, compression: str) -> None:
    count = 2 * BATCH_ROWS + 7
    columns = {"id": [f"n{n}" for n in range(count)], "prompt": [f"cat {n}" for n in range(count)]}
    path = write(tmp_path, columns, row_group_size=BATCH_ROWS - 1, compression=compression)
    file = open_prompts(path)
    assert len(file) == count
    assert [prompt.id for prompt in file] == columns["id"]


def read_peak(path: Path) -> tuple[int, int]:
    """Bytes at the most while the rows stream by: of Python, and of Arrow."""
    pool = pa.default_memory_pool()
    before = most = pool.bytes_allocated()
    tracemalloc.start()
    try:
        with path.open("rb") as raw:
            for _ in parquet_rows(raw):
                most = max(most, pool.bytes_allocated())
        return tracemalloc.get_traced_memory()[1], most - before
    finally:
        tracemalloc.stop()


def test_one_huge_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """Text that does not compress, all in one row group: 20 times the rows, the same memory."""

    def rows(count: int) -> pa.Table:
        return pa.table({"prompt": [f"{n * 2654435761 % 2**32:x}" * 12 for n in range(count)]})

    small = write(tmp_path, rows(5_000), "s.parquet", row_group_size=10**9, use_dictionary=False)
    large = write(tmp_path, rows(100_000), "l.parquet", row_group_size=10**9, use_dictionary=False)
    assert pq.ParquetFile(large).num_row_groups == 1
    (python_few, arrow_few), (python_many, arrow_many) = read_peak(small), read_peak(large)
    assert python_many - python_few < 1_000_000
    assert arrow_many - arrow_few < 4_000_000 < rows(100_000).nbytes


def test_a_batch_of_a_parquet_file_and_again_from_its_own_copy(tmp_path: Path, endpoint: Any) -> None:
    source = write(
        tmp_path, {"id": ["cat", "dog"], "prompt": ["a cat", "a dog"], "count": [2, 1]}, "in.PARQUET"
    )
    checked = open_prompts(source)
    folder = BatchFolder(tmp_path / "out", batch_id_for(checked))
    first = run_batch(folder, checked, endpoint.target, Batch())
    assert first.result.made == 3
    assert sorted(record.id for record in latest_records(folder)) == ["cat-1", "cat-2", "dog"]
    source.unlink()
    own = batch_prompts(folder, None, tmp_path / "no")
    assert own.path == folder.path / "prompts.parquet" and own.sha256 == checked.sha256
    again = run_batch(folder, own, endpoint.target, Batch())
    assert (again.result.made, again.result.reused) == (0, 3)


def test_a_file_that_changes_after_the_check_stops_the_batch(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": ["a cat"]})
    file = open_prompts(path)
    write(tmp_path, {"prompt": ["a cat", "a dog"]})
    with pytest.raises(InputError, match="has changed since"):
        list(file)
