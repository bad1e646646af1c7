"""A loopback endpoint in the test's own process that serves, and misbehaves in every way on demand.

It makes what lies beside the tests importable, too.
"""

import asyncio
import hashlib
import io
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from PIL import Image, PngImagePlugin

from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.kube.http import HttpTarget

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from images_loopback import Loopback  # noqa: E402  (needs the path above)

Answer = Callable[["FakeEndpoint", web.Request], Awaitable[web.StreamResponse]]

PARAMETERS = ("prompt", "img_size", "seed", "steps", "guidance", "negative_prompt")


def png(prompt: str, seed: int = 0, size: int = 32, *, blank: bool = False, text: Any = ()) -> bytes:
    """A PNG that depends on its arguments alone."""
    rng = random.Random(hashlib.sha256(f"{prompt}\0{seed}".encode()).digest())
    pixels = b"\x10" * (size * size * 3) if blank else rng.randbytes(size * size * 3)
    info = PngImagePlugin.PngInfo()
    for key, value in dict(text).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(buffer, "PNG", compress_level=1, pnginfo=info)
    return buffer.getvalue()


class FakeEndpoint(Loopback):
    """An image endpoint on a random loopback port. Set its fields to change how it behaves."""

    def __init__(self) -> None:
        super().__init__()
        self.model: str | None = "tiny-untrained (random weights)"
        self.revision = "r1"
        self.openapi = True
        self.delay = 0.0
        self.answer: Answer = FakeEndpoint.good
        """Answers /imagine."""
        self.by_prompt: dict[str, Answer] = {}
        self.down_status: int | None = None
        """Every path answers with this status, as a proxy does before an application that is gone."""
        self.items = 0
        """Images that POST /v1/images takes; 0: there is no such path."""
        self.device, self.dtype = "cpu", "float32"
        """What it paints on and in, as /health says; without a model there is no /health."""
        self.at_once = 0
        """Images painted at a time, as /health says; 0: it does not say."""
        self.bodies: list[list[dict[str, Any]]] = []
        """The items of each POST."""
        self.break_after: int | None = None
        """The next POST's stream breaks off after so many parts."""
        self.many: Answer | None = None
        """Answers POST /v1/images instead."""
        self.requests: Counter[str] = Counter()
        """Requests for an image, by prompt."""
        self.queries: list[dict[str, str]] = []
        self.raw_queries: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.served = 0
        self.in_flight = self.most_in_flight = 0
        self.connections = 0
        self.release = asyncio.Event()
        """Ends the answers that hang."""

    @property
    def target(self) -> HttpTarget:
        return HttpTarget.plain(f"http://127.0.0.1:{self.port}")

    async def good(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        await asyncio.sleep(self.delay)
        size, seed = int(query.get("img_size", 32)), int(query.get("seed", 0))
        headers = {"X-Raynest-Seed": str(seed), "X-Raynest-Revision": self.revision} if self.model else {}
        if self.model:
            headers["X-Raynest-Model"] = self.model
        self.served += 1
        return web.Response(body=png(query["prompt"], seed, size), content_type="image/png", headers=headers)

    async def _imagine(self, request: web.Request) -> web.StreamResponse:
        prompt = request.query.get("prompt", "")
        self.requests[prompt] += 1
        self.queries.append(dict(request.query))
        self.raw_queries.append(request.rel_url.raw_query_string)
        self.headers.append(dict(request.headers))
        if self.down_status is not None:
            return web.Response(status=self.down_status, text="no application")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.by_prompt.get(prompt, self.answer)(self, request)
        finally:
            self.in_flight -= 1

    async def _images(self, request: web.Request) -> web.StreamResponse:
        if self.down_status is not None:
            return web.Response(status=self.down_status, text="no application")
        items = (await request.json())["images"]
        self.bodies.append(items)
        if self.many is not None:
            return await self.many(self, request)
        response = web.StreamResponse(headers={"Content-Type": "multipart/mixed; boundary=b-o"})
        await response.prepare(request)
        tasks = [asyncio.create_task(self._item(request, i, item)) for i, item in enumerate(items)]
        try:
            left, self.break_after = self.break_after, None
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if left == 0:
                        request.transport.abort()  # type: ignore[union-attr]
                        return response
                    left = None if left is None else left - 1
                    await response.write(task.result())
            await response.write(b"--b-o--\r\n")
        finally:
            for task in tasks:
                task.cancel()
        return response

    async def _item(self, request: web.Request, index: int, item: dict[str, Any]) -> bytes:
        """The part that GET /imagine's answer to `item` becomes."""
        query = {name: str(value) for name, value in item.items()}
        url = request.rel_url.with_query(query)
        single: Any = SimpleNamespace(
            query=query, rel_url=url, headers=request.headers, transport=request.transport
        )
        answer = await self._imagine(single)
        assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
        lines = [f"{name}: {value}" for name, value in answer.headers.items() if name != "Content-Length"]
        lines += [f"X-Raynest-Index: {index}", f"X-Raynest-Status: {answer.status}"]
        lines += [f"Content-Length: {len(answer.body)}"]
        return b"--b-o\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body + b"\r\n"

    async def _openapi(self, request: web.Request) -> web.Response:
        if self.down_status is not None:
            return web.Response(status=self.down_status, text="no application")
        if not self.openapi:
            return web.Response(status=404, text="Not Found")
        parameters = [{"name": name, "in": "query", "schema": {}} for name in PARAMETERS]
        paths: dict[str, Any] = {"/imagine": {"get": {"parameters": parameters}}}
        if self.items:
            images = {"type": "array", "maxItems": self.items}
            schema = {"type": "object", "properties": {"images": images}}
            paths["/v1/images"] = {
                "post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}
            }
        if self.model:
            paths["/health"] = {"get": {}}
        return web.json_response({"openapi": "3.1.0", "paths": paths})

    async def _health(self, request: web.Request) -> web.Response:
        if self.down_status is not None:
            return web.Response(status=self.down_status, text="no application")
        if not self.model:
            return web.Response(status=404, text="Not Found")
        facts = {"status": "ok", "device": self.device, "dtype": self.dtype}
        facts |= {"model": self.model, "revision": self.revision, "native_size": 32}
        facts |= {"max_batch_size": self.at_once} if self.at_once else {}
        return web.json_response(facts | {"default_steps": 10, "default_guidance": 7.5})

    def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/imagine", self._imagine)
        app.router.add_post("/v1/images", self._images)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/health", self._health)
        self.serve(app, port, max_line_size=200_000)

    async def _stop(self) -> None:
        self.release.set()
        await super()._stop()


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    fake = FakeEndpoint()
    fake.start()
    yield fake
    fake.close()


@pytest.fixture
def many(endpoint: FakeEndpoint) -> FakeEndpoint:
    """An endpoint that takes requests for up to 8 images."""
    endpoint.items, endpoint.at_once = 8, 4
    return endpoint


def prompts(count: int, start: int = 0) -> list[Prompt]:
    """Prompts p0, p1, ..."""
    return [Prompt(id=f"p{i}", prompt=f"prompt {i}", seed=i) for i in range(start, start + count)]


@contextmanager
def free_port() -> Iterator[int]:
    """A loopback port on which nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition of another thread or process."""
    waiter, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        waiter.wait(0.005)


class _Kit:
    """What test modules need of this file (a conftest cannot be imported by name)."""

    png = staticmethod(png)
    prompts = staticmethod(prompts)
    free_port = staticmethod(free_port)
    eventually = staticmethod(eventually)


@pytest.fixture
def kit() -> type[_Kit]:
    return _Kit
