"""The endpoint's client: asks for one image, and believes nothing it has not checked."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict
from raynest_pipeline.images.failures import TRANSPORT_ERRORS, from_exception, from_status
from raynest_pipeline.images.offer import ImageRequest, Offer, offer_from, request_for
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.quality import IncompleteImageError, PngFacts, WrongImageError, check_png
from raynest_pipeline.images.threads import run_in_thread
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch

CONNECT_SECONDS = 10.0
MAX_BODY_BYTES = 64 << 20
"""A longer answer is not an image: a 2048x2048 PNG of noise has 12 MiB."""
READ_BUFFER_BYTES = 1 << 19
"""Of each connection: about an image, so that reading one is not stopped and resumed all the time."""
DESCRIBE_SECONDS = 10.0
"""For /openapi.json and /health, each."""


@dataclass(frozen=True)
class Image:
    """A verified PNG.

    Attributes:
        data: The file's bytes.
        width, height: In pixels.
        sha256: Of `data`, hex.
        seed: The seed the endpoint says it used; None when it does not say.
        model, revision: Of the model, as the answer names them; "" when it does not.
        worker: Which replica or host painted it (X-Raynest-Worker); "" when the answer does not say.
    """

    data: bytes
    width: int
    height: int
    sha256: str
    seed: int | None
    model: str
    revision: str
    worker: str = ""

    @classmethod
    def of(cls, data: bytes, png: PngFacts, headers: Mapping[str, str] | None = None) -> "Image":
        """An image from checked bytes; its facts come from its text chunks, else from the headers."""
        known = headers or {}

        def said(name: str) -> str:
            return png.text.get(name) or known.get(f"X-Raynest-{name.title()}", "")

        seed = said("seed")
        return cls(
            data=data,
            width=png.width,
            height=png.height,
            sha256=hashlib.sha256(data).hexdigest(),
            seed=int(seed) if seed.isascii() and seed.isdigit() and len(seed) < 20 else None,
            model=said("model"),
            revision=said("revision"),
            worker=said("worker")[:200],
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint answered to the request for an image, whatever it is."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Talks to one endpoint over kept-alive connections; use it as an async context manager."""

    def __init__(self, target: HttpTarget, *, connections: int, timeout: float) -> None:
        """
        Args:
            target: Where, and with which credentials.
            connections: The most at a time.
            timeout: Seconds for one attempt at one image, from connecting to the last byte.
        """
        self._target = target
        self._connections = connections
        self._timeout = timeout

    async def __aenter__(self) -> "Client":
        target = self._target
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections + 1, ssl=target.ssl if target.ssl is not None else True
            ),
            headers=dict(target.headers),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            trust_env=not target.loopback,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def describe(self) -> Offer:
        """What the endpoint offers, from /openapi.json and, where that lists it, /health.

        An endpoint without /openapi.json is taken for the stock application.

        Raises:
            RemoteError: No answer, or not now.
            NotReadyError: It documents itself, and has no /imagine.
        """
        try:
            openapi = await self._json("/openapi.json")
        except RemoteError as error:
            if error.status in (404, 405):
                return Offer()
            raise
        if openapi is None:
            return Offer()
        health: Mapping[str, Any] = {}
        if isinstance(openapi.get("paths"), dict) and "/health" in openapi["paths"]:
            health = await self.health()
            if health.get("status") == "busy" and not health.get("model"):
                # The model is part of every image's key, so there is no going on without it.
                raise RemoteError(
                    f"{self._target.url('/health')} does not know its model yet.", verdict=Verdict.RETRYABLE
                )
        offer = offer_from(openapi, health)
        if offer is None:
            paths = ", ".join(sorted(openapi.get("paths") or {})) or "nothing"
            raise NotReadyError(
                f"The endpoint {self._target.base_url} has no GET /imagine.",
                why=f"Its /openapi.json offers: {paths}.",
                fix="Check endpoint.url, or deploy the image application there.",
            )
        return offer

    async def health(self) -> Mapping[str, Any]:
        """What our application's /health says; nothing when that is not a JSON object.

        Raises:
            RemoteError: No answer, none with status 200, or none of this path (404).
        """
        return await self._json("/health") or {}

    async def image(self, request: ImageRequest) -> Image:
        """Ask for one image, once, and check it.

        Raises:
            RemoteError: Classified by `failures`, or the answer is not the image asked for.
        """
        answer = await self.answer(request)
        return await asyncio.to_thread(image_of, request, answer, self.where())

    async def answer(self, request: ImageRequest, seconds: float | None = None) -> Answer:
        """Ask for one image, once; the answer may be anything, and `image_of` tells what.

        Args:
            request: What to ask for.
            seconds: Until the last byte; None: the client's own timeout.

        Raises:
            RemoteError: No whole answer came.
        """
        path = self._target.url("/imagine", request.query)
        async with self.opened(path, accept="image/png", seconds=seconds or self._timeout) as response:
            body = await _limited(response, self.where())
            return Answer(response.status, response.headers, body)

    def where(self, path: str = "/imagine") -> str:
        """The address of `path`, for messages."""
        return self._target.url(path)

    async def _json(self, path: str) -> dict[str, Any] | None:
        """A JSON object; None when the answer is something else."""
        url = self._target.url(path)
        async with self.opened(url, accept="application/json", seconds=DESCRIBE_SECONDS) as response:
            body = await _limited(response, url)
        if response.status != 200:
            raise from_status(response.status, response.headers, body, url)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    @asynccontextmanager
    async def opened(
        self, url: str, *, accept: str, seconds: float, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET `url`, or POST it a JSON body; its transport errors, also while it is read, are classified.

        Raises:
            RemoteError: No connection, not in time, or broken off.
        """
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        headers = {"Accept": accept} | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            # A redirect would carry the credentials elsewhere, and no endpoint of ours sends one.
            async with self._session.request(
                "GET" if body is None else "POST",
                URL(url, encoded=True),
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                server_hostname=self._target.server_hostname,
            ) as response:
                yield response
        except TRANSPORT_ERRORS as error:
            raise from_exception(error, url.split("?")[0]) from error


async def _limited(response: aiohttp.ClientResponse, where: str) -> bytes:
    """The body, unless it is longer than any image."""
    pieces, length = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        length += len(piece)
        if length > MAX_BODY_BYTES:
            response.close()
            raise bad(where, Verdict.PERMANENT, f"the answer is longer than {MAX_BODY_BYTES:,} bytes")
    return b"".join(pieces)


def image_of(request: ImageRequest, answer: Answer, where: str) -> Image:
    """The image that an answer is: checks status, type, and the picture (costs CPU: not for an event loop).

    Raises:
        RemoteError: It is another answer, classified.
    """
    if answer.status != 200:
        raise from_status(answer.status, answer.headers, answer.body, where)
    kind = answer.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if kind != "image/png":
        shown = answer.body[:60].decode("utf-8", "replace")
        reason = f"the answer is {kind or 'of no type'}, not image/png: {shown!r}"
        raise bad(where, Verdict.UNKNOWN, reason)
    try:
        png = check_png(answer.body, request.size)
    except IncompleteImageError as error:
        raise bad(where, Verdict.RETRYABLE, f"the PNG {error}") from None
    except WrongImageError as error:
        if "X-Raynest-Filtered" in answer.headers:
            reason = f"the image {error} ({answer.headers['X-Raynest-Filtered']})"
            raise bad(where, Verdict.PERMANENT, reason) from None
        raise bad(where, Verdict.UNKNOWN, f"the image {error}") from None
    return Image.of(answer.body, png, answer.headers)


def bad(url: str, verdict: Verdict, reason: str) -> RemoteError:
    """The error of an answer that came, and is not what was asked for."""
    return RemoteError(f"{url}: {reason}.", verdict=verdict, code="BadImage", status=200)


def imagine(target: HttpTarget, prompt: Prompt, settings: Batch | None = None) -> Image:
    """One image, one attempt: the walkthrough's last step, and the last proof that an endpoint serves.

    Raises:
        RemoteError: Classified; `waiting.retry` or `wait_for` may repeat it.
        NotReadyError: The endpoint has no /imagine.
    """
    batch = settings or Batch()

    async def work() -> Image:
        async with Client(target, connections=1, timeout=batch.timeout_seconds) as client:
            return await client.image(request_for(prompt, batch, await client.describe()))

    return run_in_thread(work)
