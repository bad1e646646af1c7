"""What may be asked for one image: the fields and limits of GET /imagine and POST /v1/images alike."""

# No `from __future__ import annotations`: pydantic reads the fields' annotations, and they use local names.
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raynest_pipeline.serving.contract import MAX_SEED, ImageFormat, ImageRequest
from raynest_pipeline.serving.encode import MEDIA_TYPES
from raynest_pipeline.serving.options import ServingOptions

MIN_IMG_SIZE = 32
SIZE_STEP = 8
"""The VAE of Stable Diffusion makes one latent of 8x8 pixels."""
MAX_GUIDANCE = 50.0
ECHO_CHARS = 80
"""A 422 repeats at most so much of what was sent."""
MOST_PROBLEMS = 20
"""A 422 tells at most so many: an item of a thousand unknown fields needn't be answered a hundredfold."""


class ImageParameters(BaseModel):
    """One image as a client asks for it. Only the prompt is required; what is left out takes the model's own
    default, the seed a random one. `parameters_model` adds the limits.
    """

    prompt: str
    img_size: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str = ""
    format: ImageFormat | None = None

    def request(self, accept: str) -> ImageRequest:
        """The request for the painter.

        Args:
            accept: The client's Accept header, which chooses the format where `format` does not.
        """
        return ImageRequest(
            prompt=self.prompt,
            seed=secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
            negative_prompt=self.negative_prompt,
            size=self.img_size,
            steps=self.steps,
            guidance=self.guidance,
            format=self.format or accepted_format(accept),
        )


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


def number(value: object) -> object:
    """Anything but JSON's true and false, which Python takes for 1 and 0. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("is true or false, not a number")
    return value


def parameters_model(options: ServingOptions) -> type[ImageParameters]:
    """ImageParameters within the limits of `options`, for the query of GET /imagine."""
    longest = options.max_prompt_chars

    class Parameters(ImageParameters):
        prompt: Annotated[
            str,
            Field(min_length=1, max_length=longest, description="What to paint."),
            AfterValidator(words),
        ]
        img_size: Annotated[
            Annotated[int, Field(ge=MIN_IMG_SIZE, le=options.max_img_size, multiple_of=SIZE_STEP)] | None,
            BeforeValidator(number),
            Field(description="Edge in pixels; the model's native size when left out."),
        ] = None
        seed: Annotated[
            Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
            BeforeValidator(number),
            Field(description="The same seed and values make the same image; a random one when left out."),
        ] = None
        steps: Annotated[
            Annotated[int, Field(ge=1, le=options.max_steps)] | None,
            BeforeValidator(number),
            Field(description="Denoising steps; the model's default when left out."),
        ] = None
        guidance: Annotated[
            Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] | None,
            BeforeValidator(number),
            Field(description="Guidance scale; the model's default when left out."),
        ] = None
        negative_prompt: Annotated[
            str,
            Field(max_length=longest, description="What not to paint."),
            AfterValidator(printable),
        ] = ""
        format: Annotated[
            ImageFormat | None, Field(description="By the Accept header when left out, else png.")
        ] = None

    return Parameters


def item_model(options: ServingOptions) -> type[ImageParameters]:
    """The same, for an item of POST /v1/images: there an unknown field is an error, not a query's extra."""
    base = parameters_model(options)

    class Image(base):  # type: ignore[misc, valid-type]  # the base carries this application's own limits
        model_config = ConfigDict(extra="forbid")

    return Image


_QUALITY = re.compile(r"0(?:\.[0-9]*)?|1(?:\.0*)?")


def accepted_format(accept: str) -> ImageFormat:
    """The format that an Accept header likes best, of several the first of png, webp, jpeg; png also where it
    takes none of them.

    A format that it does not name is rated by `image/*`, else by `*/*` (RFC 9110, 12.5.1).
    """
    rated = dict(filter(None, map(_rated, accept.split(","))))
    likings = {
        name: next((rated[kind] for kind in (media, "image/*", "*/*") if kind in rated), 0.0)
        for name, media in MEDIA_TYPES.items()
    }
    return max(likings, key=likings.__getitem__)


def _rated(entry: str) -> tuple[str, float] | None:
    """A media range and its q, 0 to 1; None when that is no such number."""
    kind, *parameters = (part.strip().lower() for part in entry.split(";"))
    named = (parameter.partition("=") for parameter in parameters)
    quality = next((value.strip() for name, _, value in named if name.strip() == "q"), "1")
    return (kind, float(quality)) if _QUALITY.fullmatch(quality) else None


def problems(issues: Sequence[Any], where: Sequence[str | int] = ()) -> list[dict[str, Any]]:
    """Pydantic's issues as the `detail` of a 422: field, reason, and a piece of the input, since a 100 kB
    prompt needn't travel back. `where` goes before each location.
    """
    return [
        {
            "loc": [part[:ECHO_CHARS] if isinstance(part, str) else part for part in (*where, *issue["loc"])],
            "msg": issue["msg"],
            "type": issue["type"],
            "input": str(issue.get("input"))[:ECHO_CHARS],
        }
        for issue in issues[:MOST_PROBLEMS]
    ]
