"""ossfs, as far as raynest works around it: a driver that behaves as ossfs 2025.5 does."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from raynest_pipeline.errors import StorageError
from raynest_pipeline.images import oss_driver
from raynest_pipeline.images.batch_store import Entry, open_batch
from raynest_pipeline.images.objects import Objects


class ServerError(Exception):
    def __init__(self, code: str, status: int) -> None:
        super().__init__(code)
        self.code, self.status = code, status


def wrapped(error: ServerError) -> OSError:
    """As ossfs.exceptions.translate_oss_error does it."""
    translated = OSError(5, str(error))
    translated.__cause__ = error
    return translated


@pytest.fixture
def oss(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The directory's store under the name and with the ways of ossfs."""

    class OssLike(bucket):  # type: ignore[misc]
        protocol = "oss"
        listed: list[str] = []
        denied = False

        def split_path(self, path: str) -> tuple[str, str]:
            return "", self._strip_protocol(path)

        def _call_oss(self, method: str, key: str, bucket: str) -> Any:
            assert method == "head_object"
            status = Path(key).stat()
            return SimpleNamespace(content_length=status.st_size, last_modified=int(status.st_mtime))

        def info(self, path: str, **kwargs: Any) -> Any:
            raise AssertionError("it lists the whole folder")

        def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
            headers = kwargs.pop("headers", {})
            assert not kwargs
            if self.denied:
                raise wrapped(ServerError("SignatureDoesNotMatch", 403))
            if headers == {"x-oss-forbid-overwrite": "true"} and Path(self._strip_protocol(path)).exists():
                raise wrapped(ServerError("FileAlreadyExists", 409))
            super().pipe_file(path, value)

        def _facts(self, file: Path) -> dict[str, Any]:
            facts = super()._facts(file)
            del facts["ETag"]
            return facts | {"LastModified": int(file.stat().st_mtime)}

    # The real driver's module, if it is installed, must not be loaded in its place.
    fsspec.register_implementation("oss", OssLike, clobber=True)
    yield OssLike
    registry = importlib.import_module("fsspec.registry")
    registry._registry.pop("oss", None)


def test_one_object_is_looked_at_by_one_request(oss: Any, tmp_path: Path) -> None:
    objects = Objects(f"oss://{tmp_path}")
    stamp = str(int((tmp_path / "a").stat().st_mtime)) if objects.put("a", b"one") else ""
    assert objects.entry("a") == Entry("a", 3, stamp) == objects.list("")[0]
    assert objects.entry("none") is None


def test_creating_is_left_to_the_server(oss: Any, tmp_path: Path) -> None:
    objects = Objects(f"oss://{tmp_path}")
    assert objects.create("a", b"one") and not objects.create("a", b"two")
    assert objects.get("a") == b"one"
    with pytest.raises(FileExistsError):
        oss_driver.create(objects._fs, f"{tmp_path}/a", b"two")


def test_a_refused_signature_is_told_as_such(
    oss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oss, "denied", True)
    for use in (Objects.put, Objects.create):
        with pytest.raises(StorageError, match="No permission") as caught:
            use(Objects(f"oss://{tmp_path}"), "a", b"x")
        assert "FSSPEC_OSS_KEY" in caught.value.fix and "OSS_ENDPOINT" in caught.value.fix


def test_a_batch_on_it(oss: Any, tmp_path: Path, make_record: Any) -> None:
    store = open_batch(f"oss://{tmp_path}/out", "b")
    stamp = store.write("images/a.png", b"x")
    assert [entry.stamp for entry in store.entries()] == [stamp]
    with store.exclusive(), store.open_manifest() as manifest:
        manifest.append(make_record("cat"))
        manifest.settle()
    assert store.names() == ["manifest.jsonl"]
