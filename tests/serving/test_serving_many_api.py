"""POST /v1/images over a stand-in painter: what is taken, what each part says, what a bad body is told."""

import asyncio
import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.encode import encode
from raynest_pipeline.serving.front import Front
from raynest_pipeline.serving.many import ManyImages, most_bytes
from raynest_pipeline.serving.options import ServingOptions

OPTIONS = ServingOptions(max_images_per_request=16)
Read = Callable[[str, bytes], Any]


class StandIn:
    """Paints a flat square, or raises what `instead` has for the prompt; holds back prompts of `held`."""

    def __init__(self, instead: dict[str, BaseException] | None = None) -> None:
        self.asked: list[ImageRequest] = []
        self.cancelled: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self._instead = instead or {}

    async def paint(self, request: ImageRequest) -> Painting:
        self.asked.append(request)
        try:
            if event := self.held.get(request.prompt):
                await event.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.prompt)
            raise
        if error := self._instead.get(request.prompt):
            raise error
        size = request.size or 64
        data = encode(np.full((size, size, 3), 7, np.uint8), request.format, {"prompt": request.prompt})
        guidance = 7.5 if request.guidance is None else request.guidance
        return Painting(
            data, request.format, request.seed, size, request.steps or 20, guidance, "m", "1", "cpu", 0.5, 3
        )

    async def facts(self) -> PainterFacts:
        raise PainterUnavailable("not asked for here")


