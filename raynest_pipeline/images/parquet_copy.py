"""`manifest.parquet`: the latest record of every id as a table, for DuckDB, pandas, Ray Data and the like."""

import json
import tempfile
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch_store import PARQUET, BatchStore
from raynest_pipeline.images.record import Record

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 5_000


def schema() -> "pyarrow.Schema":
    """The columns: those of `Record`. `ignored` is a list, `extra` JSON text, `made_at` a time in UTC."""
    import pyarrow as pa

    required = [(name, pa.string()) for name in ("id", "batch", "status", "key", "prompt", "negative_prompt")]
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in required]
        + [
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("size", pa.int32()),
            pa.field("steps", pa.int32()),
            pa.field("guidance", pa.float64()),
            pa.field("model", pa.string(), nullable=False),
            pa.field("revision", pa.string(), nullable=False),
            pa.field("made_at", pa.timestamp("ms", tz="UTC")),
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("latency_ms", pa.float64()),
            pa.field("file", pa.string()),
            pa.field("sha256", pa.string()),
            pa.field("size_bytes", pa.int64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("worker", pa.string(), nullable=False),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("ignored", pa.list_(pa.string()), nullable=False),
            pa.field("extra", pa.string(), nullable=False),
        ],
        metadata={b"raynest.schema": b"1"},
    )


def write_parquet(store: BatchStore, records: Iterable[Record]) -> str:
    """Write `manifest.parquet`, atomically and in memory that does not grow with the batch.

    Returns:
        Its name, relative to the batch.

    Raises:
        StorageError: There is no room for it, here or at the store.
    """
    import pyarrow as pa  # heavy, and not needed to make a batch
    import pyarrow.parquet as pq

    columns, left = schema(), iter(records)
    try:
        with tempfile.TemporaryDirectory(prefix="raynest-parquet-") as folder:
            path = Path(folder) / PARQUET
            with pq.ParquetWriter(path, columns, compression="zstd") as writer:
                while rows := [_row(record) for record in islice(left, ROWS_AT_ONCE)]:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=columns))
            store.put_file(path, PARQUET)
    except OSError as error:
        raise StorageError(
            f"{PARQUET} cannot be written.",
            why=error.strerror or str(error),
            fix="Free some space in the folder for temporary files (TMPDIR) and run again.",
        ) from None
    return PARQUET


def _row(record: Record) -> dict[str, Any]:
    values = dict(vars(record))
    values["extra"] = json.dumps(values["extra"], ensure_ascii=False)
    values["made_at"] = _time(record.made_at)
    return values


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
