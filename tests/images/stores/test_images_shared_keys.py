"""The index of content keys: a hint that may be lost at any time."""

import gzip
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.shared_keys import KEYS_FILE, FolderKeys, SharedImage

KEY = "0123456789abcdef" * 4


def keys(number: int) -> str:
    return f"{number:064x}"


def tell(store: BatchStore, records: list[Record]) -> None:
    """What a run of a batch tells the index of its root."""
    shared = store.shared_keys()
    for record in records:
        shared.add(record)
    shared.publish(record for record in records if record.status != "failed")
    shared.close()


def find(root: str, batch: str, key: str) -> SharedImage | None:
    shared = open_batch(root, batch).shared_keys()
    try:
        return shared.find(key)
    finally:
        shared.close()


def test_another_batch_finds_it_and_the_own_does_not(root: str, make_record: Any) -> None:
    tell(open_batch(root, "b"), [make_record("cat")])
    found = find(root, "second", KEY)
    assert found == SharedImage("b", f"images/cat-{KEY[:16]}.png", "0" * 64, 3, 32, 32)
    assert find(root, "b", KEY) is None and find(root, "second", keys(1)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"revision": ""},
        {"size": None},
        {"steps": None},
        {"guidance": None},
        {"ignored": ("seed",)},
        {"status": "failed", "file": None},
        {"sha256": None},
    ],
)
def test_what_a_key_does_not_fully_describe_is_not_shared(
    root: str, make_record: Any, changes: dict[str, Any]
) -> None:
    record = make_record("cat", **changes)
    assert not record.shareable
    tell(open_batch(root, "b"), [record])
    assert find(root, "second", KEY) is None


def test_nothing_is_made_for_a_look(tmp_path: Path) -> None:
    FolderKeys(tmp_path, "b").close()
    assert list(tmp_path.iterdir()) == []


def test_a_lost_index_is_no_index(root: str, tmp_path: Path, make_record: Any) -> None:
    tell(open_batch(root, "b"), [make_record("cat")])
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and ".keys" in str(path):
            path.unlink()
    if not root.startswith("memory"):
        assert find(root, "second", KEY) is None
    tell(open_batch(root, "b"), [make_record("cat")])
    assert find(root, "second", KEY) is not None


@pytest.mark.parametrize("damage", [b"", b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_is_put_aside_and_begun_anew(tmp_path: Path, make_record: Any, damage: bytes) -> None:
    root = str(tmp_path)
    (tmp_path / KEYS_FILE).write_bytes(damage)
    assert find(root, "second", KEY) is None
    for _ in range(2):
        tell(open_batch(root, "b"), [make_record("cat")])
    assert find(root, "second", KEY) is not None


@pytest.mark.parametrize("damage", [b"", b"not gzip", gzip.compress(b"not json\n"), gzip.compress(b"[1]\n")])
def test_a_damaged_index_object_is_passed_over(objects_root: str, make_record: Any, damage: bytes) -> None:
    tell(open_batch(objects_root, "b"), [make_record("cat")])
    store = open_batch(objects_root, ".keys".strip("."))
    from raynest_pipeline.images.objects import Objects

    Objects(f"{objects_root}/.keys").put("a.jsonl.gz", damage)
    assert store.batch_id == "keys" and find(objects_root, "second", KEY) is not None


def test_an_index_that_cannot_be_read_ends_nothing(objects_root: str, make_record: Any, bucket: Any) -> None:
    tell(open_batch(objects_root, "b"), [make_record("cat")])

    def denied(operation: str, path: str) -> None:
        raise PermissionError("AccessDenied")

    shared = open_batch(objects_root, "second").shared_keys()
    bucket.fault = denied
    assert shared.find(KEY) is None
    shared.close()


def test_a_folder_that_cannot_hold_the_index_ends_nothing(tmp_path: Path, make_record: Any) -> None:
    (tmp_path / KEYS_FILE).mkdir()
    shared = FolderKeys(tmp_path, "b")
    assert shared.find(KEY) is None
    shared.add(make_record("cat"))
    shared.close()


def test_a_locked_index_is_done_without(tmp_path: Path, make_record: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("raynest_pipeline.images.shared_keys.BUSY_SECONDS", 0.01)
    tell(open_batch(tmp_path, "b"), [make_record("cat")])
    other = sqlite3.connect(tmp_path / KEYS_FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    shared = FolderKeys(tmp_path, "second")
    assert shared.find(KEY) is None
    shared.add(make_record("dog", batch="second", key=keys(2)))
    shared.close()
    other.execute("ROLLBACK")
    other.close()
    # It was not damaged, and is still there.
    assert find(str(tmp_path), "third", KEY) is not None


def test_several_batches_write_at_the_same_time(tmp_path: Path, make_record: Any) -> None:
    def write(batch: int) -> None:
        records = [make_record(f"p{i}", batch=f"b{batch}", key=keys(100 * batch + i)) for i in range(50)]
        tell(open_batch(tmp_path, f"b{batch}"), records)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shared = FolderKeys(tmp_path, "reader")
    found = [shared.find(keys(100 * batch + i)) for batch in range(1, 5) for i in range(50)]
    shared.close()
    assert all(found) and {image.batch for image in found if image} == {"b1", "b2", "b3", "b4"}


def test_it_is_written_before_the_end(tmp_path: Path, make_record: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("raynest_pipeline.images.shared_keys.FLUSH_ROWS", 2)
    shared = FolderKeys(tmp_path, "b")
    shared.add(make_record("cat"))
    shared.add(make_record("dog", key=keys(2)))
    assert find(str(tmp_path), "second", KEY) is not None
    shared.close()


def test_the_folders_of_batches_stay_what_they_are(tmp_path: Path, make_record: Any) -> None:
    tell(open_batch(tmp_path, "b"), [make_record("cat")])
    assert sorted(os.listdir(tmp_path)) == [KEYS_FILE, "b"]
