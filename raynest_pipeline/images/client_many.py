"""The endpoint's way to ask for many images at once: POST /v1/images, answered part by part.

The answer is `multipart/mixed`, one part for each image in the order in which they are done. Each part
says which image it is (X-Raynest-Index) and what GET /imagine would have answered (X-Raynest-Status).
"""

import json
from collections.abc import Callable, Sequence

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from raynest_pipeline.errors import RemoteError, Verdict
from raynest_pipeline.images.client import MAX_BODY_BYTES, Answer, Client, bad
from raynest_pipeline.images.failures import from_status
from raynest_pipeline.images.offer import MANY_PATH, ImageRequest

NOT_OFFERED = frozenset({404, 405, 413, 415, 422, 501})
"""Answers to the request as a whole that say: not this way."""
MAX_ERROR_BYTES = 1 << 20
_PIECE = 1 << 20

OnAnswer = Callable[[int, Answer], None]


async def ask_many(
    client: Client, requests: Sequence[ImageRequest], on_answer: OnAnswer, *, seconds: float
) -> None:
    """Ask for several images in one request.

    Args:
        client: Of the endpoint.
        requests: At most as many as the endpoint's offer allows.
        on_answer: Called with the position in `requests` and the answer, once for each that comes.
        seconds: Until the last byte of the last image.

    Raises:
        RemoteError: The request failed as a whole, or its answer broke off: images that `on_answer` has
            not been told of did not come.
    """
    where = client.where(MANY_PATH)
    body = json.dumps({"images": [dict(request.query) for request in requests]}).encode()
    async with client.opened(
        where, accept="multipart/mixed, image/png", seconds=seconds, body=body
    ) as response:
        kind = response.headers.get("Content-Type", "")
        if response.status != 200:
            text = await response.content.read(MAX_ERROR_BYTES)
            raise from_status(response.status, response.headers, text, where)
        if not kind.lower().startswith("multipart/"):
            raise bad(where, Verdict.UNKNOWN, f"the answer is {kind or 'of no type'}, not multipart/mixed")
        try:
            missing = await _read(response, len(requests), on_answer, where)
        except (ValueError, HttpProcessingError) as error:
            # What aiohttp's reader says of a stream that ends, or goes wrong, between its boundaries.
            raise bad(where, Verdict.RETRYABLE, f"the answer broke off ({str(error)[:100]})") from None
        if missing:
            raise bad(where, Verdict.RETRYABLE, f"the answer ended without {missing} of its images")


async def _read(response: aiohttp.ClientResponse, count: int, on_answer: OnAnswer, where: str) -> int:
    """Hand over the parts as they come; how many of `count` did not."""
    reader = aiohttp.MultipartReader(response.headers, response.content)
    missing = set(range(count))
    while (part := await reader.next()) is not None:
        if isinstance(part, aiohttp.MultipartReader):
            raise ValueError("a part within a part")
        index, status = _number(part, "X-Raynest-Index"), _number(part, "X-Raynest-Status")
        if index not in missing:
            raise ValueError(f"image {index} was not asked for, or came twice")
        body = await _body(part, where)
        missing.remove(index)
        on_answer(index, Answer(status, part.headers, body))
    return len(missing)


async def _body(part: aiohttp.BodyPartReader, where: str) -> bytes:
    pieces, length = [], 0
    while not part.at_eof():
        # In pieces as large as they come: the reader's own pieces of 8 kB cost more than all the rest.
        piece = await part.read_chunk(_PIECE)
        pieces.append(piece)
        length += len(piece)
        if length > MAX_BODY_BYTES:
            raise bad(where, Verdict.RETRYABLE, f"an image is longer than {MAX_BODY_BYTES:,} bytes")
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


def _number(part: aiohttp.BodyPartReader, header: str) -> int:
    value = part.headers.get(header, "")
    if not (value.isascii() and value.isdigit() and len(value) < 6):
        raise ValueError(f"a part has no {header}")
    return int(value)


def not_offered(error: RemoteError) -> bool:
    """Whether a failed request for many says that the endpoint does not take such requests."""
    return error.status in NOT_OFFERED
