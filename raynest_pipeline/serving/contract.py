"""What is asked of the painter and what comes back: plain values that travel between replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

ImageFormat = Literal["png", "webp", "jpeg"]

MAX_SEED = 2**63 - 1
"""torch.Generator takes a signed 64-bit seed."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image, already validated. None leaves a value to the model's own default."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    size: int | None = None
    """Edge in pixels."""
    steps: int | None = None
    guidance: float | None = None
    format: ImageFormat = "png"


@dataclass(frozen=True, slots=True)
class Painting:
    """One finished image: its bytes and everything needed to make it again."""

    data: bytes
    format: ImageFormat
    seed: int
    size: int
    steps: int
    guidance: float
    model: str
    revision: str
    device: str
    seconds: float
    """Time of the pipeline call that made the whole batch."""
    batch: int
    """Images in that batch."""
    filtered: bool = False
    """The model's own safety checker blacked the image out."""
    made_with: dict[str, str] = field(default_factory=dict)
    """What else changes the picture: `scheduler`, and `vae` where it is not the model's own."""
    replica: str = ""
    """Serve's id of the replica that painted it."""


@dataclass(frozen=True, slots=True)
class PainterFacts:
    """What a model replica says about itself."""

    model: str
    revision: str
    device: str
    device_note: str | None
    dtype: str
    warm: bool
    warm_up_s: float
    load_s: float
    native_size: int
    """Edge in pixels of an image that is asked for without a size."""
    default_steps: int
    default_guidance: float
    max_batch_size: int
    """Images per pipeline call, as the options say."""
    batch_limits: dict[str, int] = field(default_factory=dict)
    """Edge in pixels -> images per pipeline call, for the sizes at which memory has run out."""
    replica: str = ""
    """Serve's id of the replica that tells this; there may be others."""
    waiting: int = 0
    """Images in this replica's queue, without those on the device."""
    images_painted: int = 0
    """Images that have cost device time on this replica since it started, delivered or not."""
    speed: dict[str, Any] = field(default_factory=dict)
    """Precision aside, what makes it fast and which shapes are warm (see speed.Speed), and the work done."""
    device_failure: str | None = None
    """Why the device paints no more; Serve is about to replace the replica."""


def in_full(value: float) -> str:
    """A number as short as it goes and still the very same: who reads it makes the same image with it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


class PaintingFailed(Exception):
    """The pipeline failed on a valid request; the message says how."""


class PainterBusy(Exception):
    """The queue is full: the caller should come back later."""


class PainterUnavailable(Exception):
    """No model replica can be reached, or its device has failed; the message says why."""


class PainterBackend(Protocol):
    """How the HTTP layer reaches the model: through a Serve handle, or directly in a test."""

    async def paint(self, request: ImageRequest) -> Painting:
        """Paint one image. Raises PainterBusy, PainterUnavailable, PaintingFailed, or TimeoutError when the
        deadline passed in the queue. Cancelling it takes the image out of the queue.
        """
        ...

    async def facts(self) -> PainterFacts:
        """The replica's facts. Raises PainterBusy or PainterUnavailable."""
        ...
