"""A painter without a model, and the application over it, for tests of the HTTP contract."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import numpy as np

from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import ImageRequest, PainterFacts, Painting
from raynest_pipeline.serving.encode import encode
from raynest_pipeline.serving.options import ServingOptions

FACTS = PainterFacts(
    model="stand-in",
    revision="1",
    device="cpu",
    device_note=None,
    dtype="float32",
    warm=True,
    warm_up_s=0.1,
    load_s=0.2,
    native_size=64,
    default_steps=20,
    default_guidance=7.5,
    max_batch_size=8,
)


class StandIn:
    """A backend that records what it is asked and paints a flat square, or does what `instead` does."""

    def __init__(self, instead: Callable[[], Awaitable[None]] | None = None) -> None:
        self.asked: list[ImageRequest] = []
        self._instead = instead

    async def paint(self, request: ImageRequest) -> Painting:
        self.asked.append(request)
        if self._instead:
            await self._instead()
        size = request.size or 64
        data = encode(np.full((size, size, 3), 128, np.uint8), request.format, {"prompt": request.prompt})
        return Painting(
            data=data,
            format=request.format,
            seed=request.seed,
            size=size,
            steps=request.steps or 20,
            guidance=7.5 if request.guidance is None else request.guidance,
            model="stand-in",
            revision="1",
            device="cpu",
            seconds=0.5,
            batch=3,
        )

    async def facts(self) -> PainterFacts:
        if self._instead:
            await self._instead()
        return FACTS


def failing(error: Exception) -> StandIn:
    async def fail() -> None:
        raise error

    return StandIn(fail)


def get(
    backend: StandIn,
    params: dict[str, str | int | float],
    path: str = "/imagine",
    options: ServingOptions | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_api(backend, options or ServingOptions()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, params=params, headers=headers)

    return asyncio.run(ask())