class Meter:
    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.requests: list[tuple[str, int]] = []

    def image(self, outcome: str) -> None:
        self.images[outcome] += 1

    def request(self, path: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((path, status))


def post(
    backend: StandIn,
    body: object,
    *,
    options: ServingOptions = OPTIONS,
    headers: dict[str, str] | None = None,
    meter: Meter | None = None,
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_api(backend, options, meter))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/images", content=content, headers=headers)

    return asyncio.run(ask())


def read(answer: httpx.Response, read_parts: Read) -> Any:
    assert answer.status_code == 200, answer.text
    parts = read_parts(answer.headers["content-type"], answer.content)
    assert parts.complete
    return parts


def test_each_item_comes_with_its_parameters_and_all_headers_of_imagine(read_parts: Read) -> None:
    backend = StandIn()
    images = [
        {"prompt": "a", "seed": 5},
        {
            "prompt": "b",
            "seed": 6,
            "img_size": 128,
            "steps": 9,
            "guidance": 2.5,
            "negative_prompt": "dog",
            "format": "webp",
        },
    ]
    parts = read(post(backend, {"images": images}), read_parts)
    assert backend.asked == [ImageRequest("a", 5), ImageRequest("b", 6, "dog", 128, 9, 2.5, "webp")]
    headers, data = parts.parts[1]
    assert headers == {
        "content-type": "image/webp",
        "content-length": str(len(data)),
        "x-raynest-index": "1",
        "x-raynest-status": "200",
        "x-raynest-seed": "6",
        "x-raynest-model": "m",
        "x-raynest-revision": "1",
        "x-raynest-steps": "9",
        "x-raynest-guidance": "2.5",
        "x-raynest-size": "128",
        "x-raynest-device": "cpu",
        "x-raynest-seconds": "0.5",
        "x-raynest-batch": "3",
    }
    assert Image.open(io.BytesIO(data)).size == (128, 128)
    assert parts.parts[0][0]["content-type"] == "image/png"


def test_without_a_seed_each_item_draws_its_own(read_parts: Read) -> None:
    parts = read(post(StandIn(), {"images": [{"prompt": "x"}] * 8}), read_parts)
    assert len({headers["x-raynest-seed"] for headers, _ in parts.parts.values()}) == 8


BAD_ITEMS: list[tuple[object, list[object]]] = [
    ({}, ["prompt"]),
    ({"prompt": " "}, ["prompt"]),
    ({"prompt": 7}, ["prompt"]),
    ({"prompt": "a\0b"}, ["prompt"]),
    ({"prompt": "x" * 100_000}, ["prompt"]),
    ({"prompt": "x", "img_size": 65}, ["img_size"]),
    ({"prompt": "x", "img_size": 1032}, ["img_size"]),
    ({"prompt": "x", "steps": 0}, ["steps"]),
    ({"prompt": "x", "steps": True}, ["steps"]),
    ({"prompt": "x", "guidance": float("nan")}, ["guidance"]),
    ({"prompt": "x", "guidance": float("inf")}, ["guidance"]),
    ({"prompt": "x", "seed": 2**63}, ["seed"]),
    ({"prompt": "x", "seed": -1}, ["seed"]),
    ({"prompt": "x", "format": "bmp"}, ["format"]),
    ({"prompt": "x", "negative_promt": "y"}, ["negative_promt"]),
    ("a red circle", []),
    (None, []),
]


def test_a_bad_item_is_told_its_field_and_spoils_nothing(read_parts: Read) -> None:
    # `img_size: null` says the same as leaving it out.
    images = [item for item, _ in BAD_ITEMS] + [{"prompt": "good", "img_size": None}]
    backend, meter = StandIn(), Meter()
    options = ServingOptions(max_images_per_request=len(images))
    parts = read(post(backend, {"images": images}, options=options, meter=meter), read_parts)
    assert [request.prompt for request in backend.asked] == ["good"]
    for index, (_, field) in enumerate(BAD_ITEMS):
        headers, body = parts.parts[index]
        assert (headers["x-raynest-status"], headers["content-type"]) == ("422", "application/json")
        detail = json.loads(body)["detail"]
        assert detail[0]["loc"][:4] == ["body", "images", index, *field], detail
        assert detail[0]["msg"]
        assert len(body) < 1000
    assert parts.statuses[len(BAD_ITEMS)] == 200
    assert meter.images == {"invalid": len(BAD_ITEMS), "painted": 1}


def test_a_flood_of_unknown_fields_is_answered_briefly(read_parts: Read) -> None:
    flood = {"prompt": "x", "k" * 20_000: 1, **{f"field{n}": n for n in range(2000)}}
    parts = read(post(StandIn(), {"images": [flood]}), read_parts)
    assert parts.statuses == {0: 422}
    assert len(parts.parts[0][1]) < 5000
    alone = post(StandIn(), {"images": [{"prompt": "x"}], "k" * 20_000: 1})
    assert (alone.status_code, len(alone.content) < 1000) == (422, True)


def test_nothing_but_bad_items_is_still_an_answer_for_each(read_parts: Read) -> None:
    parts = read(post(StandIn(), {"images": [{}, {}]}), read_parts)
    assert parts.statuses == {0: 422, 1: 422}


@pytest.mark.parametrize(
    ("body", "where", "reason"),
    [
        (b"", ["body"], "is not JSON"),
        (b"not json", ["body"], "is not JSON"),
        (b'{"images": [{"prompt": "\\ud800"}]}', ["body"], "is not JSON"),
        (b"[" * 100_000, ["body"], "is not JSON"),
        (b"\xff\xfe", ["body"], "is not JSON"),
        ([], ["body", "images"], "a list of images is required"),
        ({}, ["body", "images"], "a list of images is required"),
        ({"images": {"prompt": "x"}}, ["body", "images"], "a list of images is required"),
        ({"images": []}, ["body", "images"], "has 0 images; 1 to 16 may be asked for at once"),
        ({"images": [{"prompt": "x"}] * 17}, ["body", "images"], "has 17 images; 1 to 16"),
        ({"images": [{"prompt": "x"}], "seed": 1}, ["body", "seed"], "unknown field"),
        ({"images": [{"prompt": "x" * 2_000_000}]}, ["body"], "is longer than"),
    ],
)
def test_a_body_that_makes_no_sense_is_422_as_a_whole(body: object, where: list[str], reason: str) -> None:
    backend = StandIn()
    answer = post(backend, body)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail[0]["loc"] == where
    assert detail[0]["msg"].startswith(reason)
    assert len(answer.content) < 1000
    assert backend.asked == []


def test_no_body_within_the_limits_is_too_long() -> None:
    """The longest there is: every character escaped as a surrogate pair."""
    options = ServingOptions(max_prompt_chars=50, max_images_per_request=3)
    text = "\U0001f408" * 50
    item = {
        "prompt": text,
        "negative_prompt": text,
        "seed": 2**63 - 1,
        "img_size": 1024,
        "steps": 150,
        "guidance": 49.999999999999,
        "format": "jpeg",
    }
    body = json.dumps({"images": [item] * 3}, indent=4).encode()
    assert len(body) <= most_bytes(3, 50)
    assert post(StandIn(), body, options=options).status_code == 200


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["prompt", "img_size", "seed", "steps", "guidance", "negative_prompt", "format"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES) | JSON_VALUES, min_size=1, max_size=5))
def test_no_input_is_a_500_and_every_item_is_answered(images: list[object]) -> None:
    backend = StandIn()
    answer = post(backend, {"images": images})
    assert answer.status_code == 200
    statuses = [line for line in answer.content.split(b"\r\n") if line.startswith(b"X-Raynest-Status")]
    assert len(statuses) == len(images)
    assert set(statuses) <= {b"X-Raynest-Status: 200", b"X-Raynest-Status: 422"}
    assert statuses.count(b"X-Raynest-Status: 200") == len(backend.asked)


