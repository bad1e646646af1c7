"""One image from request to HTTP answer: counted, bounded in time, and every outcome with its status."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi.responses import JSONResponse, Response

from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBackend,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
    in_full,
)
from raynest_pipeline.serving.encode import MEDIA_TYPES

FACTS_TIMEOUT_S = 2.0
"""How long /health waits behind a full queue before it answers with what it last knew."""
SILENT_S = 30.0
"""When no model replica has answered anything for so long, it is not busy but gone: Serve keeps requests
waiting while there is none, and tells nobody.
"""

LOADING = "no model replica has answered yet: the first one is loading, or waits for room on the cluster"


class FaceMeter(Protocol):
    """Who is told of images and requests."""

    def image(self, outcome: str) -> None:
        """One image more: painted, failed, invalid, refused, unavailable, expired or cancelled."""
        ...

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request to `path`, answered with `status` after so long; 499 when the client went away."""
        ...


class NoMeter:
    """Counts nothing: outside a Serve replica."""

    def image(self, outcome: str) -> None:
        """Forget it."""

    def request(self, path: str, status: int, seconds: float) -> None:
        """Forget it."""


class Front:
    """Counts what is in work, bounds it in time, and remembers the painter's last facts for a busy moment."""

    def __init__(
        self,
        backend: PainterBackend,
        deadline_s: float,
        meter: FaceMeter | None = None,
        most_held: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        backend: Who paints.
        deadline_s: Seconds for one image.
        meter: Told of each image's outcome.
        most_held: Images that may be in work at a time, and that all POST requests together may hold, painted
            or not, before they are sent. More than the painter takes: it is for when there is none, and
            nobody refuses.
        clock: Monotonic seconds.
        """
        self._backend = backend
        self._deadline_s = deadline_s
        self.meter: FaceMeter = meter or NoMeter()
        self._most_held = most_held
        self._clock = clock
        self._held = 0
        self._silent_since: float | None = None
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
        if self.in_work >= self._most_held:
            self.meter.image("refused")
            raise PainterBusy(f"the queue is full: {self.in_work} images are in work or waiting")
        started = self._clock()
        outcome = "failed"
        self.in_work += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                painting = await self._backend.paint(request)
            outcome = "painted"
            self._silent_since = None
        except PainterBusy:
            outcome = "refused"
            self._silent_since = None
            raise
        except PainterUnavailable:
            outcome = "unavailable"
            raise
        except TimeoutError:
            outcome = "expired"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.in_work -= 1
            self.meter.image(outcome)
        self.images_served += 1
        self._seconds_per_image += 0.2 * (self._clock() - started - self._seconds_per_image)
        return painting

    @contextmanager
    def holding(self, images: int) -> Iterator[None]:
        """The images of one POST, until they are sent: a client that reads slowly must not fill the memory.
        Serve's proxy takes in at once what is sent, and keeps it for a slow reader itself; there this bounds
        what waits to be painted.

        Raises PainterBusy when all such requests together would hold too many.
        """
        if self._held + images > self._most_held:
            for _ in range(images):
                self.meter.image("refused")
            raise PainterBusy(f"the queue is full: {self._held} images of other requests are not yet sent")
        self._held += images
        try:
            yield
        finally:
            self._held -= images

    async def health(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of /health."""
        status = "ok"
        try:
            async with asyncio.timeout(FACTS_TIMEOUT_S):
                self._last_facts = await self._backend.facts()
            self._silent_since = None
        except PainterBusy:
            status = "busy"
        except TimeoutError:
            status = "busy"
            if (silent_s := self._silent_for()) >= SILENT_S and self._last_facts:
                detail = f"no model replica has answered for {silent_s:.0f} s: it is loading, or gone"
                return 503, {"status": "failed", "detail": detail, **self._counts()}
        except (PainterUnavailable, PaintingFailed) as error:
            return 503, {"status": "failed", "detail": str(error), **self._counts()}
        if self._last_facts is None:
            return 503, {"status": "loading", "detail": LOADING, **self._counts()}
        facts = dataclasses.asdict(self._last_facts)
        if failure := facts.get("device_failure"):
            detail = f"the device failed: {failure}"
            return 503, {"status": "failed", "detail": detail, **facts, **self._counts()}
        return 200, {"status": status, **facts, **self._counts()}

    def _silent_for(self) -> float:
        """Seconds since the first of the calls that nobody has answered since."""
        now = self._clock()
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since

    def _counts(self) -> dict[str, int]:
        return {"queue_depth": self.in_work, "images_served": self.images_served}


async def answer(front: Front, wanted: ImageRequest) -> Response:
    """Paint and turn every outcome into its HTTP answer."""
    try:
        painting = await front.paint(wanted)
    except (PainterBusy, PainterUnavailable) as error:
        return refuse(503, str(error), front.retry_after_s)
    except TimeoutError:
        return refuse(
            504, "the deadline passed before the image was painted; ask for fewer steps or come back later"
        )
    except PaintingFailed as error:
        return refuse(500, str(error))
    return Response(painting.data, media_type=MEDIA_TYPES[painting.format], headers=headers_of(painting))


def refuse(status: int, reason: Any, retry_after_s: int | None = None) -> JSONResponse:
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
        "Guidance": in_full(painting.guidance),
        "Size": painting.size,
        "Device": painting.device,
        "Seconds": painting.seconds,
        "Batch": painting.batch,
        **{name.title(): value for name, value in painting.made_with.items()},
    }
    if painting.replica:
        values["Worker"] = painting.replica
    if painting.filtered:
        values["Filtered"] = "safety checker"
    return {
        f"X-Raynest-{name}": str(value).encode("ascii", "backslashreplace").decode("ascii")
        for name, value in values.items()
    }
