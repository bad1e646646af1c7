"""The manifest in segments: what lies on the store at each instant, and what is read from it."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from raynest_pipeline.errors import RefusedError, StorageError
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.object_manifest import FLUSH_LINES, ObjectManifest
from raynest_pipeline.images.object_store import ObjectStore
from raynest_pipeline.images.record import parse_line

NAMES = [f"p{i}" for i in range(6)]


@pytest.fixture
def bucket_store(objects_root: str) -> ObjectStore:
    store = open_batch(objects_root, "b")
    assert isinstance(store, ObjectStore)
    return store


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock for the manifest that a test turns."""
    time = [1000.0]
    monkeypatch.setattr("raynest_pipeline.images.object_manifest.monotonic", lambda: time[0])
    return time


def segments(store: ObjectStore) -> list[str]:
    return sorted(entry.name for entry in store.objects.list("manifest.d"))


def ids(store: ObjectStore) -> list[str]:
    return [record.id for record in latest_records(store)]


def in_a_child(work: Callable[[], None], bucket: Any, dies_at: int) -> bool:
    """Run `work` in a process that is killed at its `dies_at`th operation; whether it came that far."""
    pid = os.fork()
    if pid == 0:
        left = [dies_at]

        def fault(*_: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        bucket.fault = fault
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_lines_become_segments_every_second_and_one_object_at_the_end(
    bucket_store: ObjectStore, make_record: Any, now: list[float]
) -> None:
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        manifest.append(make_record("p0"))
        assert segments(bucket_store) == []
        now[0] += 1.5
        manifest.append(make_record("p1"))
        manifest.append(make_record("p2"))
        (first,) = segments(bucket_store)
        assert first.startswith("manifest.d/000000000000000-")
        assert ids(bucket_store) == ["p0", "p1"]
        now[0] += 1.5
        manifest.append(make_record("p3"))
        assert len(segments(bucket_store)) == 2 and ids(bucket_store) == ["p0", "p1", "p2", "p3"]
        assert bucket_store.read("manifest.jsonl") is None
        manifest.settle()
    data = bucket_store.read("manifest.jsonl")
    assert data is not None and data.count(b"\n") == 4
    assert segments(bucket_store) == [] and ids(bucket_store) == ["p0", "p1", "p2", "p3"]


def test_the_pauses_grow_with_the_run_and_many_lines_do_not_wait(
    bucket_store: ObjectStore, make_record: Any, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raynest_pipeline.images.object_manifest.FLUSH_LINES", 50)
    assert FLUSH_LINES > 50
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        for _ in range(10 * 3600):
            now[0] += 1.0
            if int(now[0]) % 7 == 0:
                manifest.append(make_record("p0"))
        after_ten_hours = len(segments(bucket_store))
        assert after_ten_hours < 1000
        for _ in range(120):
            manifest.append(make_record("p1"))
        assert len(segments(bucket_store)) >= after_ten_hours + 2


def test_a_run_that_ends_without_merging_leaves_its_segments_to_the_next(
    bucket_store: ObjectStore, make_record: Any
) -> None:
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        manifest.append(make_record("p0"))
    assert len(segments(bucket_store)) == 1 and ids(bucket_store) == ["p0"]
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        assert manifest.unfinished and manifest.latest("p0") == make_record("p0")
        manifest.append(make_record("p1"))
    assert len(segments(bucket_store)) == 2
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        manifest.settle()
        assert not manifest.unfinished
    assert segments(bucket_store) == [] and ids(bucket_store) == ["p0", "p1"]
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        assert not manifest.unfinished and manifest.latest("p1") == make_record("p1")
        manifest.append(make_record("p2"))
        manifest.settle()
    assert ids(bucket_store) == ["p0", "p1", "p2"]


def test_killed_at_every_operation_each_line_counts_once(
    objects_root: str, make_record: Any, bucket: Any, now: list[float]
) -> None:
    def work(root: str) -> None:
        store = open_batch(root, "b")
        with store.exclusive(), store.open_manifest() as manifest:
            for name in NAMES:
                now[0] += 2.0
                if manifest.latest(name) is None:
                    manifest.append(make_record(name))
            manifest.settle()

    operation, killed = 0, True
    while killed:
        operation += 1
        assert operation < 100
        root = f"{objects_root}/{operation}"
        killed = in_a_child(lambda root=root: work(root), bucket, operation)  # type: ignore[misc]
        for second in (operation % 7 + 1, 0):
            # Killed again somewhere, then left alone.
            in_a_child(lambda root=root: work(root), bucket, second)  # type: ignore[misc]
        store = open_batch(root, "b")
        assert isinstance(store, ObjectStore)
        data = store.read("manifest.jsonl")
        assert data is not None and segments(store) == []
        records = [parse_line(line) for line in data.splitlines(keepends=True)]
        assert [record.id if record else None for record in records] == NAMES, f"killed at {operation}"
    assert operation > 20


def test_segments_that_a_killed_merge_left_are_not_read_again(
    bucket_store: ObjectStore, make_record: Any
) -> None:
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        manifest.append(make_record("p0", seed=1))
        manifest.append(make_record("p0", seed=2))
    (left,) = segments(bucket_store)
    data = bucket_store.objects.get(left)
    assert data is not None
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        manifest.append(make_record("p0", seed=3))
        manifest.settle()
    bucket_store.objects.put(left, data)
    assert [record.seed for record in latest_records(bucket_store)] == [3]
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        latest = manifest.latest("p0")
        assert latest is not None and latest.seed == 3
        manifest.settle()
    merged = bucket_store.read("manifest.jsonl")
    assert merged is not None and merged.count(b"\n") == 3 and segments(bucket_store) == []


def test_two_writers_that_should_not_have_been_lose_nothing(
    bucket_store: ObjectStore, make_record: Any
) -> None:
    one, two = ObjectManifest(bucket_store), ObjectManifest(bucket_store)
    one.append(make_record("p0"))
    two.append(make_record("p1"))
    one.close()
    two.close()
    assert len(segments(bucket_store)) == 2
    with bucket_store.exclusive(), bucket_store.open_manifest() as manifest:
        assert manifest.latest("p0") is not None and manifest.latest("p1") is not None
        manifest.settle()
    assert ids(bucket_store) == ["p0", "p1"]


def test_a_torn_segment_costs_its_last_line_only(bucket_store: ObjectStore, make_record: Any) -> None:
    lines = make_record("p0").line() + make_record("p1").line()
    bucket_store.objects.put("manifest.d/000000000000000-x.jsonl", lines[:-20])
    bucket_store.objects.put(f"manifest.d/{len(lines):015d}-x.jsonl", make_record("p2").line())
    assert ids(bucket_store) == ["p0", "p2"]


def test_a_lost_network_ends_the_run_and_the_lines_stay_where_they_can(
    bucket_store: ObjectStore, make_record: Any, bucket: Any, now: list[float]
) -> None:
    def lost(operation: str, path: str) -> None:
        if operation == "put" and "manifest.d" in path:
            raise ConnectionError("no route to host")

    with pytest.raises(StorageError, match="cannot be written"), bucket_store.exclusive():
        manifest = bucket_store.open_manifest()
        manifest.append(make_record("p0"))
        bucket.fault = lost
        now[0] += 2.0
        manifest.append(make_record("p1"))
    bucket.fault = None
    # The lines are still there to be put once the network is back.
    manifest.close()
    assert ids(bucket_store) == ["p0", "p1"]


def test_who_has_lost_the_batch_puts_no_segment(
    bucket_store: ObjectStore, objects_root: str, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_store.exclusive():
        manifest = bucket_store.open_manifest()
        manifest.append(make_record("p0"))

        def taken() -> None:
            raise RefusedError("not ours any more")

        monkeypatch.setattr(bucket_store, "check_held", taken)
        for use in (manifest.settle, manifest.close):
            with pytest.raises(RefusedError):
                use()
        assert segments(bucket_store) == []
        monkeypatch.undo()


def test_a_full_disk_for_the_local_copy_is_told(
    bucket_store: ObjectStore, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raynest_pipeline.images.object_store.tempfile.TemporaryDirectory", full)
    with pytest.raises(StorageError, match="no room for temporary files") as caught:
        bucket_store.open_manifest()
    assert "TMPDIR" in caught.value.fix
