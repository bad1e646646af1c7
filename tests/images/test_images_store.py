import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raynest_pipeline.errors import InputError, RefusedError, StorageError
from raynest_pipeline.images.store import BatchFolder, storage_error


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel's own refusal, as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_the_layout(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path / "out", "monday")
    store.write("images/a.png", b"one")
    store.write("images/a.png", b"two")
    store.write("sheet.jpg", b"sheet")
    assert everything(tmp_path) == {"out/monday/images/a.png", "out/monday/sheet.jpg"}
    assert store.read("images/a.png") == b"two" == (store.path / "images/a.png").read_bytes()
    assert store.read("images/none.png") is None
    assert store.sheet_path.read_bytes() == b"sheet"


@pytest.mark.parametrize("batch_id", ["", "..", "../x", "a/b", "/abs", "nul", ".x", "a\0b", "x" * 129])
def test_a_batch_id_cannot_leave_the_root(tmp_path: Path, batch_id: str) -> None:
    with pytest.raises(InputError, match="batch id"):
        BatchFolder(tmp_path / "root", batch_id)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "images/../../x", "a/b/c", "images/", "images//x", ".lock", "\0"]
)
def test_a_name_cannot_leave_the_batch(tmp_path: Path, name: str) -> None:
    store = BatchFolder(tmp_path, "b")
    for use in (lambda: store.write(name, b"x"), lambda: store.read(name), lambda: store.holds(name, 1, "")):
        with pytest.raises(StorageError, match="not a name inside"):
            use()
    assert everything(tmp_path) == set()


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="leads out"):
        BatchFolder(tmp_path / "root", "b")


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    BatchFolder(tmp_path / "root", "b").write("sheet.jpg", b"x")
    assert everything(tmp_path / "disk") == {"b/sheet.jpg"}


def test_a_planted_link_does_not_lead_the_bytes_elsewhere(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path / "root", "b")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (store.path / "images/a.png").symlink_to(victim)
    store.write("images/a.png", b"new")
    assert victim.read_text() == "mine" and not (store.path / "images/a.png").is_symlink()
    (store.path / "images" / f".part-{threading.get_native_id()}-c.png").symlink_to(victim)
    with pytest.raises(StorageError):
        store.write("images/c.png", b"new")
    assert victim.read_text() == "mine"


def test_a_full_disk_says_how_much_is_needed_and_leaves_the_old_file(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    store.write("images/a.png", b"old")
    with file_size_limit(10_000), pytest.raises(StorageError) as caught:
        store.write("images/a.png", b"x" * 2_000_000, to_go=30)
    message = str(caught.value)
    assert "no space left" in message and "needs 2,000,000 bytes" in message
    assert "at least 60 MB for 30 files" in message and "free there" in message
    assert caught.value.exit_code == 8
    assert everything(tmp_path) == {"b/images/a.png"} and store.read("images/a.png") == b"old"
    store.write("images/a.png", b"new")
    assert store.read("images/a.png") == b"new"


def test_a_failed_flush_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchFolder(tmp_path, "b")

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        store.write("images/a.png", b"x")
    assert everything(tmp_path) == set()


def test_permission_and_other_troubles_are_told_apart(tmp_path: Path) -> None:
    assert "No permission" in storage_error(PermissionError(errno.EACCES, "denied"), tmp_path).what
    other = storage_error(OSError(errno.EIO, "Input/output error"), tmp_path)
    assert "cannot be used" in other.what and other.why == "Input/output error"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        BatchFolder(blocked, "b")


def test_content_is_compared_by_size_and_hash(tmp_path: Path) -> None:
    import hashlib

    store = BatchFolder(tmp_path, "b")
    store.write("images/a.png", b"12345")
    sha = hashlib.sha256(b"12345").hexdigest()
    assert store.holds("images/a.png", 5, sha)
    assert not store.holds("images/a.png", 4, sha)
    assert not store.holds("images/a.png", 5, hashlib.sha256(b"54321").hexdigest())
    assert not store.holds("images/none.png", 5, sha)


def test_a_batch_belongs_to_one_process(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    script = (
        "import sys; from pathlib import Path; from raynest_pipeline.images.store import BatchFolder\n"
        "with BatchFolder(Path(sys.argv[1]), 'b').exclusive():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(RefusedError, match=f"already being made by process {holder.pid}"),
            store.exclusive(),
        ):
            raise AssertionError("two processes hold the batch")
        with BatchFolder(tmp_path, "other").exclusive():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with store.exclusive():  # the kernel has let go, though nobody unlocked
        pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    with pytest.raises(KeyError), store.exclusive():
        raise KeyError
    with store.exclusive(), pytest.raises(RefusedError), store.exclusive():
        pass


def test_what_a_killed_process_half_wrote_is_removed(tmp_path: Path) -> None:
    store = BatchFolder(tmp_path, "b")
    store.write("images/a.png", b"x")
    (store.path / "images" / ".part-b.png").write_bytes(b"half")
    with store.exclusive():
        assert everything(store.path / "images") == {"a.png"}
