"""The HTTP face, free of Ray: validation, status codes, headers. A Serve ingress or a test gives it a
backend.
"""

# No `from __future__ import annotations`: FastAPI reads the routes' annotations, and they use local names.
import asyncio
import dataclasses
import math
import secrets
import time
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator

from raynest_pipeline.serving.contract import (
    MAX_SEED,
    ImageFormat,
    ImageRequest,
    PainterBackend,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.encode import MEDIA_TYPES
from raynest_pipeline.serving.options import ServingOptions

MIN_IMG_SIZE = 32
SIZE_STEP = 8
"""The VAE of Stable Diffusion makes one latent of 8x8 pixels."""
MAX_GUIDANCE = 50.0
ECHO_CHARS = 80
"""A 422 repeats at most so much of what was sent."""
FACTS_TIMEOUT_S = 2.0
"""How long /health waits behind a full queue before it answers with what it last knew."""


class Front:
    """Counts what is in work, bounds it in time, and remembers the painter's last facts for a busy moment."""

    def __init__(self, backend: PainterBackend, deadline_s: float) -> None:
        self._backend = backend
        self._deadline_s = deadline_s
        self._last_facts: PainterFacts | None = None
        self._seconds_per_image = 1.0
        self.in_work = 0
        self.images_served = 0

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, 1..60: what an image has lately taken from request to answer."""
        return min(60, max(1, math.ceil(self._seconds_per_image)))

    async def paint(self, request: ImageRequest) -> Painting:
        """Paint within the deadline. Raises TimeoutError and what the backend raises."""
        started = time.monotonic()
        self.in_work += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                painting = await self._backend.paint(request)
        finally:
            self.in_work -= 1
        self.images_served += 1
        self._seconds_per_image += 0.2 * (time.monotonic() - started - self._seconds_per_image)
        return painting

    async def health(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of /health."""
        status = "ok"
        try:
            async with asyncio.timeout(FACTS_TIMEOUT_S):
                self._last_facts = await self._backend.facts()
        except (TimeoutError, PainterBusy):
            status = "busy"
        except PainterUnavailable as error:
            return 503, {"status": "failed", "detail": str(error), **self._counts()}
        facts = dataclasses.asdict(self._last_facts) if self._last_facts else {}
        return 200, {"status": status, **facts, **self._counts()}

    def _counts(self) -> dict[str, int]:
        return {"queue_depth": self.in_work, "images_served": self.images_served}


def create_api(backend: PainterBackend, options: ServingOptions) -> FastAPI:
    """The FastAPI application over `backend`. Limits in `options` appear in its OpenAPI description."""
    api = FastAPI(
        title="raynest image service", version="1", description="Images from prompts, on Ray Serve."
    )
    front = Front(backend, options.deadline_s)
    api.add_exception_handler(RequestValidationError, answer_invalid)
    text = {"max_length": options.max_prompt_chars}

    @api.get("/imagine", response_class=Response, responses=IMAGINE_RESPONSES)
    async def imagine(
        request: Request,
        prompt: Annotated[str, Query(min_length=1, **text), AfterValidator(words)],
        img_size: Annotated[
            int | None, Query(ge=MIN_IMG_SIZE, le=options.max_img_size, multiple_of=SIZE_STEP)
        ] = None,
        seed: Annotated[int | None, Query(ge=0, le=MAX_SEED)] = None,
        steps: Annotated[int | None, Query(ge=1, le=options.max_steps)] = None,
        guidance: Annotated[float | None, Query(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] = None,
        negative_prompt: Annotated[str, Query(**text), AfterValidator(printable)] = "",
        format: Annotated[ImageFormat | None, Query()] = None,
    ) -> Response:
        """Paint one image. Only `prompt` is required; what is left out takes the model's own default, the
        seed a random one.
        """
        wanted = ImageRequest(
            prompt=prompt,
            seed=secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
            negative_prompt=negative_prompt,
            size=img_size,
            steps=steps,
            guidance=guidance,
            format=format or accepted_format(request.headers.get("accept", "")),
        )
        return await answer(front, wanted)

    @api.get("/health")
    async def health() -> JSONResponse:
        """The model, its device and how busy it is.

        503 when it cannot be reached or its device has failed.
        """
        status, body = await front.health()
        return JSONResponse(body, status_code=status)

    return api


def printable(text: str) -> str:
    """Text without NUL, which would end it early in the PNG. Raises ValueError."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def words(text: str) -> str:
    """Text that says something. Raises ValueError."""
    if not text.strip():
        raise ValueError("holds nothing but white space")
    return printable(text)


async def answer(front: Front, wanted: ImageRequest) -> Response:
    """Paint and turn every outcome into its HTTP answer."""
    try:
        painting = await front.paint(wanted)
    except PainterBusy as error:
        return refuse(503, str(error), front.retry_after_s)
    except PainterUnavailable as error:
        return refuse(503, str(error), front.retry_after_s)
    except TimeoutError:
        return refuse(
            504, "the deadline passed before the image was painted; ask for fewer steps or come back later"
        )
    except PaintingFailed as error:
        return refuse(500, str(error))
    return Response(painting.data, media_type=MEDIA_TYPES[painting.format], headers=headers_of(painting))


def refuse(status: int, reason: str, retry_after_s: int | None = None) -> JSONResponse:
    """An error answer in FastAPI's own shape."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"detail": reason}, status_code=status, headers=headers)


def headers_of(painting: Painting) -> dict[str, str]:
    """How to make the image again, as headers; what HTTP's latin-1 cannot carry is backslash-escaped."""
    values = {
        "Seed": painting.seed,
        "Model": painting.model,
        "Revision": painting.revision,
        "Steps": painting.steps,
        "Guidance": f"{painting.guidance:g}",
        "Size": painting.size,
        "Device": painting.device,
        "Seconds": painting.seconds,
        "Batch": painting.batch,
    }
    if painting.filtered:
        values["Filtered"] = "safety checker"
    return {
        f"X-Raynest-{name}": str(value).encode("ascii", "backslashreplace").decode("ascii")
        for name, value in values.items()
    }


def accepted_format(accept: str) -> ImageFormat:
    """The format that an Accept header asks for: webp or jpeg only where PNG is not also welcome."""
    kinds = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    if kinds & {"image/png", "image/*", "*/*", ""}:
        return "png"
    return "webp" if "image/webp" in kinds else "jpeg" if "image/jpeg" in kinds else "png"


async def answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    """422 with field and reason. Only a piece of the input is echoed: a 100 kB prompt needn't travel back."""
    issues = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [
        {
            "loc": list(issue["loc"]),
            "msg": issue["msg"],
            "type": issue["type"],
            "input": str(issue.get("input"))[:ECHO_CHARS],
        }
        for issue in issues
    ]
    return JSONResponse({"detail": detail}, status_code=422)


IMAGINE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {media: {} for media in MEDIA_TYPES.values()},
        "description": "The image; X-Raynest-* headers say how it was made.",
    },
    500: {"description": "The pipeline failed on a valid request."},
    503: {"description": "The queue is full or no model replica is up; Retry-After says when to come back."},
    504: {"description": "The deadline passed."},
}
