"""One image asked for again: what is compared, and what the endpoint promises of it."""

from dataclasses import fields, replace
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.images.again import TOLERANCE, no_promise, paint_again
from raynest_pipeline.images.record import Record
from raynest_pipeline.serving.contract import PainterFacts
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Deadline, SystemClock

QUICK = Batch(attempts=2, timeout_seconds=40)


@pytest.fixture
def record() -> Record:
    return Record(
        id="p1",
        batch="b",
        status="made",
        key="k",
        prompt="a cat",
        negative_prompt="",
        seed=7,
        size=32,
        steps=None,
        guidance=None,
        model="tiny-untrained (random weights)",
        revision="r1",
        made_at="2026-01-01T00:00:00+00:00",
        file="images/p1.png",
    )


def promise(endpoint: Any) -> str:
    return no_promise(endpoint.target, QUICK, Deadline.after(40, SystemClock()))


def health_is(endpoint: Any, answer: Any) -> None:
    """Let /health answer otherwise."""
    endpoint._health = answer
    endpoint.stop_listening()
    endpoint.start()


def test_the_same_image_is_the_same_and_nobody_asks_what_is_promised(
    endpoint: Any, record: Record, kit: Any
) -> None:
    endpoint.dtype = "float16"
    again = paint_again(endpoint.target, record, kit.png("a cat", 7), QUICK, SystemClock())
    assert (again.id, again.difference, again.same) == ("p1", 0, True)
    assert again.reason == again.no_promise == ""
    assert endpoint.queries == [{"prompt": "a cat", "seed": "7", "img_size": "32"}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_image_breaks_a_promise_only_where_there_is_one(
    endpoint: Any, record: Record, kit: Any, dtype: str
) -> None:
    endpoint.dtype = dtype
    again = paint_again(endpoint.target, record, kit.png("a dog"), QUICK, SystemClock())
    assert again.same is False and again.difference is not None and again.difference > TOLERANCE
    assert bool(again.no_promise) is (dtype == "bfloat16")


def test_another_size_is_another_image(endpoint: Any, record: Record, kit: Any) -> None:
    again = paint_again(endpoint.target, record, kit.png("a cat", 7, 64), QUICK, SystemClock())
    assert (again.same, again.difference, again.no_promise) == (False, 255, "")


def test_a_missing_file_and_another_model_are_not_compared(endpoint: Any, record: Record, kit: Any) -> None:
    assert paint_again(endpoint.target, record, None, QUICK, SystemClock()).reason == "its file is missing"
    earlier = replace(record, model="earlier")
    again = paint_again(endpoint.target, earlier, kit.png("a cat", 7), QUICK, SystemClock())
    assert again.same is None and "another model by now" in again.reason


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", "float32", ""),
        ("cpu", "bfloat16", "it paints in bfloat16 on cpu"),
        ("cuda:0 (NVIDIA A10)", "float32", "it paints in float32 on cuda:0 (NVIDIA A10)"),
        ("cuda:0 (NVIDIA A10)", "float16", "it paints in float16 on cuda:0 (NVIDIA A10)"),
        ("cpu", None, "its /health does not say on which device and in which type it paints"),
    ],
)
def test_the_promise_is_for_float32_on_the_cpu(
    endpoint: Any, device: str, dtype: str | None, reason: str
) -> None:
    endpoint.device, endpoint.dtype = device, dtype
    assert promise(endpoint) == reason


def test_health_has_the_fields_that_the_promise_hangs_on() -> None:
    assert {"device", "dtype"} <= {field.name for field in fields(PainterFacts)}


def test_an_endpoint_without_health_promises_nothing(endpoint: Any) -> None:
    endpoint.model = None
    assert promise(endpoint) == "it has no /health"


@pytest.mark.parametrize("body", ["<html>please log in</html>", "[1]", ""])
def test_what_is_not_health_promises_nothing(endpoint: Any, body: str) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/html")

    health_is(endpoint, other)
    assert promise(endpoint).startswith("its /health does not say")


def test_a_health_that_fails_is_asked_again_and_then_named(endpoint: Any) -> None:
    asked: list[str] = []

    async def failing(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"status": "failed", "detail": "the device failed"}, status=503)

    health_is(endpoint, failing)
    said = promise(endpoint)
    assert said.startswith("its /health says nothing: ") and "503" in said
    assert len(asked) == QUICK.attempts
