"""The engine against the Serve application's own HTTP face, with a painter that costs nothing."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.settings import Batch

BATCH, QUEUE = 4, 12


class Painter:
    """Paints up to 4 at a time in 20 ms, holds 12 more, and refuses the rest."""

    def __init__(self, kit: Any) -> None:
        self._kit = kit
        self._turn = asyncio.Semaphore(BATCH)
        self.held = self.most_held = self.refused = 0
        self.painted: list[str] = []

    async def paint(self, request: ImageRequest) -> Painting:
        if self.held >= BATCH + QUEUE:
            self.refused += 1
            raise PainterBusy("the queue is full")
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            async with self._turn:
                await asyncio.sleep(0.02)
        finally:
            self.held -= 1
        if request.prompt == "poison":
            raise PaintingFailed("NaN in latents")
        self.painted.append(request.prompt)
        size = request.size or 32
        data = self._kit.png(request.prompt, request.seed, size)
        return Painting(data, "png", request.seed, size, 4, 7.5, "model", "r1", "cpu", 0.02, BATCH)

    async def facts(self) -> PainterFacts:
        return PainterFacts("model", "r1", "cpu", None, "float32", True, 0.0, 0.0, 32, 4, 7.5, BATCH)


class Served:
    """The application on a random loopback port, in a thread."""

    def __init__(self, painter: Painter) -> None:
        options = ServingOptions(max_batch_size=BATCH, queue_size=QUEUE, max_img_size=64)
        app = create_api(painter, options)  # type: ignore[arg-type]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self.target = HttpTarget.plain(f"http://127.0.0.1:{self._listener.getsockname()[1]}")

    def __enter__(self) -> "Served":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()


@pytest.fixture
def painter(kit: Any) -> Painter:
    return Painter(kit)


@pytest.fixture
def served(painter: Painter) -> Iterator[Served]:
    with Served(painter) as served:
        yield served


def test_a_batch_through_the_real_application(
    served: Served, painter: Painter, tmp_path: Path, kit: Any
) -> None:
    store = BatchFolder(tmp_path, "b")
    prompts = [*kit.prompts(60), Prompt("bad", "poison", 1), Prompt("huge", "too large", 1, size=128)]
    result = generate(prompts, served.target, store, Batch(concurrency=64, attempts=2))
    assert (result.made, result.failed) == (60, 2) and (result.model, result.revision) == ("model", "r1")
    reasons = {failure.id: failure.reason for failure in result.failures}
    assert "NaN in latents" in reasons["bad"] and "img_size" in reasons["huge"]
    records = {record.id: record for record in read_manifest(store.manifest_path)}
    for prompt in prompts[:60]:
        data = store.read(str(records[prompt.id].file))
        assert data == kit.png(prompt.prompt, prompt.seed, 32)
        assert records[prompt.id].sha256 == hashlib.sha256(data or b"").hexdigest()
        assert records[prompt.id].seed == prompt.seed
    assert sorted(painter.painted) == sorted(prompt.prompt for prompt in prompts[:60])
    # Two batches in flight at the start, and the queue's bound found without a storm of refusals.
    assert painter.most_held >= 2 * BATCH and painter.refused <= 30
    assert generate(prompts[:60], served.target, store, Batch()).reused == 60


def test_stopping_frees_the_painter_at_once(
    served: Served, painter: Painter, tmp_path: Path, kit: Any
) -> None:
    store, prompts = BatchFolder(tmp_path, "b"), kit.prompts(2000)
    stopped = generate(
        prompts, served.target, store, Batch(concurrency=16), should_stop=lambda: len(painter.painted) > 20
    )
    assert stopped.stopped and stopped.made < 2000
    kit.eventually(lambda: painter.held == 0)
    rest = generate(prompts[:100], served.target, store, Batch(concurrency=16))
    assert rest.made + rest.reused == 100
