"""An image endpoint that costs nothing: real PNGs from a pool, at a pace that is set.

python benchmarks/endpoint.py --batch 8 --seconds 0.25 --queue 64 [--processes 2] [--pixels 512]

It answers as the Serve application does (GET /imagine, POST /v1/images, /health, /openapi.json): one batch is
in work at a time, takes its seconds whatever its size, the queue is bounded, and one more is answered 503
with Retry-After. Prints its address when it listens, and ends with its standard input. With several
processes, each is an endpoint of its own behind one port (the kernel deals out connections): for seconds 0.
"""

import argparse
import asyncio
import io
import json
import math
import os
import random
import socket
import sys
from typing import Any

from aiohttp import web

POOL = 16
PARAMETERS = ("prompt", "img_size", "seed", "steps", "guidance", "negative_prompt")
MAX_ITEMS = 64
BOUNDARY = "raynest-part"


def picture(pixels: int, seed: int) -> bytes:
    """A picture with the texture of a photograph: at 512 pixels a PNG of about 500 kB."""
    from PIL import Image

    noise = Image.frombytes("RGB", (pixels, pixels), random.Random(seed).randbytes(pixels * pixels * 3))
    smooth = Image.radial_gradient("L").rotate(seed * 23).resize((pixels, pixels)).convert("RGB")
    buffer = io.BytesIO()
    Image.blend(smooth, noise, 0.1).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


class Endpoint:
    """Paints batches of up to `batch` images in `seconds`; holds `queue` more."""

    def __init__(self, pool: list[bytes], pixels: int, batch: int, seconds: float, queue: int) -> None:
        self._pool, self._pixels = pool, pixels
        self._batch, self._seconds, self._queue = batch, seconds, queue
        self._waiting: list[asyncio.Future[None]] = []
        self._in_work = 0
        self._come = asyncio.Event()
        self.served = 0
        facts = {"Model": "bench", "Revision": "r1", "Steps": 25, "Guidance": "7.5", "Size": pixels}
        facts |= {"Device": "none", "Seconds": seconds, "Batch": batch}
        self._headers = {f"X-Raynest-{name}": str(value) for name, value in facts.items()}
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items())

    async def paint(self) -> None:
        """The painter: a batch in work, then the next."""
        while True:
            await self._come.wait()
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            if not self._waiting:
                self._come.clear()
            self._in_work = len(batch)
            await asyncio.sleep(self._seconds)
            self._in_work = 0
            for one in batch:
                if not one.done():
                    one.set_result(None)

    def take(self) -> "asyncio.Future[None] | None":
        """A place in the queue, done when the image is; None when it is full."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._seconds == 0:
            done.set_result(None)
        elif len(self._waiting) >= self._queue:
            return None
        else:
            self._waiting.append(done)
            self._come.set()
        return done

    @property
    def _retry_after(self) -> str:
        return str(min(60, max(1, math.ceil(self._seconds * (1 + len(self._waiting) / self._batch)))))

    async def imagine(self, request: web.Request) -> web.Response:
        """GET /imagine."""
        done = self.take()
        if done is None:
            return web.json_response(
                {"detail": "the queue is full"}, status=503, headers={"Retry-After": self._retry_after}
            )
        await done
        self.served += 1
        seed = int(request.query.get("seed", 0))
        headers = self._headers | {"X-Raynest-Seed": str(seed)}
        return web.Response(body=self._pool[seed % POOL], content_type="image/png", headers=headers)

    async def images(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/images."""
        items = json.loads(await request.read())["images"]
        places = [self.take() for _ in items]
        if not any(places):
            return web.json_response(
                {"detail": "the queue is full"}, status=503, headers={"Retry-After": self._retry_after}
            )
        response = web.StreamResponse(headers={"Content-Type": f'multipart/mixed; boundary="{BOUNDARY}"'})
        await response.prepare(request)
        parts = [self._refused(index) for index, place in enumerate(places) if place is None]
        waiting = {place: index for index, place in enumerate(places) if place is not None}
        while waiting or parts:
            if parts:
                await response.write(b"".join(parts))
                parts = []
            if waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for index in sorted(waiting.pop(place) for place in done):
                    parts += self._part(index, int(items[index].get("seed", 0)))
        await response.write(f"--{BOUNDARY}--\r\n".encode())
        return response

    def _part(self, index: int, seed: int) -> list[bytes]:
        self.served += 1
        data = self._pool[seed % POOL]
        head = (
            f"--{BOUNDARY}\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n"
            f"X-Raynest-Index: {index}\r\nX-Raynest-Status: 200\r\nX-Raynest-Seed: {seed}\r\n"
        )
        return [(head + self._lines + "\r\n").encode(), data, b"\r\n"]

    def _refused(self, index: int) -> bytes:
        detail = '{"detail": "the queue is full"}'
        return (
            f"--{BOUNDARY}\r\nContent-Type: application/json\r\nContent-Length: {len(detail)}\r\n"
            f"X-Raynest-Index: {index}\r\nX-Raynest-Status: 503\r\nRetry-After: {self._retry_after}\r\n\r\n"
            f"{detail}\r\n"
        ).encode()

    async def health(self, _: web.Request) -> web.Response:
        """What our application tells of itself."""
        return web.json_response(
            {
                "status": "ok",
                "model": "bench",
                "revision": "r1",
                "native_size": self._pixels,
                "default_steps": 25,
                "default_guidance": 7.5,
                "max_batch_size": self._batch,
                "images_served": self.served,
            }
        )

    async def openapi(self, _: web.Request) -> web.Response:
        """The part of its OpenAPI description that a client reads."""
        query = [{"name": name, "in": "query", "schema": {}} for name in PARAMETERS]
        images = {"type": "array", "maxItems": MAX_ITEMS, "items": {}}
        schema = {"type": "object", "properties": {"images": images}}
        body: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
        paths = {
            "/imagine": {"get": {"parameters": query}},
            "/v1/images": {"post": {"requestBody": body}},
            "/health": {"get": {}},
        }
        return web.json_response({"openapi": "3.1.0", "paths": paths})

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=8 << 20)
        app.router.add_get("/imagine", self.imagine)
        app.router.add_post("/v1/images", self.images)
        app.router.add_get("/health", self.health)
        app.router.add_get("/openapi.json", self.openapi)
        return app


async def serve(listener: socket.socket, endpoint: Endpoint, *, parent: bool) -> None:
    """Serve until standard input ends (the first process) or the first process is gone."""
    runner = web.AppRunner(endpoint.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    painter = asyncio.create_task(endpoint.paint())
    try:
        if parent:
            print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
            await asyncio.to_thread(sys.stdin.read)
        else:
            first = os.getppid()
            while os.getppid() == first:
                await asyncio.sleep(0.5)
    finally:
        painter.cancel()
        await runner.cleanup()


def listening(port: int) -> socket.socket:
    """A loopback socket that several processes may share."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="An image endpoint that costs nothing.")
    parser.add_argument("--batch", type=int, default=8, help="images painted at a time")
    parser.add_argument("--seconds", type=float, default=0.25, help="for a batch; 0: at once")
    parser.add_argument("--queue", type=int, default=64, help="images that may wait")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    pool = [picture(given.pixels, seed) for seed in range(POOL)]
    listener, parent = listening(0), True
    for _ in range(given.processes - 1):
        if os.fork() == 0:
            port = listener.getsockname()[1]
            listener.close()
            listener, parent = listening(port), False
            break
    endpoint = Endpoint(pool, given.pixels, given.batch, given.seconds, given.queue)
    asyncio.run(serve(listener, endpoint, parent=parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