def test_outcomes_are_told_apart_as_imagine_tells_them(read_parts: Read) -> None:
    errors: dict[str, BaseException] = {
        "busy": PainterBusy("9 images wait"),
        "gone": PainterUnavailable("the replica died"),
        "late": TimeoutError(),
        "failed": PaintingFailed("RuntimeError: shapes"),
        "bug": KeyError("surprise"),
    }
    meter = Meter()
    prompts = [*errors, "fine"]
    answer = post(StandIn(errors), {"images": [{"prompt": p} for p in prompts]}, meter=meter)
    parts = read(answer, read_parts)
    assert [parts.statuses[n] for n in range(6)] == [503, 503, 504, 500, 500, 200]
    assert int(parts.parts[0][0]["retry-after"]) >= 1
    assert int(parts.parts[1][0]["retry-after"]) >= 1
    assert "retry-after" not in parts.parts[2][0]
    assert json.loads(parts.parts[3][1]) == {"detail": "RuntimeError: shapes"}
    assert json.loads(parts.parts[4][1]) == {"detail": "KeyError: 'surprise'"}
    assert meter.images == Counter(refused=1, unavailable=1, expired=1, failed=2, painted=1)
    assert meter.requests == [("/v1/images", 200)]


@pytest.mark.parametrize("prompts", [["busy"] * 3, ["busy", "gone"], ["busy", " "]])
def test_a_queue_that_takes_nothing_is_a_plain_503(prompts: list[str]) -> None:
    errors: dict[str, BaseException] = {"busy": PainterBusy("full"), "gone": PainterUnavailable("full")}
    meter = Meter()
    answer = post(StandIn(errors), {"images": [{"prompt": p} for p in prompts]}, meter=meter)
    assert (answer.status_code, answer.json()) == (503, {"detail": "full"})
    assert int(answer.headers["retry-after"]) >= 1
    assert meter.requests == [("/v1/images", 503)]


def test_the_accept_header_chooses_the_format_as_for_imagine(read_parts: Read) -> None:
    body = {"images": [{"prompt": "x"}, {"prompt": "x", "format": "png"}]}
    parts = read(post(StandIn(), body, headers={"accept": "multipart/mixed, image/webp"}), read_parts)
    assert [parts.parts[n][0]["content-type"] for n in (0, 1)] == ["image/webp", "image/png"]


async def stream(
    front: Front, items: list[ImageRequest], sent: "asyncio.Queue[dict[str, Any]]"
) -> "asyncio.Task[None]":
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        sent.put_nowait(message)

    return asyncio.create_task(ManyImages(front, items)({"type": "http"}, receive, send))


def test_an_image_is_sent_while_others_are_still_painted() -> None:
    async def watch() -> list[bytes]:
        backend = StandIn()
        backend.held = {"slow": asyncio.Event()}
        sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        items = [ImageRequest(prompt, 0) for prompt in ("slow", "quick")]
        task = await stream(Front(backend, 60), items, sent)
        async with asyncio.timeout(40):
            assert (await sent.get())["status"] == 200
            first = await sent.get()
            assert not task.done()
            backend.held["slow"].set()
            second, closing = await sent.get(), await sent.get()
            await task
        assert [message["more_body"] for message in (first, second, closing)] == [True, True, False]
        return [first["body"], second["body"]]

    bodies = asyncio.run(watch())
    assert [b"X-Raynest-Index: 1" in body for body in bodies] == [True, False]


@pytest.mark.parametrize("answered", [0, 1])
def test_a_client_that_goes_away_cancels_what_is_not_painted(answered: int) -> None:
    """Before the first part was sent, and after it."""

    async def leave() -> tuple[list[str], int]:
        backend, meter = StandIn(), Meter()
        backend.held = {"slow": asyncio.Event()}
        front = Front(backend, 60, meter, most_held=3)
        sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        items = [ImageRequest("quick", 0)] * answered + [ImageRequest("slow", 0)] * (3 - answered)
        task = await stream(front, items, sent)
        async with asyncio.timeout(40):
            if answered:
                await sent.get(), await sent.get()
            else:
                while len(backend.asked) < 3:
                    await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while front.in_work:
                await asyncio.sleep(0)
        assert meter.images == Counter(painted=answered, cancelled=3 - answered)
        with front.holding(3):
            return backend.cancelled, front.images_served

    cancelled, served = asyncio.run(leave())
    assert cancelled == ["slow"] * (3 - answered)
    assert served == answered


