"""The endpoint's client: asks for one image, and believes nothing it has not checked."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
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
    """

    data: bytes
    width: int
    height: int
    sha256: str
    seed: int | None
    model: str
    revision: str

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
        )


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
            health = await self._json("/health") or {}
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

    async def image(self, request: ImageRequest) -> Image:
        """Ask for one image, once, and check it.

        Raises:
            RemoteError: Classified by `failures`, or the answer is not the image asked for.
        """
        url = self._target.url("/imagine", request.query)
        status, headers, body = await self._get(url, "image/png", self._timeout)
        where = self._target.url("/imagine")
        if status != 200:
            raise from_status(status, headers, body, where)
        kind = headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind != "image/png":
            shown = body[:60].decode("utf-8", "replace")
            reason = f"the answer is {kind or 'of no type'}, not image/png: {shown!r}"
            raise _bad(where, Verdict.UNKNOWN, reason)
        try:
            png = await asyncio.to_thread(check_png, body, request.size)
        except IncompleteImageError as error:
            raise _bad(where, Verdict.RETRYABLE, f"the PNG {error}") from None
        except WrongImageError as error:
            if "X-Raynest-Filtered" in headers:
                reason = f"the image {error} ({headers['X-Raynest-Filtered']})"
                raise _bad(where, Verdict.PERMANENT, reason) from None
            raise _bad(where, Verdict.UNKNOWN, f"the image {error}") from None
        return Image.of(body, png, headers)

    async def _json(self, path: str) -> dict[str, Any] | None:
        """A JSON object; None when the answer is something else."""
        url = self._target.url(path)
        status, headers, body = await self._get(url, "application/json", DESCRIBE_SECONDS)
        if status != 200:
            raise from_status(status, headers, body, url)
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return None
        return answer if isinstance(answer, dict) else None

    async def _get(self, url: str, accept: str, seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        try:
            # A redirect would carry the credentials elsewhere, and no endpoint of ours sends one.
            async with self._session.get(
                URL(url, encoded=True),
                headers={"Accept": accept},
                timeout=timeout,
                allow_redirects=False,
                server_hostname=self._target.server_hostname,
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        answer.close()
                        reason = f"the answer is longer than {MAX_BODY_BYTES:,} bytes"
                        raise _bad(url.split("?")[0], Verdict.PERMANENT, reason)
                return answer.status, answer.headers, bytes(body)
        except TRANSPORT_ERRORS as error:
            raise from_exception(error, url.split("?")[0]) from error


def _bad(url: str, verdict: Verdict, reason: str) -> RemoteError:
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
