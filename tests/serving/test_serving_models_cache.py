"""The cache of models: whole or not at all, whatever the source and the disk do."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raynest_pipeline.serving import modelcache
from raynest_pipeline.serving.modelcache import (
    ModelCache,
    default_cache,
    disk_errors,
    in_words,
    node_lock,
    safe_name,
    write_whole,
)
from raynest_pipeline.serving.modelfiles import RemoteFile, SourceFailed


class Shelf:
    """A source on a dictionary. `fail` is raised instead of an answer."""

    where = "the shelf"

    def __init__(self) -> None:
        self.files = {
            "model_index.json": b"{}",
            "unet/model.safetensors": b"w" * 100,
            "unet/config.json": b"{}",
            "vae/config.json": b"{}",
        }
        self.fail: SourceFailed | None = None
        self.fetched: list[str] = []

    def list(self) -> Sequence[RemoteFile]:
        if self.fail:
            raise self.fail
        return [RemoteFile(path, len(data), data.decode()) for path, data in self.files.items()]

    def fetch(self, file: RemoteFile, target: Path) -> None:
        self.fetched.append(file.path)
        target.write_bytes(self.files[file.path])


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def visible(entry: Path) -> list[str]:
    return sorted(path.name for path in entry.iterdir() if path.is_dir() and not path.name.startswith("."))


def test_a_model_is_fetched_once(shelf: Shelf, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    first = cache.get("kind/name", "", shelf, half=False)
    second = cache.get("kind/name", "", shelf, half=False)
    assert first.folder == second.folder == tmp_path / "kind" / "name" / first.revision
    assert sorted(shelf.fetched) == sorted(shelf.files)
    assert (first.origin, second.origin) == ("downloaded from the shelf", f"cached in {tmp_path}/kind/name")


def test_a_source_that_fails_in_the_middle_leaves_nothing_to_be_taken(shelf: Shelf, tmp_path: Path) -> None:
    real = shelf.fetch

    def breaks(file: RemoteFile, target: Path) -> None:
        if file.path.endswith(".safetensors"):
            target.write_bytes(b"half")
            raise SourceFailed("broke off")
        real(file, target)

    shelf.fetch = breaks  # type: ignore[method-assign]
    cache, entry = ModelCache(tmp_path), tmp_path / "kind" / "name"
    with pytest.raises(SourceFailed, match="broke off"):
        cache.get("kind/name", "", shelf, half=False)
    assert visible(entry) == []
    shelf.fetch = real  # type: ignore[method-assign]
    shelf.fetched.clear()
    stored = cache.get("kind/name", "", shelf, half=False)
    assert (stored.folder / "unet/model.safetensors").read_bytes() == shelf.files["unet/model.safetensors"]
    assert "unet/model.safetensors" in shelf.fetched
    assert not list(entry.glob(".partial-*")) and not list(entry.rglob("*.part"))


def test_a_failure_stops_what_has_not_begun_while_a_large_file_is_still_coming(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = threading.Event()
    seen: list[bool] = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            if cancel_futures:
                stopped.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def fetch(file: RemoteFile, target: Path) -> None:
        if file.path == "unet/model.safetensors":
            raise SourceFailed("broke off")
        seen.append(stopped.wait(40))
        target.write_bytes(shelf.files[file.path])

    monkeypatch.setattr(modelcache, "ThreadPoolExecutor", Pool)
    shelf.fetch = fetch  # type: ignore[method-assign]
    with pytest.raises(SourceFailed, match="broke off"):
        ModelCache(tmp_path).get("kind/name", "", shelf, half=False)
    assert seen == [True, True, True]


def test_what_an_older_revision_left_behind_is_cleared(shelf: Shelf, tmp_path: Path) -> None:
    entry = tmp_path / "kind" / "name"
    (entry / ".partial-old").mkdir(parents=True)
    ModelCache(tmp_path).get("kind/name", "", shelf, half=False)
    assert not list(entry.glob(".partial-*"))


def test_a_source_that_does_not_answer_leaves_the_copy_of_that_very_revision(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ModelCache(tmp_path)
    one = cache.get("kind/name", "v1", shelf, half=False)
    shelf.files["unet/config.json"] = b'{"v": 2}'
    two = cache.get("kind/name", "v2", shelf, half=False)
    shelf.fail = SourceFailed("it is down")
    assert cache.get("kind/name", "v1", shelf, half=False).folder == one.folder
    assert cache.get("kind/name", "v2", shelf, half=False).folder == two.folder
    assert "the shelf: it is down; going on with the copy in" in caplog.text
    with pytest.raises(SourceFailed, match="it is down"):
        cache.get("kind/name", "v3", shelf, half=False)
    shutil.rmtree(two.folder)
    with pytest.raises(SourceFailed, match="it is down"):
        cache.get("kind/name", "v2", shelf, half=False)


def test_a_cache_that_may_only_be_read_serves_what_it_has(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ModelCache(tmp_path)
    first = cache.get("kind/name", "", shelf, half=False)

    def refuses(path: Path, text: str) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(modelcache, "write_whole", refuses)
    assert cache.get("kind/name", "", shelf, half=False).folder == first.folder


def test_a_disk_without_room_is_told_with_what_is_needed(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    with pytest.raises(
        SourceFailed, match=r"it takes 0\.0 MB, but .* has 50\.0 MB free.*RAYNEST_MODEL_CACHE"
    ):
        ModelCache(tmp_path).get("kind/name", "", shelf, half=False)
    assert shelf.fetched == []


def test_a_folder_that_cannot_be_written_is_told(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(SourceFailed, match="cannot be written"):
        ModelCache(tmp_path / "file").get("kind/name", "", shelf, half=False)


def test_a_disk_that_fills_up_is_told(shelf: Shelf, tmp_path: Path) -> None:
    def full(file: RemoteFile, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    shelf.fetch = full  # type: ignore[method-assign]
    with pytest.raises(SourceFailed, match="No space left on device"):
        ModelCache(tmp_path).get("kind/name", "", shelf, half=False)


def test_a_file_system_without_locks_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="cannot be written: no flock"), disk_errors(tmp_path):
        raise NotImplementedError("no flock")


def test_many_threads_fetch_once(shelf: Shelf, tmp_path: Path) -> None:
    cache, folders = ModelCache(tmp_path), []
    start = threading.Barrier(6)

    def get() -> None:
        start.wait(60)
        folders.append(cache.get("kind/name", "", shelf, half=False).folder)

    threads = [threading.Thread(target=get) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(folders)) == 1 and len(folders) == 6
    assert sorted(shelf.fetched) == sorted(shelf.files)


def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ".lock"
    code = (
        "import sys, pathlib\n"
        "from raynest_pipeline.serving.modelcache import node_lock\n"
        "with node_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    waits = threading.Event()
    got = threading.Event()

    def acquire() -> None:
        with node_lock(path):
            got.set()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "another process is fetching this model" in record.getMessage():
                waits.set()

    logger = logging.getLogger("ray.serve")
    handler, level = Told(), logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        thread = threading.Thread(target=acquire)
        thread.start()
        assert waits.wait(60)
        assert not got.is_set()
        child.kill()
        child.wait(60)
        assert got.wait(60)
        thread.join(60)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        child.communicate()


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    assert [item.name for item in tmp_path.iterdir()] == ["seen"]


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0.0 MB"), (400_000, "0.4 MB"), (99_000_000, "99.0 MB"), (5_480_000_000, "5.5 GB")],
)
def test_sizes_are_told_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


def test_names_become_one_file_name(tmp_path: Path) -> None:
    assert safe_name("bucket/a b?c") == "bucket-a-b-c"
    assert len(safe_name("x" * 300)) == 100


def test_the_default_cache_follows_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/raynest/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert default_cache() == Path("/home/a/.cache/raynest/models")
