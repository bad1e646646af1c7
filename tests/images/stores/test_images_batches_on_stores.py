"""A whole run of a batch on each kind of store, also when the store fails in the middle."""

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images.batch import Outcome, batch_prompts, run_batch
from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.finish import finish_made_elsewhere
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.settings import Batch

COUNT = 12


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my prompts.csv"
    write_prompts(path, COUNT)
    return path


def write_prompts(path: Path, count: int) -> None:
    rows = "".join(f"p{i},prompt {i},{i},tag {i}\n" for i in range(count))
    path.write_text(f"id,prompt,seed,x_tag\n{rows}")


def run(store: BatchStore, source: Path | None, endpoint: Any, **settings: Any) -> Outcome:
    prompts = batch_prompts(store, source, Path("none"))
    return run_batch(store, prompts, endpoint.target, Batch(**settings))


def figures(outcome: Outcome) -> tuple[int, int, int]:
    return outcome.result.made, outcome.result.reused, outcome.result.failed


def test_a_batch_and_its_copies(store: BatchStore, root: str, source: Path, endpoint: Any) -> None:
    outcome = run(store, source, endpoint)
    assert figures(outcome) == (COUNT, 0, 0) and outcome.summary.whole == COUNT
    assert store.names() == ["manifest.jsonl", "manifest.parquet", "prompts.csv", "sheet.jpg"]
    assert "data:image/jpeg" in outcome.inline_sheet and outcome.folder is store
    source.unlink()
    # From the batch's own prompts, by another process.
    again = open_batch(root, "b")
    before = {name: again.entry(name) for name in again.names()}
    assert figures(run(again, None, endpoint)) == (0, COUNT, 0)
    assert {name: again.entry(name) for name in again.names()} == before, "nothing changed, and yet written"


def test_the_parquet_copy_has_the_latest_record_of_each(
    store: BatchStore, source: Path, endpoint: Any
) -> None:
    async def broken(*_: Any) -> Any:
        from aiohttp import web

        return web.Response(status=422, text="no such word")

    endpoint.by_prompt["prompt 3"] = broken
    outcome = run(store, source, endpoint)
    assert figures(outcome) == (COUNT - 1, 0, 1) and outcome.summary.failed == 1
    path = store.local("manifest.parquet")
    assert path is not None
    failed = [row for row in pq.read_table(path).to_pylist() if row["status"] == "failed"]
    assert [row["id"] for row in failed] == ["p3"] and failed[0]["error"]
    endpoint.by_prompt.clear()
    run(store, source, endpoint)
    path = store.local("manifest.parquet")
    assert path is not None
    rows = pq.read_table(path).to_pylist()
    records = {record.id: record for record in latest_records(store)}
    assert len(rows) == len(records) == COUNT
    for row in rows:
        record = records[row["id"]]
        assert json.loads(row["extra"]) == record.extra == {"x_tag": f"tag {record.seed}"}
        assert row["made_at"].isoformat(timespec="milliseconds") == record.made_at
        for name in ("prompt", "seed", "key", "sha256", "size_bytes", "file", "latency_ms", "status"):
            assert row[name] == getattr(record, name)


def test_identical_work_is_done_once(store: BatchStore, root: str, source: Path, endpoint: Any) -> None:
    run(store, source, endpoint)
    write_prompts(source, COUNT + 2)
    second = open_batch(root, "second")
    outcome = run(second, source, endpoint)
    assert figures(outcome) == (2, COUNT, 0) and outcome.summary.whole == COUNT + 2
    records = list(latest_records(second))
    assert [r.status for r in records if r.origin == "b"] == ["adopted"] * COUNT
    assert sum(r.status == "made" for r in records) == 2 and endpoint.served == COUNT + 2
    for record in records:
        assert second.holds(str(record.file), int(record.size_bytes or 0), str(record.sha256))
    # Another model is other work.
    endpoint.revision = "r2"
    assert figures(run(open_batch(root, "third"), source, endpoint)) == (COUNT + 2, 0, 0)


def test_an_endpoint_that_keeps_its_model_to_itself_shares_nothing(
    store: BatchStore, root: str, source: Path, endpoint: Any
) -> None:
    endpoint.model = None
    run(store, source, endpoint)
    assert figures(run(open_batch(root, "second"), source, endpoint)) == (COUNT, 0, 0)


