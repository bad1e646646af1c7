"""The HTTP contract over a stand-in painter: what is accepted, what is refused and how, what headers say."""

import asyncio
import io
from dataclasses import replace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving_stand_in import StandIn, failing, get

from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import (
    MAX_SEED,
    ImageRequest,
    PainterBusy,
    PainterUnavailable,
    Painting,
    PaintingFailed,
    in_full,
)
from raynest_pipeline.serving.front import NoMeter
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.parameters import accepted_format


def test_the_walkthrough_s_client_needs_only_a_prompt() -> None:
    backend = StandIn()
    answer = get(backend, {"prompt": "a red circle"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    asked = backend.asked[0]
    assert (asked.size, asked.steps, asked.guidance, asked.negative_prompt) == (None, None, None, "")
    assert answer.headers["x-raynest-seed"] == str(asked.seed)


def test_without_a_seed_each_request_draws_its_own() -> None:
    backend = StandIn()
    for _ in range(2):
        get(backend, {"prompt": "x"})
    first, second = (request.seed for request in backend.asked)
    assert first != second
    assert min(first, second) >= 0
    assert max(first, second) <= MAX_SEED


def test_every_parameter_reaches_the_painter_and_the_headers() -> None:
    backend = StandIn()
    answer = get(
        backend,
        {
            "prompt": "a cat",
            "img_size": 128,
            "seed": 5,
            "steps": 9,
            "guidance": 2.5,
            "negative_prompt": "dog",
            "format": "webp",
        },
    )
    assert backend.asked == [ImageRequest("a cat", 5, "dog", 128, 9, 2.5, "webp")]
    assert answer.headers["content-type"] == "image/webp"
    told = {key: value for key, value in answer.headers.items() if key.startswith("x-raynest-")}
    assert told == {
        "x-raynest-seed": "5",
        "x-raynest-model": "stand-in",
        "x-raynest-revision": "1",
        "x-raynest-steps": "9",
        "x-raynest-guidance": "2.5",
        "x-raynest-size": "128",
        "x-raynest-device": "cpu",
        "x-raynest-seconds": "0.5",
        "x-raynest-batch": "3",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", "  \t"),
        ("prompt", "x" * 100_000),
        ("prompt", "a\x00b"),
        ("img_size", 65),
        ("img_size", 24),
        ("img_size", 0),
        ("img_size", -64),
        ("img_size", 1032),
        ("img_size", "big"),
        ("steps", 0),
        ("steps", 151),
        ("steps", 2.5),
        ("guidance", "nan"),
        ("guidance", "inf"),
        ("guidance", -0.1),
        ("guidance", 51),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "abc"),
        ("negative_prompt", "x" * 2001),
        ("negative_prompt", "a\x00b"),
        ("format", "bmp"),
    ],
)
def test_bad_input_is_422_and_names_the_field(field: str, value: str | int | float) -> None:
    backend = StandIn()
    # httpx refuses to send URLs over 64 kB, so a long value goes straight into the ASGI scope.
    answer = ask_raw(backend, {"prompt": "fine", field: value})
    assert answer.status_code == 422
    issues = answer.json()["detail"]
    assert [issue["loc"] for issue in issues] == [["query", field]]
    assert issues[0]["msg"]
    assert len(answer.content) < 1000
    assert backend.asked == []


def ask_raw(backend: StandIn, params: dict[str, str | int | float]) -> httpx.Response:
    """GET /imagine without a URL length limit."""
    from urllib.parse import urlencode

    from starlette.types import Message, Scope

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/imagine",
        "raw_path": b"/imagine",
        "query_string": urlencode(params).encode(),
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_api(backend, ServingOptions())(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)


def test_missing_prompt_is_422() -> None:
    answer = get(StandIn(), {})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "prompt"]


ANY_VALUE = st.one_of(
    st.text(max_size=40),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["1e9", "0x10", "٣", "+", "%"]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "img_size", "seed", "steps", "guidance", "negative_prompt", "format"]),
        ANY_VALUE,
    )
)
def test_no_input_is_a_500(params: dict[str, str | int | float]) -> None:
    backend = StandIn()
    encodable = {key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
                 for key, value in params.items()}  # fmt: skip
    answer = get(backend, encodable)
    assert answer.status_code in (200, 422)
    assert (answer.status_code == 200) == (len(backend.asked) == 1)
    for asked in backend.asked:
        assert asked.prompt.strip()
        assert 0 <= asked.seed <= MAX_SEED
        assert asked.size is None or (32 <= asked.size <= 1024 and asked.size % 8 == 0)
        assert asked.steps is None or 1 <= asked.steps <= 150
        assert asked.guidance is None or 0 <= asked.guidance <= 50


def test_limits_come_from_the_options_and_show_in_openapi() -> None:
    options = ServingOptions(max_img_size=128, max_steps=4, max_prompt_chars=10)
    for params in ({"img_size": 136}, {"steps": 5}, {"negative_prompt": "12345678901"}):
        assert get(StandIn(), {"prompt": "x", **params}, options=options).status_code == 422
    described = get(StandIn(), {}, "/openapi.json", options=options).json()
    parameters = {p["name"]: p for p in described["paths"]["/imagine"]["get"]["parameters"]}
    assert [name for name, parameter in parameters.items() if parameter["required"]] == ["prompt"]
    assert parameters["img_size"]["schema"]["anyOf"][0]["maximum"] == 128


