import asyncio
import ssl
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.errors import NotReadyError, RemoteError, Verdict
from raynest_pipeline.images.client import Client, Image, imagine
from raynest_pipeline.images.offer import Offer, request_for
from raynest_pipeline.images.prompts import Prompt, make_prompt
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch

QUICK = Batch(timeout_seconds=5)


def refused(endpoint: Any, settings: Batch = QUICK, prompt: Prompt | None = None) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        imagine(endpoint.target, prompt or make_prompt("a cat", size=32), settings)
    return caught.value


def describe(target: HttpTarget) -> Offer:
    async def work() -> Offer:
        async with Client(target, connections=1, timeout=5) as client:
            return await client.describe()

    return asyncio.run(work())


def test_an_image_comes_with_what_it_says_of_itself(endpoint: Any, kit: Any) -> None:
    image = imagine(endpoint.target, make_prompt("a cat", seed=5, size=48), QUICK)
    assert image.data == kit.png("a cat", 5, 48)
    assert (image.width, image.height, image.seed) == (48, 48, 5)
    assert (image.model, image.revision) == ("tiny-untrained (random weights)", "r1")
    assert endpoint.headers[0]["Accept"] == "image/png"


def test_text_chunks_beat_headers_which_http_escapes(endpoint: Any, kit: Any) -> None:
    async def answer(fake: Any, request: web.Request) -> web.Response:
        body = kit.png("x", text={"model": "模型", "seed": "9"})
        headers = {"X-Raynest-Model": "\\u6a21\\u578b", "X-Raynest-Seed": "rubbish"}
        return web.Response(body=body, content_type="image/png", headers=headers)

    endpoint.answer = answer
    image = imagine(endpoint.target, make_prompt("x"), QUICK)
    assert (image.model, image.seed) == ("模型", 9)


@pytest.mark.parametrize(
    "prompt", ["a & b = c? #1 100% +plus;", "ein Bär, 一只猫 🐈", "quote \" ' \\ /..", "x" * 4000]
)
def test_every_prompt_arrives_as_it_was_written(endpoint: Any, prompt: str) -> None:
    imagine(endpoint.target, make_prompt(prompt, negative_prompt="a+b & c", seed=2**63 - 1), QUICK)
    assert endpoint.queries[0]["prompt"] == prompt
    assert endpoint.queries[0]["negative_prompt"] == "a+b & c"
    assert endpoint.queries[0]["seed"] == str(2**63 - 1)
    assert " " not in endpoint.raw_queries[0] and "+" not in endpoint.raw_queries[0]


def test_credentials_go_with_every_request(endpoint: Any) -> None:
    target = endpoint.target.with_headers({"Authorization": "Bearer t"})
    imagine(target, make_prompt("a cat"), QUICK)
    assert endpoint.headers[0]["Authorization"] == "Bearer t"


def test_what_an_endpoint_offers(endpoint: Any) -> None:
    offer = describe(endpoint.target)
    assert offer.documented and offer.untrained
    assert offer.defaults == {"img_size": 32, "steps": 10, "guidance": 7.5}
    endpoint.openapi = False
    assert describe(endpoint.target) == Offer()


def test_an_endpoint_without_imagine_is_not_asked_for_images(endpoint: Any) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response({"paths": {"/chat": {"post": {}}}})

    endpoint._openapi = other
    endpoint.stop_listening()
    endpoint.start()
    with pytest.raises(NotReadyError, match="offers: /chat"):
        imagine(endpoint.target, make_prompt("a cat"), QUICK)
    assert not endpoint.requests


def test_a_busy_endpoint_that_does_not_know_its_model_is_asked_later(endpoint: Any) -> None:
    async def busy(request: web.Request) -> web.Response:
        return web.json_response({"status": "busy", "queue_depth": 9})

    endpoint._health = busy
    endpoint.stop_listening()
    endpoint.start()
    with pytest.raises(RemoteError, match="does not know its model") as caught:
        describe(endpoint.target)
    assert caught.value.verdict is Verdict.RETRYABLE


async def html(fake: Any, request: web.Request) -> web.Response:
    return web.Response(text="<html>please log in</html>", content_type="text/html")


async def html_as_png(fake: Any, request: web.Request) -> web.Response:
    return web.Response(text="<html>error</html>", content_type="image/png")


async def truncated(fake: Any, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "5000"})
    await response.prepare(request)
    await response.write(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    request.transport.close()  # type: ignore[union-attr]
    return response


async def reset(fake: Any, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "5000"})
    await response.prepare(request)
    await response.write(b"\x89PNG\r\n\x1a\n")
    request.transport.abort()  # type: ignore[union-attr]
    return response


async def reset_at_once(fake: Any, request: web.Request) -> web.StreamResponse:
    request.transport.abort()  # type: ignore[union-attr]
    return web.Response()


async def hang(fake: Any, request: web.Request) -> web.StreamResponse:
    await fake.release.wait()
    return web.Response()


async def drip(fake: Any, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "100000"})
    await response.prepare(request)
    while not fake.release.is_set() and request.transport is not None:
        await response.write(b"x")
        await asyncio.sleep(0.02)
    return response


