"""An object store that fails, and what is said about it."""

import errno
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raynest_pipeline.errors import StorageError, Verdict
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.object_errors import classified, driver_errors, no_driver, storage_error_of
from raynest_pipeline.images.objects import ATTEMPTS, Objects


class Failing:
    """Lets an operation of the store fail so many times."""

    def __init__(self, error: BaseException, times: int, operation: str = "put") -> None:
        self.error, self.left, self.operation = error, times, operation
        self.failed = 0

    def __call__(self, operation: str, path: str) -> None:
        if operation == self.operation and self.left:
            self.left -= 1
            self.failed += 1
            raise self.error


@pytest.fixture
def objects(objects_root: str) -> Objects:
    return Objects(objects_root)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset by peer"),
        OSError(errno.EIO, "503 Slow Down"),
        OSError(errno.EBUSY, "busy"),
    ],
)
def test_what_passes_is_tried_again(objects: Objects, bucket: Any, error: OSError) -> None:
    bucket.fault = fault = Failing(error, ATTEMPTS - 1)
    assert objects.put("a", b"one").size == 3
    assert fault.failed == ATTEMPTS - 1 and objects.get("a") == b"one"


def test_a_lost_network_ends_it_in_words(objects: Objects, bucket: Any) -> None:
    bucket.fault = fault = Failing(ConnectionError("no route to host"), 10**6)
    with pytest.raises(StorageError) as caught:
        objects.put("a", b"one")
    assert fault.failed == ATTEMPTS
    assert "cannot be written" in caught.value.what and "no route to host" in caught.value.why
    assert "network" in caught.value.fix and "finished images are kept" in caught.value.fix
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("operation", ["get", "head", "list", "delete", "copy"])
def test_every_operation_has_its_words(objects: Objects, bucket: Any, operation: str) -> None:
    objects.put("a", b"one")
    uses: dict[str, Any] = {
        "get": lambda: objects.get("a"),
        "head": lambda: objects.entry("a"),
        "list": lambda: objects.list(""),
        "delete": lambda: objects.remove("a"),
        "copy": lambda: objects.copy_from(objects, "a", "b"),
    }
    bucket.fault = Failing(ConnectionError("gone"), 1, operation)
    uses[operation]()
    bucket.fault = Failing(ConnectionError("gone"), 10**6, operation)
    objects.put("a", b"one") if operation != "head" else None
    with pytest.raises(StorageError, match="cannot be"):
        uses[operation]()


def test_a_full_store_is_not_tried_again_and_says_how_much_is_needed(objects: Objects, bucket: Any) -> None:
    bucket.fault = fault = Failing(OSError(errno.EDQUOT, "Disk quota exceeded"), 10**6)
    with pytest.raises(StorageError) as caught:
        objects.put("a", b"x" * 2_000_000, to_go=30)
    assert fault.failed == 1
    assert "no space left" in caught.value.what and "60 MB for 30 files" in caught.value.fix


def test_no_permission_names_the_credentials(objects: Objects, bucket: Any) -> None:
    bucket.fault = fault = Failing(PermissionError("AccessDenied"), 10**6)
    with pytest.raises(StorageError, match="No permission") as caught:
        objects.put("a", b"x")
    assert fault.failed == 1 and "credentials" in caught.value.fix
    denied = classified(PermissionError("AccessDenied"), "it cannot be read.")
    assert "FSSPEC_OSS_KEY" in storage_error_of(denied, "oss://bucket/x").fix
    assert "AWS_ACCESS_KEY_ID" in storage_error_of(denied, "s3://bucket/x").fix