@pytest.mark.parametrize("error", [PainterBusy("9 images wait"), PainterUnavailable("the replica died")])
def test_a_full_queue_or_an_unreachable_model_is_503_with_retry_after(error: Exception) -> None:
    answer = get(failing(error), {"prompt": "x"})
    assert (answer.status_code, answer.json()) == (503, {"detail": str(error)})
    assert int(answer.headers["retry-after"]) >= 1


def test_a_pipeline_failure_is_500_with_its_reason() -> None:
    answer = get(failing(PaintingFailed("RuntimeError: shapes")), {"prompt": "x"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "RuntimeError: shapes"})


def test_the_deadline_is_504_and_cancels_the_work() -> None:
    ended: list[str] = []

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    answer = get(StandIn(never), {"prompt": "x"}, options=ServingOptions(deadline_s=0.05))
    assert answer.status_code == 504
    assert "deadline" in answer.json()["detail"]
    assert ended == ["cancelled"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "png"),
        ("*/*", "png"),
        ("image/webp", "webp"),
        ("image/jpeg;q=0.9", "jpeg"),
        ("image/avif,image/webp,image/png,*/*;q=0.8", "png"),
        ("text/html", "png"),
        ("image/webp;q=0, image/jpeg", "jpeg"),
        ("image/webp;q=0.5, image/jpeg;q=0.6", "jpeg"),
        ("image/jpeg, image/webp", "webp"),
        ("image/jpeg;q=0.7, image/webp;q=0.7, image/png;q=0.7", "png"),
        ("image/webp;q=0.9, image/png;q=0.899", "webp"),
        ("image/webp, */*", "png"),
        ("image/webp, image/*;q=1.0", "png"),
        ("image/webp, */*;q=0.8", "webp"),
        ("image/*;q=0, image/jpeg;q=0.001", "jpeg"),
        ("image/png;q=0, */*", "webp"),
        ("image/webp;q=0, image/jpeg;q=0.000", "png"),
        ("image/webp;q=high, image/jpeg;q=0.1", "jpeg"),
        ("image/webp;q=2, image/jpeg;q=0.1", "jpeg"),
        ("image/webp;q=-1, image/jpeg;q=nan, image/png;q", "png"),
        ("image/webp;q=, image/jpeg;q=1e-1", "png"),
        ("IMAGE/WebP ; Level=1 ; Q=1.000 , image/jpeg ; q=0.9", "webp"),
        (",;,image/webp,", "webp"),
    ],
)
def test_accept_chooses_the_format_that_it_likes_best(accept: str, expected: str) -> None:
    assert accepted_format(accept) == expected
    answer = get(StandIn(), {"prompt": "x"}, headers={"accept": accept})
    assert answer.headers["content-type"] == f"image/{expected}"
    named = get(StandIn(), {"prompt": "x", "format": "jpeg"}, headers={"accept": accept})
    assert named.headers["content-type"] == "image/jpeg", "what is asked for by name wins"


@given(st.text(st.characters(max_codepoint=255)))
def test_any_accept_header_chooses_a_format(accept: str) -> None:
    assert accepted_format(accept) in ("png", "webp", "jpeg")


def test_headers_tell_all_that_changes_the_picture_and_exactly() -> None:
    """WebP and JPEG have no text chunks: there the headers alone say how to make the image again."""

    class Quick(StandIn):
        async def paint(self, request: ImageRequest) -> Painting:
            made_with = {"scheduler": "UniPCMultistepScheduler", "vae": "org/tiny"}
            return replace(await super().paint(request), made_with=made_with)

    answer = get(Quick(), {"prompt": "x", "guidance": 7.123456789, "format": "webp"})
    assert "x-raynest-worker" not in answer.headers
    assert float(answer.headers["x-raynest-guidance"]) == 7.123456789
    assert answer.headers["x-raynest-scheduler"] == "UniPCMultistepScheduler"
    assert answer.headers["x-raynest-vae"] == "org/tiny"


def test_the_header_names_the_replica_that_painted() -> None:
    class OnReplica(StandIn):
        async def paint(self, request: ImageRequest) -> Painting:
            return replace(await super().paint(request), replica="default_Painter#a1b2")

    assert get(OnReplica(), {"prompt": "x"}).headers["x-raynest-worker"] == "default_Painter#a1b2"


@given(st.floats(0, 50))
def test_a_number_in_full_is_that_number(value: float) -> None:
    assert float(in_full(value)) == value
    assert (in_full(7.0), in_full(2.5), in_full(0.1)) == ("7", "2.5", "0.1")


def test_an_answer_that_never_came_is_told_as_what_it_was() -> None:
    """A bug is a 500 in the metrics, and not a client that went away."""
    seen: list[tuple[str, int]] = []

    class Meter(NoMeter):
        def request(self, path: str, status: int, seconds: float) -> None:
            seen.append((path, status))

    async def ask(error: BaseException) -> None:
        async def fail() -> None:
            raise error

        api = create_api(StandIn(fail), ServingOptions(), Meter())
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.get("/imagine", params={"prompt": "x"})

    asyncio.run(ask(KeyError("a bug")))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ask(asyncio.CancelledError()))
    assert seen == [("/imagine", 500), ("/imagine", 499)]


def test_a_model_name_beyond_latin_1_fits_a_header() -> None:
    class Foreign(StandIn):
        async def paint(self, request: ImageRequest) -> Painting:
            return replace(await super().paint(request), model="模型", filtered=True)

    answer = get(Foreign(), {"prompt": "x"})
    assert answer.headers["x-raynest-model"] == "\\u6a21\\u578b"
    assert answer.headers["x-raynest-filtered"] == "safety checker"
