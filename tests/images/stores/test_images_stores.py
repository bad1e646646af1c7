"""What every store does, whatever it lies on."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import InputError, RefusedError, StorageError
from raynest_pipeline.images.batch_store import BatchStore, is_url, open_batch, root_of
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.object_store import ObjectStore
from raynest_pipeline.images.store import BatchFolder

PIXELS: dict[str, Any] = {"size": 6, "sha256": hashlib.sha256(b"pixels").hexdigest()}


def test_what_is_written_is_read_listed_and_removed(store: BatchStore) -> None:
    assert store.read("images/a.png") is None and list(store.entries()) == [] and store.names() == []
    first = store.write("images/a.png", b"one")
    store.write("sheet.jpg", b"sheet")
    stamp = store.write("images/a.png", b"three")
    assert store.read("images/a.png") == b"three"
    (entry,) = store.entries()
    assert (entry.name, entry.size, entry.stamp) == ("images/a.png", 5, stamp)
    assert stamp != first and store.entry("images/a.png") == entry
    assert store.names() == ["sheet.jpg"] and store.entry("images/none.png") is None
    assert store.holds("images/a.png", 5, hashlib.sha256(b"three").hexdigest())
    assert not store.holds("images/a.png", 4, hashlib.sha256(b"three").hexdigest())
    assert not store.holds("images/a.png", 5, hashlib.sha256(b"seven").hexdigest())
    assert not store.holds("images/none.png", 5, hashlib.sha256(b"three").hexdigest())
    store.remove("images/a.png")
    store.remove("images/a.png")
    assert store.read("images/a.png") is None and list(store.entries()) == []


def test_files_go_in_and_come_out_as_files(store: BatchStore, tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_bytes(b"prompt\na cat\n")
    store.put_file(source, "prompts.csv")
    assert store.names() == ["prompts.csv"]
    copy = store.local("prompts.csv")
    assert copy is not None and copy.read_bytes() == source.read_bytes() and copy.suffix == ".csv"
    assert store.local("prompts.txt") is None
    # A copy that somebody has open stays as it is while nothing has changed.
    number = copy.stat().st_ino
    assert store.local("prompts.csv") == copy and copy.stat().st_ino == number
    source.write_bytes(b"prompt\na dog\n")
    store.put_file(source, "prompts.csv")
    changed = store.local("prompts.csv")
    assert changed is not None and changed.read_bytes() == b"prompt\na dog\n"


def test_a_file_of_another_batch_is_taken_over(store: BatchStore, root: str) -> None:
    other = open_batch(root, "other")
    other.write("images/x.png", b"pixels")
    entry = store.take_over("other", "images/x.png", "images/mine.png", **PIXELS)
    assert entry is not None and entry.size == 6 and store.entry("images/mine.png") == entry
    assert store.take_over("other", "images/x.png", "images/mine.png", **PIXELS) == entry or store.remote
    assert {e.name for e in store.entries()} == {"images/mine.png"}
    other.write("images/x.png", b"other pixels")
    other.remove("images/x.png")
    assert store.read("images/mine.png") == b"pixels"
    assert store.take_over("other", "images/x.png", "images/mine.png", **PIXELS) is None
    assert store.take_over("none", "images/x.png", "images/mine.png", **PIXELS) is None


def test_what_another_batch_has_changed_leaves_the_own_file_as_it_was(store: BatchStore, root: str) -> None:
    other = open_batch(root, "other")
    other.write("images/x.png", b"another picture")
    assert store.take_over("other", "images/x.png", "images/mine.png", **PIXELS) is None
    assert list(store.entries()) == []
    store.write("images/mine.png", b"mine")
    assert store.take_over("other", "images/x.png", "images/mine.png", **PIXELS) is None
    assert store.read("images/mine.png") == b"mine"
    if not store.remote:
        other.write("images/x.png", b"PIXELS")
        assert store.take_over("other", "images/x.png", "images/mine.png", **PIXELS) is None
        assert store.read("images/mine.png") == b"mine"
    assert {e.name for e in store.entries()} == {"images/mine.png"}


def test_to_write_a_file_that_was_taken_over_leaves_the_other_batch_alone(
    store: BatchStore, root: str
) -> None:
    other = open_batch(root, "other")
    other.write("images/x.png", b"pixels")
    store.take_over("other", "images/x.png", "images/mine.png", **PIXELS)
    store.write("images/mine.png", b"new")
    assert (other.read("images/x.png"), store.read("images/mine.png")) == (b"pixels", b"new")


@pytest.mark.parametrize("left", ["link", "replace"])
def test_a_disk_that_fills_up_while_linking_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    import errno
    import os

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    open_batch(tmp_path, "a").write("images/x.png", b"pixels")
    store = BatchFolder(tmp_path, "b")
    monkeypatch.setattr(os, left, full)
    with pytest.raises(StorageError, match="no space left"):
        store.take_over("a", "images/x.png", "images/y.png", **PIXELS)
    assert [path.name for path in (store.path / "images").iterdir()] == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "images/../../x", "a/b/c", "images/", ".lock", "\0"])
def test_a_name_cannot_leave_the_batch(store: BatchStore, tmp_path: Path, name: str) -> None:
    uses: list[Any] = [
        lambda: store.write(name, b"x"),
        lambda: store.read(name),
        lambda: store.entry(name),
        lambda: store.remove(name),
        lambda: store.local(name),
        lambda: store.put_file(Path(__file__), name),
        lambda: store.place(name),
        lambda: store.take_over("other", name, "images/a.png", **PIXELS),
        lambda: store.take_over("other", "images/a.png", name, **PIXELS),
    ]
    for use in uses:
        with pytest.raises(StorageError, match="not a name inside"):
            use()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("batch_id", ["", "..", "a/b", "nul", ".x", "x" * 129])
def test_a_batch_id_cannot_leave_the_root(root: str, batch_id: str) -> None:
    with pytest.raises(InputError, match="batch id"):
        open_batch(root, batch_id)


def test_one_process_holds_a_batch_at_a_time(store: BatchStore, root: str) -> None:
    with store.exclusive():
        with (
            pytest.raises(RefusedError, match="already being made by process"),
            open_batch(root, "b").exclusive(),
        ):
            raise AssertionError("two hold the batch")
        with open_batch(root, "other").exclusive():
            pass
    with open_batch(root, "b").exclusive():
        pass


def test_a_batch_is_free_again_after_an_error(store: BatchStore) -> None:
    with pytest.raises(KeyError), store.exclusive():
        raise KeyError
    with store.exclusive():
        pass


def test_the_manifest_is_the_same_on_every_store(store: BatchStore, root: str, make_record: Any) -> None:
    failed = make_record("dog", status="failed", file=None, error="no")
    with store.exclusive(), store.open_manifest() as manifest:
        assert manifest.unfinished
        for record in (make_record("cat"), failed, make_record("cat", seed=2)):
            manifest.append(record)
        manifest.settle()
        assert not manifest.unfinished
    again = open_batch(root, "b")
    assert list(latest_records(again)) == [make_record("cat", seed=2), failed]
    assert list(latest_records(again, finished=True)) == [make_record("cat", seed=2)]
    with again.exclusive(), again.open_manifest() as manifest:
        assert manifest.latest("cat") == make_record("cat", seed=2)
        assert manifest.latest("dog") == failed and manifest.latest("bird") is None


def test_a_batch_that_was_never_made_has_no_manifest(store: BatchStore) -> None:
    with pytest.raises(StorageError):
        list(latest_records(store))


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("oss://bucket/prefix/", "oss://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("file:///data/my%20images", None),
        ("local:///data/images", None),
        ("images", None),
        ("~/images", None),
        (Path("images"), None),
    ],
)
def test_a_root_is_a_folder_or_a_url(given: str | Path, url: str | None) -> None:
    assert is_url(given) == (url is not None)
    assert root_of(given) == url if url else isinstance(root_of(given), Path)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    store = open_batch(f"file://{tmp_path}/my%20images", "b")
    assert isinstance(store, BatchFolder) and store.path == tmp_path / "my images" / "b"
    assert store.place("sheet.jpg") == str(store.path / "sheet.jpg") == str(store.sheet_path)


def test_places_are_urls_on_an_object_store(objects_root: str) -> None:
    store = open_batch(objects_root + "/", "b")
    assert isinstance(store, ObjectStore)
    assert store.place() == f"{objects_root}/b"
    assert store.manifest_path == store.place("manifest.jsonl") == f"{objects_root}/b/manifest.jsonl"
    assert store.sheet_path == f"{objects_root}/b/sheet.jpg"


def test_where_there_are_no_hard_links_a_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    open_batch(tmp_path, "a").write("images/x.png", b"pixels")
    store = open_batch(tmp_path, "b")
    entry = store.take_over("a", "images/x.png", "images/y.png", **PIXELS)
    assert entry is not None and entry.size == 6 and store.read("images/y.png") == b"pixels"
    assert [e.name for e in store.entries()] == ["images/y.png"]


def test_what_a_killed_process_half_wrote_is_removed_from_a_folder(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    for half in ("images/.part-1-x.png", ".part-1-manifest.parquet"):
        (store.path / half).write_bytes(b"half")
    with store.exclusive():
        assert [p.name for p in store.path.rglob("*") if p.is_file()] == [".lock"]