def test_what_is_damaged_is_made_again(store: BatchStore, source: Path, endpoint: Any) -> None:
    run(store, source, endpoint)
    files = {record.id: str(record.file) for record in latest_records(store)}
    store.write(files["p0"], b"half")
    store.remove(files["p1"])
    outcome = run(store, source, endpoint)
    assert figures(outcome) == (2, COUNT - 2, 0) and outcome.summary.damaged == 0


def test_what_disappears_during_the_run_is_told(
    store: BatchStore, source: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.entries

    def all_but_one() -> Any:
        return (entry for entry in real() if not entry.name.startswith("images/p7-"))

    monkeypatch.setattr(store, "entries", all_but_one)
    outcome = run(store, source, endpoint)
    assert (outcome.summary.damaged, outcome.summary.damaged_ids) == (1, ("p7",))
    assert outcome.summary.whole == COUNT - 1


def test_other_prompts_draw_another_sheet_and_leave_one_copy(
    store: BatchStore, source: Path, endpoint: Any, tmp_path: Path
) -> None:
    run(store, source, endpoint)
    sheet = store.read("sheet.jpg")
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text('{"id": "p0", "prompt": "prompt 0", "seed": 0, "x_tag": "tag 0"}\n')
    outcome = run(store, fewer, endpoint)
    assert figures(outcome) == (0, 1, 0)
    assert [record.id for record in outcome.summary.shown] == ["p0"]
    assert store.read("sheet.jpg") != sheet
    assert [name for name in store.names() if name.startswith("prompts")] == ["prompts.jsonl"]


def test_a_batch_made_elsewhere_is_finished_here(
    store: BatchStore, source: Path, endpoint: Any, tmp_path: Path
) -> None:
    prompts = open_prompts(source)
    generate(prompts, endpoint.target, store, Batch())
    assert "manifest.parquet" not in store.names()
    summary = finish_made_elsewhere(store, prompts, other_prompts=True)
    assert (summary.whole, summary.failed, len(summary.shown)) == (COUNT, 0, COUNT)
    assert {"manifest.jsonl", "manifest.parquet", "sheet.jpg"} <= set(store.names())


def test_a_copy_that_a_killed_run_did_not_write_is_written_by_the_next(
    store: BatchStore, source: Path, endpoint: Any
) -> None:
    run(store, source, endpoint)
    for name in ("manifest.parquet", "sheet.jpg"):
        store.remove(name)
    run(store, source, endpoint)
    assert {"manifest.parquet", "sheet.jpg"} <= set(store.names())


def test_a_manifest_newer_than_its_copy_is_copied_again(tmp_path: Path, source: Path, endpoint: Any) -> None:
    store = open_batch(tmp_path / "out", "b")
    write_prompts(source, 4)
    run(store, source, endpoint)
    write_prompts(source, COUNT)
    # Without the end of a run, as after a kill.
    generate(open_prompts(source), endpoint.target, store, Batch())
    run(store, source, endpoint)
    path = store.local("manifest.parquet")
    assert path is not None and pq.read_table(path).num_rows == COUNT


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionError("no route to host"),
        PermissionError("AccessDenied"),
    ],
)
@pytest.mark.parametrize("after", [3, 9, 17])
def test_a_store_that_fails_in_the_middle_leaves_a_batch_to_go_on_with(
    objects_root: str, source: Path, endpoint: Any, bucket: Any, error: OSError, after: int
) -> None:
    store = open_batch(objects_root, "b")
    puts = []

    def fault(operation: str, path: str) -> None:
        if operation == "put" and not path.endswith(".lease"):
            puts.append(path)
            if len(puts) > after:
                raise error

    bucket.fault = fault
    with pytest.raises(StorageError) as caught:
        run(store, source, endpoint)
    assert caught.value.fix and str(caught.value.why)
    bucket.fault = None
    stored = len(list(store.entries()))
    again = open_batch(objects_root, "b")
    outcome = run(again, source, endpoint)
    assert figures(outcome) == (COUNT - stored, stored, 0) and outcome.summary.whole == COUNT
    data = again.read("manifest.jsonl")
    assert data is not None
    ids = sorted(json.loads(line)["id"] for line in data.splitlines())
    assert ids == sorted(f"p{i}" for i in range(COUNT)), "an image is recorded twice, or not at all"


def test_no_driver_is_told_before_anything_is_asked(source: Path, endpoint: Any) -> None:
    with pytest.raises(StorageError, match="no driver"):
        run(open_batch("nowhere://bucket", "b"), source, endpoint)
    assert endpoint.served == 0
