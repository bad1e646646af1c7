"""Whole batches through POST /v1/images, for tests."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.offer import Offer
from raynest_pipeline.images.result import BatchResult
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff

FAST = Backoff(first=0.01, factor=1.0, most=0.01, jitter=0.0)
SETTINGS = Batch(concurrency=16, timeout_seconds=20, attempts=3)
OFFER = Offer(parameters=frozenset({"prompt", "seed", "img_size"}), documented=True, items=64)


class Bench:
    """A batch folder and an endpoint to fill it from."""

    def __init__(self, root: Path, endpoint: Any) -> None:
        self.endpoint = endpoint
        self.store = BatchFolder(root, "b")

    def run(self, prompts: Any, settings: Batch = SETTINGS, **options: Any) -> BatchResult:
        chosen: dict[str, Any] = {"backoff": FAST, "unreachable_after": 1.0, **options}
        return generate(prompts, self.endpoint.target, self.store, settings, **chosen)

    def check_exact(self, prompts: list[Any]) -> None:
        """Every prompt has one image, recorded once and whole."""
        lines = [json.loads(line) for line in self.store.manifest_path.read_text().splitlines()]
        settled = sorted(line["id"] for line in lines if line["status"] != "failed")
        assert settled == sorted(prompt.id for prompt in prompts)
        for record in read_manifest(self.store.manifest_path):
            data = self.store.read(str(record.file))
            assert data is not None and hashlib.sha256(data).hexdigest() == record.sha256


async def until_let_go(fake: Any, request: Any) -> web.Response:
    """Hang until the client closes its connection."""
    while not fake.release.is_set() and request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
    return web.Response(status=500, body=b"")