def test_images_that_nobody_fetches_are_bounded() -> None:
    """A slow reader's finished images stay in memory; so many, and the next request is refused."""

    async def crowd() -> tuple[int, dict[bytes, bytes]]:
        backend = StandIn()
        backend.held = {"slow": asyncio.Event()}
        front = Front(backend, 60, most_held=5)
        sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        first = await stream(front, [ImageRequest("slow", 0)] * 3, asyncio.Queue())
        await asyncio.sleep(0)
        second = await stream(front, [ImageRequest("quick", 0)] * 3, sent)
        async with asyncio.timeout(40):
            await second
            start = await sent.get()
            backend.held["slow"].set()
            await first
            third = await stream(front, [ImageRequest("quick", 0)] * 5, asyncio.Queue())
            await third
        assert len(backend.asked) == 8
        return start["status"], dict(start["headers"])

    status, headers = asyncio.run(crowd())
    assert status == 503
    assert int(headers[b"retry-after"]) >= 1


def test_openapi_describes_request_and_answer() -> None:
    async def ask() -> dict[str, Any]:
        transport = httpx.ASGITransport(create_api(StandIn(), OPTIONS))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    def as_written(schema: dict[str, Any]) -> dict[str, Any]:
        """FastAPI writes the limits of a query as floats."""
        kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
        written: dict[str, Any] = json.loads(json.dumps(kept), parse_int=float)
        return written

    document = asyncio.run(ask())
    post_images = document["paths"]["/v1/images"]["post"]
    body = post_images["requestBody"]["content"]["application/json"]["schema"]
    images = body["properties"]["images"]
    assert (images["minItems"], images["maxItems"], body["required"]) == (1, 16, ["images"])
    item = images["items"]
    get_image = document["paths"]["/imagine"]["get"]
    query = {parameter["name"]: parameter for parameter in get_image["parameters"]}
    assert list(item["properties"]) == list(query) == FIELDS_IN_ORDER
    for name, schema in item["properties"].items():
        assert as_written(schema) == as_written(query[name]["schema"])
        assert query[name]["required"] == (name in item["required"])
        assert schema["description"]
    assert item["properties"]["steps"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 150}
    assert set(post_images["responses"]) == {"200", "422", "503"}
    assert set(get_image["responses"]) == {"200", "422", "500", "503", "504"}
    assert "Retry-After" in get_image["responses"]["503"]["headers"]
    multipart = post_images["responses"]["200"]["content"]["multipart/mixed"]
    part = multipart["encoding"]["image"]
    assert part["contentType"] == "image/png, image/webp, image/jpeg"
    assert {"X-Raynest-Index", "X-Raynest-Status", "Content-Length"} < set(part["headers"])
    assert set(get_image["responses"]["200"]["headers"]) < set(part["headers"])
    assert "Retry-After" in multipart["encoding"]["error"]["headers"]
    health = document["paths"]["/health"]["get"]["responses"]
    assert set(health) == {"200", "503"}
    told = health["200"]["content"]["application/json"]["schema"]["properties"]
    assert {"status", "queue_depth", "images_served", "model", "waiting", "replica"} <= set(told)
    assert told["batch_limits"]["additionalProperties"] == {"type": "integer"}
    unwell = health["503"]["content"]["application/json"]["schema"]["properties"]
    assert (told["status"]["enum"], unwell["status"]["enum"]) == (["ok", "busy"], ["failed", "loading"])


FIELDS_IN_ORDER = ["prompt", "img_size", "seed", "steps", "guidance", "negative_prompt", "format"]


@pytest.mark.parametrize("most", [7, 64])
def test_more_images_than_the_replicas_hold_are_not_offered(most: int) -> None:
    options = ServingOptions(queue_size=4, max_batch_size=3) if most == 7 else ServingOptions()
    answer = post(StandIn(), {"images": [{"prompt": "x"}] * (most + 1)}, options=options)
    assert answer.status_code == 422
    assert f"1 to {most} may be asked for" in answer.json()["detail"][0]["msg"]
    assert post(StandIn(), {"images": [{"prompt": "x"}] * most}, options=options).status_code == 200
