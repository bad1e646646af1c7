"""Stores to test with: a folder, and object stores on a directory and in memory."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raynest_pipeline.images import lease, objects
from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.names import image_name
from raynest_pipeline.images.record import Record
from raynest_pipeline.waiting import Backoff

HERE = Path(__file__).parent
KEY = "0123456789abcdef" * 4


def directory_store() -> Any:
    """The class; a conftest cannot import what lies beside it by name."""
    spec = importlib.util.spec_from_file_location("raynest_test_directory_store", HERE / "directory_store.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DirectoryStore


BUCKET = directory_store()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pauses that only the outside world needs."""
    fsspec.register_implementation("bucket", BUCKET, clobber=True)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(objects, "BACKOFF", Backoff(first=0.001, factor=1.0, most=0.001))
    BUCKET.reset()
    yield
    BUCKET.reset()
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def bucket() -> Any:
    """The class of the directory's store; its `fault` breaks it."""
    return BUCKET


@pytest.fixture(params=["folder", "bucket", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of a store of each kind."""
    kinds = {"folder": str(tmp_path / "out"), "bucket": f"bucket://{tmp_path}/out"}
    return kinds.get(request.param, "memory://somewhere/out")


@pytest.fixture
def store(root: str) -> BatchStore:
    """A batch on it."""
    return open_batch(root, "b")


@pytest.fixture
def objects_root(tmp_path: Path) -> str:
    """The root of the directory's store."""
    return f"bucket://{tmp_path}/out"


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """A record of a made image; keyword arguments change it."""

    def make(name: str = "cat", **changes: Any) -> Record:
        values: dict[str, Any] = {
            **{"id": name, "batch": "b", "status": "made", "key": KEY, "prompt": f"a {name}"},
            **{"negative_prompt": "", "seed": 1, "size": 32, "steps": 10, "guidance": 7.5},
            **{"model": "m", "revision": "r", "made_at": "2026-01-01T00:00:00.000+00:00", "attempts": 1},
            **{"latency_ms": 12.5, "sha256": "0" * 64, "size_bytes": 3, "width": 32, "height": 32},
        }
        values |= changes
        values.setdefault("file", f"images/{image_name(name, values['key'])}")
        return Record(**values)

    return make
