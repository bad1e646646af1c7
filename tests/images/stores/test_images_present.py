"""Resuming: what counts as there, what is read again, what is taken over."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.manifest import Manifest
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.present import Present
from raynest_pipeline.images.record import Record
from raynest_pipeline.images.store import BatchFolder


class Bench:
    """A batch with one recorded image, `cat`."""

    def __init__(self, root: str, kit: Any, make_record: Callable[..., Record]) -> None:
        self.root = root
        self.store = open_batch(root, "b")
        self.data, self.other_picture = kit.png("a cat", 1), kit.png("a dog", 2, text={"a": "b"})
        self.record = self.made(self.store, "cat", make_record)
        self.file = str(self.record.file)

    def made(
        self, store: BatchStore, name: str, make_record: Callable[..., Record], **changes: Any
    ) -> Record:
        """Store and record an image as an engine does."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        record = make_record(name, batch=store.batch_id, size_bytes=len(self.data), sha256=sha256, **changes)
        stamp = store.write(str(record.file), self.data)
        record = make_record(**(vars(record) | {"name": name, "stamp": stamp}))
        with store.exclusive(), store.open_manifest() as manifest:
            manifest.append(record)
            assert manifest.shared is not None
            manifest.shared.publish(manifest.records(finished=True))
            manifest.settle()
        return record

    @contextmanager
    def opened(self, *, verify: bool = False) -> Iterator[tuple[Present, Manifest]]:
        with self.store.exclusive(), self.store.open_manifest() as manifest:
            yield Present(self.store, manifest, verify=verify), manifest

    def has(self, **options: Any) -> bool:
        with self.opened(**options) as (present, _):
            return present.has("cat", self.record.key, self.file)


@pytest.fixture
def bench(root: str, kit: Any, make_record: Any) -> Bench:
    return Bench(root, kit, make_record)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> list[str]:
    """The images whose bytes have been compared or read."""
    seen: list[str] = []
    for name in ("holds", "read"):
        real = getattr(bench.store, name)

        def looked(file: str, *more: Any, real: Any = real) -> Any:
            seen.append(file)
            return real(file, *more)

        monkeypatch.setattr(bench.store, name, looked)
    return seen


def test_an_unchanged_image_is_not_read(bench: Bench, reads: list[str]) -> None:
    assert bench.has() and reads == []
    assert bench.has(verify=True) and bench.file in reads


def test_another_key_or_id_is_not_there(bench: Bench) -> None:
    other = "f" * 64
    with bench.opened() as (present, _):
        assert not present.has("cat", other, f"images/{image_name('cat', other)}")
        assert not present.has("dog", bench.record.key, f"images/{image_name('dog', bench.record.key)}")


def test_an_image_that_was_removed_is_missed(bench: Bench, reads: list[str]) -> None:
    bench.store.remove(bench.file)
    assert not bench.has()
    with bench.opened() as (present, _):
        assert present.adopt(bench.record.key, bench.file, 32) is None


@pytest.mark.parametrize("change", ["cut", "other", "longer", "picture"])
def test_an_image_that_was_changed_is_missed(bench: Bench, change: str) -> None:
    changed = {"cut": bench.data[:-10], "other": bench.data[:-1] + b"x", "longer": bench.data + b"x"}
    changed["picture"] = bench.other_picture
    bench.store.write(bench.file, changed[change])
    assert not bench.has() and not bench.has(verify=True)
    with bench.opened() as (present, manifest):
        assert not present.has("cat", bench.record.key, bench.file)
        assert present.adopt(bench.record.key, bench.file, 32) is None
        assert manifest.not_there(5) == (1, ["cat"])


def test_an_image_put_again_with_the_same_bytes_is_read_once_and_counts(
    bench: Bench, reads: list[str]
) -> None:
    bench.store.write(bench.file, bench.data)
    with bench.opened() as (present, manifest):
        assert present.has("cat", bench.record.key, bench.file) and bench.file in reads
        assert manifest.not_there(5) == (0, [])
        # The look at the end, by listing, does not take it back.
        manifest.survey(bench.store.entries())
        assert manifest.not_there(5) == (0, [])


