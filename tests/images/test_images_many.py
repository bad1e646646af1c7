"""POST /v1/images: the client's reading of a stream."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from images_many import OFFER

from raynest_pipeline.errors import RemoteError, Verdict
from raynest_pipeline.images.client import Answer, Client
from raynest_pipeline.images.client_many import ask_many, not_offered
from raynest_pipeline.images.offer import items_of, request_for
from raynest_pipeline.settings import Batch


def ask(endpoint: Any, prompts: list[Any], seconds: float = 20.0) -> tuple[dict[int, Answer], Any]:
    """What came, and the error with which it ended."""
    came: dict[int, Answer] = {}

    def on_answer(index: int, answer: Answer) -> None:
        assert index not in came
        came[index] = answer

    async def work() -> RemoteError | None:
        requests = [request_for(prompt, Batch(), OFFER) for prompt in prompts]
        async with Client(endpoint.target, connections=2, timeout=seconds) as client:
            try:
                await ask_many(client, requests, on_answer, seconds=seconds)
            except RemoteError as error:
                return error
        return None

    return came, asyncio.run(work())


def raw(body: bytes, kind: str = "multipart/mixed; boundary=b-o", status: int = 200) -> Any:
    async def answer(fake: Any, request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"Content-Type": kind})

    return answer


def part(index: Any, body: bytes = b"x", status: Any = 200, *extra: str) -> bytes:
    lines = [
        f"X-Raynest-Index: {index}",
        f"X-Raynest-Status: {status}",
        f"Content-Length: {len(body)}",
        *extra,
    ]
    return b"--b-o\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + body + b"\r\n"


END = b"--b-o--\r\n"


def test_each_answer_comes_with_its_place_status_and_headers(many: Any, kit: Any) -> None:
    async def busy(fake: Any, request: web.Request) -> web.Response:
        return web.json_response({"detail": "full"}, status=503, headers={"Retry-After": "7"})

    many.by_prompt["prompt 1"] = busy
    came, error = ask(many, kit.prompts(3))
    assert error is None and sorted(came) == [0, 1, 2]
    assert came[0].body == kit.png("prompt 0", 0, 32) and came[2].body == kit.png("prompt 2", 2, 32)
    assert came[2].headers["X-Raynest-Seed"] == "2" and came[2].headers["content-type"] == "image/png"
    assert came[1].status == 503 and came[1].headers["Retry-After"] == "7"
    assert json.loads(came[1].body) == {"detail": "full"}
    assert many.bodies == [[{"prompt": f"prompt {i}", "seed": i} for i in range(3)]]


def test_answers_are_handed_on_as_they_come(many: Any, kit: Any) -> None:
    seen: list[int] = []

    async def after_the_other(fake: Any, request: web.Request) -> web.StreamResponse:
        while 1 not in seen:
            await asyncio.sleep(0.005)
        return await fake.good(request)  # type: ignore[no-any-return]

    many.by_prompt["prompt 0"] = after_the_other

    async def work() -> None:
        requests = [request_for(prompt, Batch(), OFFER) for prompt in kit.prompts(2)]
        async with Client(many.target, connections=1, timeout=20) as client:
            await ask_many(client, requests, lambda index, _: seen.append(index), seconds=20)

    asyncio.run(work())
    assert seen == [1, 0]


def test_a_part_larger_than_every_buffer_and_an_empty_one(many: Any, kit: Any) -> None:
    large = b"\r\n--b-o\r\n" * 300_000
    many.many = raw(part(1, large) + part(0, b"") + END)
    came, error = ask(many, kit.prompts(2))
    assert error is None and came[1].body == large and came[0].body == b""


def test_a_part_without_a_length_is_read_to_the_boundary(many: Any, kit: Any) -> None:
    body = b"--b-o\r\nX-Raynest-Index: 0\r\nX-Raynest-Status: 200\r\n\r\nan image\r\n" + END
    many.many = raw(body)
    came, error = ask(many, kit.prompts(1))
    assert error is None and came[0].body == b"an image"


@pytest.mark.parametrize(
    "body",
    [
        part(0) + part(1),
        part(0) + part(1)[:-9],
        part(0) + part(1, b"y" * 50)[:-20],
        part(0) + b"--b-o\r\nX-Raynest-Index: 1\r\n",
        part(0) + END,
        part(0) + part(2) + END,
        part(0) + part(0) + END,
        part(0) + part("one") + END,
        part(0) + part(-1) + END,
        part(0) + part(1, b"y", "") + END,
        part(0) + b"--b-o\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n" + END,
        part(0) + b"--b-o\r\nno colon here\r\n\r\n" + END,
        part(0) + b"--b-o\r\nX: " + b"y" * 100_000 + b"\r\n\r\n" + END,
        part(0) + b"--other\r\n",
        part(0) + b"\xff\xfe" * 100,
    ],
)
def test_a_stream_that_breaks_off_or_goes_wrong_is_retryable_and_keeps_what_came(
    many: Any, kit: Any, body: bytes
) -> None:
    many.many = raw(body)
    came, error = ask(many, kit.prompts(2))
    assert came[0].body == b"x"
    if error is None:
        # All that was asked for came; the missing end marker is no loss.
        assert sorted(came) == [0, 1]
    else:
        assert error.verdict is Verdict.RETRYABLE and "the answer" in error.what


@pytest.mark.parametrize("body", [b"", b"<html>", END])
def test_a_stream_without_parts(many: Any, kit: Any, body: bytes) -> None:
    many.many = raw(body)
    came, error = ask(many, kit.prompts(2))
    assert came == {} and error.verdict is Verdict.RETRYABLE


def test_an_answer_that_is_no_multipart(many: Any, kit: Any) -> None:
    many.many = raw(b"{}", "application/json")
    came, error = ask(many, kit.prompts(1))
    assert came == {} and error.verdict is Verdict.UNKNOWN and "not multipart/mixed" in error.what


def test_a_refused_request_says_when_to_come_back(many: Any, kit: Any) -> None:
    async def full(fake: Any, request: web.Request) -> web.Response:
        return web.json_response({"detail": "the queue is full"}, status=503, headers={"Retry-After": "3"})

    many.many = full
    _, error = ask(many, kit.prompts(2))
    assert (error.status, error.retry_after, error.why) == (503, 3.0, "the queue is full")
    assert not not_offered(error)


def test_an_image_that_never_ends_is_cut(many: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynest_pipeline.images.client_many.MAX_BODY_BYTES", 1000)
    many.many = raw(part(0, b"y" * 5000) + END)
    came, error = ask(many, kit.prompts(1))
    assert came == {} and "longer than 1,000 bytes" in error.what


def test_the_time_for_all_of_it_is_bounded(many: Any, kit: Any) -> None:
    async def hang(fake: Any, request: web.Request) -> web.StreamResponse:
        await fake.release.wait()
        return web.Response(body=b"")

    many.by_prompt["prompt 1"] = hang
    came, error = ask(many, kit.prompts(2), seconds=1.0)
    assert sorted(came) == [0] and error.verdict is Verdict.RETRYABLE and error.code == "TimeoutError"


@pytest.mark.parametrize(
    ("schema", "items"),
    [
        ({"properties": {"images": {"type": "array", "maxItems": 64}}}, 64),
        ({"$ref": "#/components/schemas/Many"}, 32),
        ({"properties": {"images": {"type": "array"}}}, 16),
        ({"properties": {"prompt": {}}}, 0),
        ({"$ref": "#/nowhere"}, 0),
        ({"$ref": "http://elsewhere"}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_how_many_images_an_endpoint_takes_at_once(schema: Any, items: int) -> None:
    document = {
        "paths": {
            "/v1/images": {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}
        },
        "components": {"schemas": {"Many": {"properties": {"images": {"maxItems": 32}}}}},
    }
    assert items_of(document) == items
    assert items_of({"paths": {"/v1/images": {"get": {}}}}) == 0