async def redirect(fake: Any, request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"})


async def half_png(fake: Any, request: web.Request) -> web.StreamResponse:
    whole = (await fake.good(request)).body
    return web.Response(body=whole[: len(whole) // 2], content_type="image/png")


async def wrong_size(fake: Any, request: web.Request) -> web.StreamResponse:
    return await fake.good(request.clone(rel_url=request.rel_url.update_query(img_size="64")))


def status(code: int, body: str = "{}", **headers: str) -> Any:
    async def answer(fake: Any, request: web.Request) -> web.Response:
        fixed = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text=body, content_type="application/json", headers=fixed)

    return answer


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (html, Verdict.UNKNOWN, "text/html, not image/png: '<html>please log in"),
        (html_as_png, Verdict.RETRYABLE, "does not start like a PNG"),
        (truncated, Verdict.RETRYABLE, "cut off"),
        (reset, Verdict.RETRYABLE, "/imagine: the "),
        (reset_at_once, Verdict.RETRYABLE, "closed before an answer"),
        (half_png, Verdict.RETRYABLE, "ends after"),
        (wrong_size, Verdict.UNKNOWN, "is 64x64 pixels, not 32x32"),
        (redirect, Verdict.PERMANENT, "answered 302"),
        (status(404), Verdict.PERMANENT, "answered 404"),
        (status(500, '{"detail": "CUDA out of memory"}'), Verdict.UNKNOWN, "CUDA out of memory"),
        (status(503, '{"detail": "queue full"}', Retry_After="3"), Verdict.RETRYABLE, "queue full"),
        (
            status(422, '{"detail": [{"loc": ["query", "prompt"], "msg": "too rude"}]}'),
            Verdict.PERMANENT,
            "prompt: too rude",
        ),
    ],
)
def test_no_bad_answer_is_taken_for_an_image(
    endpoint: Any, answer: Any, verdict: Verdict, reason: str
) -> None:
    endpoint.answer = answer
    error = refused(endpoint)
    assert error.verdict is verdict
    assert reason in str(error)


def test_retry_after_is_read(endpoint: Any) -> None:
    endpoint.answer = status(503, Retry_After="3")
    assert refused(endpoint).retry_after == 3.0


def test_a_blank_image_is_refused_and_a_censored_one_is_final(endpoint: Any, kit: Any) -> None:
    headers: dict[str, str] = {}

    async def blank(fake: Any, request: web.Request) -> web.Response:
        return web.Response(body=kit.png("x", blank=True), content_type="image/png", headers=headers)

    endpoint.answer = blank
    assert refused(endpoint).verdict is Verdict.UNKNOWN
    headers["X-Raynest-Filtered"] = "safety checker"
    error = refused(endpoint)
    assert error.verdict is Verdict.PERMANENT and "safety checker" in str(error)


@pytest.mark.parametrize("answer", [hang, drip])
def test_the_timeout_covers_the_whole_attempt(endpoint: Any, answer: Any) -> None:
    endpoint.answer = answer
    error = refused(endpoint, Batch(timeout_seconds=0.3))
    assert error.verdict is Verdict.RETRYABLE and "no answer in time" in error.what


def test_an_endless_answer_is_cut_off(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raynest_pipeline.images.client.MAX_BODY_BYTES", 2000)
    error = refused(endpoint)
    assert error.verdict is Verdict.PERMANENT and "longer than 2,000 bytes" in error.what


def test_nobody_there(kit: Any) -> None:
    with kit.free_port() as port, pytest.raises(RemoteError, match="no connection") as caught:
        imagine(HttpTarget.plain(f"http://127.0.0.1:{port}"), make_prompt("a cat"), QUICK)
    assert caught.value.verdict is Verdict.RETRYABLE and caught.value.status is None


def test_tls_to_a_plain_port_is_permanent(endpoint: Any) -> None:
    target = HttpTarget(f"https://127.0.0.1:{endpoint.port}", ssl=ssl.create_default_context())
    with pytest.raises(RemoteError) as caught:
        imagine(target, make_prompt("a cat"), QUICK)
    assert caught.value.verdict is Verdict.PERMANENT


def test_messages_never_carry_the_prompt_or_a_token(endpoint: Any) -> None:
    endpoint.answer = status(503)
    target = endpoint.target.with_headers({"Authorization": "Bearer sesame"})
    with pytest.raises(RemoteError) as caught:
        imagine(target, make_prompt("very private words"), QUICK)
    assert "private" not in str(caught.value) and "sesame" not in str(caught.value)
    endpoint.answer = hang
    with pytest.raises(RemoteError) as caught:
        imagine(target, make_prompt("very private words"), Batch(timeout_seconds=0.2))
    assert "private" not in str(caught.value) and "sesame" not in repr(caught.value)


def test_the_size_is_only_expected_where_it_is_known(endpoint: Any) -> None:
    endpoint.openapi, endpoint.answer = False, wrong_size
    image: Image = imagine(endpoint.target, make_prompt("a cat"), QUICK)
    assert image.width == 64
    assert request_for(make_prompt("a cat"), QUICK, Offer()).size is None
