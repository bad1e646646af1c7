"""POST /v1/images: many images over one connection, each sent as soon as it is painted.

The items go to the painter one by one, like as many GET requests: the queue takes them in their order among
everybody else's, fills its batches with them, and refuses those for which it has no room.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence

from fastapi.responses import Response
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from raynest_pipeline.serving.contract import ImageRequest, PainterBusy
from raynest_pipeline.serving.front import Front, answer, refuse
from raynest_pipeline.serving.parameters import ECHO_CHARS, ImageParameters, problems

logger = logging.getLogger("ray.serve")

Item = ImageRequest | Response
"""What to paint, or the answer to an item that cannot be."""


class BadBody(Exception):
    """The request as a whole makes no sense; `detail` is what its 422 says."""

    def __init__(self, where: Sequence[str | int], reason: str, kind: str, sent: object = "") -> None:
        super().__init__(reason)
        self.detail = problems([{"loc": where, "msg": reason, "type": kind, "input": sent}])


async def read_items(
    request: Request, model: type[ImageParameters], most_images: int, most_bytes: int
) -> list[Item]:
    """The items of the body, each validated for itself. Raises BadBody."""
    images = parse(await read_body(request, most_bytes), most_images)
    accept = request.headers.get("accept", "")
    return [item_of(image, index, model, accept) for index, image in enumerate(images)]


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body, up to `most_bytes`. Raises BadBody beyond."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise BadBody(["body"], f"is longer than {most_bytes} bytes", "too_long")
    return bytes(body)


def parse(body: bytes, most_images: int) -> list[object]:
    """The list under "images". Raises BadBody."""
    try:
        document = from_json(body)
    except ValueError as error:
        raise BadBody(["body"], f"is not JSON: {error}", "json_invalid", body[:ECHO_CHARS]) from None
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise BadBody(["body", "images"], "a list of images is required", "list_type", document)
    if extra := sorted(set(document) - {"images"}):
        raise BadBody(["body", extra[0]], "unknown field", "extra_forbidden", document[extra[0]])
    images: list[object] = document["images"]
    if not 1 <= len(images) <= most_images:
        reason = f"has {len(images)} images; 1 to {most_images} may be asked for at once"
        raise BadBody(["body", "images"], reason, "too_long" if images else "too_short")
    return images


def item_of(image: object, index: int, model: type[ImageParameters], accept: str) -> Item:
    """The item's request, or its 422."""
    try:
        return model.model_validate(image).request(accept)
    except ValidationError as error:
        return refuse(422, problems(error.errors(include_context=False), ["body", "images", index]))


def most_bytes(images: int, prompt_chars: int) -> int:
    r"""No valid body is longer: a character takes up to 12 bytes (two \uXXXX), the rest of an item 4 kB."""
    return images * (2 * 12 * prompt_chars + 4096) + 4096


class ManyImages(Response):
    """The multipart answer. It starts with the first item that the queue has taken, and ends with the closing
    boundary once every item is answered; however it ends, nothing of it is painted any more.
    """

    def __init__(self, front: Front, items: Sequence[Item]) -> None:
        super().__init__()
        self._front = front
        self._items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Paint and send. Being cancelled (the client went away) cancels every item."""
        try:
            with self._front.holding(len(self._items)):
                await self._paint_and_send(scope, receive, send)
        except PainterBusy as error:
            await refuse(503, str(error), self._front.retry_after_s)(scope, receive, send)

    async def _paint_and_send(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = {
            asyncio.create_task(settle(self._front, item)): index for index, item in enumerate(self._items)
        }
        try:
            parts = completed(tasks)
            first, accepted = await until_accepted(parts, [isinstance(i, Response) for i in self._items])
            if not accepted:
                refusals = [response for _, response in first if response.status_code == 503]
                await refusals[0](scope, receive, send)
                return
            await send_parts(first, parts, send)
        finally:
            for task in tasks:
                task.cancel()


async def settle(front: Front, item: Item) -> Response:
    """The answer to one item, as GET /imagine would have given it."""
    if isinstance(item, Response):
        front.meter.image("invalid")
        return item
    return await answer(front, item)


async def completed(tasks: dict[asyncio.Task[Response], int]) -> AsyncIterator[tuple[int, Response]]:
    """Index and answer of each task as it ends; `tasks` loses it then, so that what was sent is freed."""
    while tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=tasks.__getitem__):
            index = tasks.pop(task)
            error = task.exception()
            if error is None:
                yield index, task.result()
            else:
                logger.error("painting item %d of a request failed", index, exc_info=error)
                yield index, refuse(500, f"{type(error).__name__}: {error}")


async def until_accepted(
    parts: AsyncIterator[tuple[int, Response]], invalid: Sequence[bool]
) -> tuple[list[tuple[int, Response]], bool]:
    """The first answers, up to one that shows that the queue has taken something, and whether there was one.

    A request of nothing but invalid items counts as taken: there is nothing to come back for.
    """
    first = []
    async for index, response in parts:
        first.append((index, response))
        if not invalid[index] and response.status_code != 503:
            return first, True
    return first, all(invalid)


async def send_parts(
    first: Sequence[tuple[int, Response]], rest: AsyncIterator[tuple[int, Response]], send: Send
) -> None:
    """The whole HTTP answer, part by part."""
    boundary = secrets.token_hex(16)
    content_type = f"multipart/mixed; boundary={boundary}".encode("latin-1")
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for index, response in first:
        await send_chunk(send, part(boundary, index, response))
    async for index, response in rest:
        await send_chunk(send, part(boundary, index, response))
    closing = f"--{boundary}--\r\n".encode("latin-1")
    await send({"type": "http.response.body", "body": closing, "more_body": False})


async def send_chunk(send: Send, chunk: bytes) -> None:
    """A piece of the body that isn't the last."""
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


def part(boundary: str, index: int, response: Response) -> bytes:
    """One part: the answer's own headers, and which item it is and how it fared."""
    headers = [
        *response.headers.items(),
        ("x-raynest-index", str(index)),
        ("x-raynest-status", str(response.status_code)),
    ]
    lines = [f"--{boundary}", *(f"{name.title()}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + bytes(response.body) + b"\r\n"