def test_a_put_that_leaves_something_else_is_put_again(
    objects: Objects, bucket: Any, monkeypatch: Any
) -> None:
    real, calls = bucket.pipe_file, []

    def short(self: Any, path: str, value: bytes, **kwargs: Any) -> None:
        calls.append(path)
        real(self, path, value[:-1] if len(calls) < 3 else value, **kwargs)

    monkeypatch.setattr(bucket, "pipe_file", short)
    assert objects.put("a", b"whole").size == 5 and len(calls) == 3
    monkeypatch.setattr(bucket, "pipe_file", lambda *_, **__: None)
    with pytest.raises(StorageError) as caught:
        objects.put("b", b"whole")
    assert "nothing came to be there" in caught.value.why


@pytest.mark.parametrize("conditional", [True, False])
def test_an_object_is_created_once(objects: Objects, bucket: Any, conditional: bool) -> None:
    bucket.conditional = conditional
    assert objects.create("a", b"one") and not objects.create("a", b"two")
    assert objects.get("a") == b"one"


def test_a_marker_of_the_folder_itself_is_not_listed(objects: Objects, bucket: Any, monkeypatch: Any) -> None:
    objects.put("images/a.png", b"x")
    real = bucket.ls

    def ls(self: Any, path: str, **kwargs: Any) -> Any:
        marker = {"name": path.rstrip("/") + "/", "size": 0, "type": "file"}
        return [marker, *real(self, path, **kwargs)]

    monkeypatch.setattr(bucket, "ls", ls)
    assert [entry.name for entry in objects.list("images")] == ["images/a.png"]


@pytest.mark.parametrize(("protocol", "package"), [("oss", "ossfs"), ("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_driver_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, protocol: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=f"no driver for {protocol}://") as caught:
        open_batch(f"{protocol}://bucket/x", "b")
    assert caught.value.fix == f"pip install {package}"


def test_an_unknown_protocol_is_told_what_is_known() -> None:
    with pytest.raises(StorageError, match="no driver for nowhere://") as caught:
        open_batch("nowhere://bucket/x", "b")
    assert "oss://" in caught.value.fix
    assert no_driver("zip", "").what == "There is no driver for zip://."


class SdkError(Exception):
    def __init__(self, **facts: Any) -> None:
        super().__init__("the SDK's words")
        vars(self).update(facts)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"status": 503}, Verdict.RETRYABLE),
        ({"code": 429}, Verdict.RETRYABLE),
        ({"code": "SlowDown"}, Verdict.RETRYABLE),
        ({"status": 403}, Verdict.PERMANENT),
        ({"status_code": 401}, Verdict.PERMANENT),
        ({"status": 404}, Verdict.GONE),
        ({"response": {"ResponseMetadata": {"HTTPStatusCode": 403}}}, Verdict.PERMANENT),
        ({"response": {}}, Verdict.RETRYABLE),
    ],
)
def test_errors_of_an_sdk_are_judged_by_their_status(facts: dict[str, Any], verdict: Verdict) -> None:
    assert classified(SdkError(**facts), "x").verdict is verdict


def test_errors_that_a_driver_lets_through_are_caught(
    objects: Objects, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("oss2.exceptions")
    module.OssError = SdkError  # type: ignore[attr-defined]
    assert SdkError not in driver_errors()
    monkeypatch.setitem(sys.modules, "oss2.exceptions", module)
    assert SdkError in driver_errors()
    bucket.fault = fault = Failing(SdkError(status=500), 2)
    assert objects.put("a", b"x").size == 1 and fault.failed == 2


def test_no_credentials_at_all_are_no_reason_to_try_again() -> None:
    class NoCredentialsError(Exception):
        pass

    error = classified(NoCredentialsError("Unable to locate credentials"), "x")
    assert error.verdict is Verdict.PERMANENT
    assert "No permission" in storage_error_of(error, "s3://bucket").what


def test_a_missing_bucket_is_told(tmp_path: Path) -> None:
    gone = classified(FileNotFoundError("NoSuchBucket"), "it cannot be written.")
    error = storage_error_of(gone, "oss://bucket/x")
    assert "does not exist" in error.what and "bucket" in error.fix