def test_only_verify_sees_bytes_that_changed_under_size_and_time(
    tmp_path: Any, kit: Any, make_record: Any
) -> None:
    bench = Bench(str(tmp_path), kit, make_record)
    assert isinstance(bench.store, BatchFolder)
    path = bench.store.path / bench.file
    before = path.stat()
    path.write_bytes(bench.data[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bench.has() and not bench.has(verify=True)


def test_a_record_of_an_earlier_release_has_no_stamp_and_is_read(
    bench: Bench, reads: list[str], make_record: Any
) -> None:
    with bench.opened() as (_, manifest):
        manifest.append(make_record(**(vars(bench.record) | {"name": "cat", "stamp": None})))
    assert bench.has() and bench.file in reads


def test_a_whole_image_without_a_record_is_found_and_a_broken_one_is_not(bench: Bench) -> None:
    loose, half = (f"images/{image_name(name, bench.record.key)}" for name in ("dog", "pig"))
    stamp = bench.store.write(loose, bench.data)
    bench.store.write(half, bench.data[:-30])
    with bench.opened() as (present, _):
        found = present.adopt(bench.record.key, loose, 32)
        assert found is not None
        assert (found.sha256, found.size_bytes) == (bench.record.sha256, len(bench.data))
        assert (found.stamp, found.width, found.origin) == (stamp, 32, "")
        assert present.adopt(bench.record.key, loose, 64) is None
    with bench.opened() as (present, manifest):
        manifest.shared = None
        assert present.adopt(bench.record.key, half, 32) is None


def test_an_image_whose_latest_record_is_a_failure_is_found_all_the_same(
    bench: Bench, make_record: Any
) -> None:
    with bench.opened() as (present, manifest):
        manifest.append(make_record("cat", status="failed", file=None))
        assert not present.has("cat", bench.record.key, bench.file)
        manifest.survey(bench.store.entries())
        assert present.adopt(bench.record.key, bench.file, 32) is not None


def test_an_image_of_another_batch_is_taken_over(bench: Bench) -> None:
    own = f"images/{image_name('dog', bench.record.key)}"
    bench.store = open_batch(bench.root, "second")
    with bench.opened() as (present, _):
        found = present.adopt(bench.record.key, own, 32)
        assert present.adopt("f" * 64, f"images/{image_name('dog', 'f' * 64)}", 32) is None
    assert found is not None and (found.origin, found.file) == ("b", own)
    assert found.sha256 == bench.record.sha256
    assert bench.store.read(own) == bench.data
    entry = bench.store.entry(own)
    assert entry is not None and entry.stamp == found.stamp


def test_what_another_batch_has_lost_or_changed_is_not_taken(bench: Bench) -> None:
    own = f"images/{image_name('dog', bench.record.key)}"
    first, bench.store = bench.store, open_batch(bench.root, "second")
    first.write(bench.file, bench.data + b"more")
    with bench.opened() as (present, _):
        assert present.adopt(bench.record.key, own, 32) is None
    first.remove(bench.file)
    with bench.opened() as (present, _):
        assert present.adopt(bench.record.key, own, 32) is None


def test_another_picture_in_the_place_of_a_shared_one_is_never_taken_for_it(bench: Bench) -> None:
    """Not by the next run either, which looks for finished files without a record."""
    own = f"images/{image_name('dog', bench.record.key)}"
    assert len(bench.other_picture) != len(bench.data)
    bench.store.write(bench.file, bench.other_picture)
    bench.store = open_batch(bench.root, "second")
    for _ in range(2):
        with bench.opened() as (present, _):
            assert present.adopt(bench.record.key, own, 32) is None
    assert bench.store.entry(own) is None


def test_a_store_that_refuses_to_copy_does_not_end_the_batch(
    objects_root: str, kit: Any, make_record: Any, bucket: Any
) -> None:
    bench = Bench(objects_root, kit, make_record)
    bench.store = open_batch(objects_root, "second")

    def denied(operation: str, path: str) -> None:
        if operation == "copy":
            raise PermissionError("AccessDenied")

    bucket.fault = denied
    with bench.opened() as (present, _):
        assert present.adopt(bench.record.key, f"images/{image_name('dog', bench.record.key)}", 32) is None


def test_one_listing_tells_it_all(objects_root: str, kit: Any, make_record: Any, bucket: Any) -> None:
    bench = Bench(objects_root, kit, make_record)
    names = [f"p{i}" for i in range(30)]
    for name in names:
        bench.made(bench.store, name, make_record)
    with bench.opened() as (present, _):
        bucket.reset()
        present = Present(bench.store, present._manifest)
        for name in names:
            assert present.has(name, bench.record.key, f"images/{image_name(name, bench.record.key)}")
        for name in names:
            assert not present.has(f"new-{name}", bench.record.key, f"images/{image_name(name, 'f' * 64)}")
        assert bucket.calls == {"list": 1}
