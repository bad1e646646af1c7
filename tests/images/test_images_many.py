"""POST /v1/images: the client's reading of a stream, and whole batches made through it."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.errors import AccessError, RemoteError, UnreachableError, Verdict
from raynest_pipeline.images.client import Answer, Client
from raynest_pipeline.images.client_many import ask_many, not_offered
from raynest_pipeline.images.dispatch import Dispatcher
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.flight import Job
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.offer import Offer, items_of, request_for
from raynest_pipeline.images.pace import Pace
from raynest_pipeline.images.result import BatchResult, Progress
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff, SystemClock

FAST = Backoff(first=0.01, factor=1.0, most=0.01, jitter=0.0)
SETTINGS = Batch(concurrency=16, timeout_seconds=20, attempts=3)
OFFER = Offer(parameters=frozenset({"prompt", "seed", "img_size"}), documented=True, items=64)


@pytest.fixture
def many(endpoint: Any) -> Any:
    """An endpoint that takes requests for up to 8 images."""
    endpoint.items, endpoint.at_once = 8, 4
    return endpoint


class Bench:
    """A batch folder and an endpoint to fill it from."""

    def __init__(self, root: Path, endpoint: Any) -> None:
        self.endpoint = endpoint
        self.store = BatchFolder(root, "b")

    def run(self, prompts: Any, settings: Batch = SETTINGS, **options: Any) -> BatchResult:
        options = {"backoff": FAST, "unreachable_after": 1.0} | options
        return generate(prompts, self.endpoint.target, self.store, settings, **options)

    def check_exact(self, prompts: list[Any]) -> None:
        """Every prompt has one image, recorded once and whole."""
        lines = [json.loads(line) for line in self.store.manifest_path.read_text().splitlines()]
        settled = sorted(line["id"] for line in lines if line["status"] != "failed")
        assert settled == sorted(prompt.id for prompt in prompts)
        for record in read_manifest(self.store.manifest_path):
            data = self.store.read(str(record.file))
            assert data is not None and hashlib.sha256(data).hexdigest() == record.sha256


@pytest.fixture
def bench(tmp_path: Path, many: Any) -> Bench:
    return Bench(tmp_path / "out", many)


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


def test_a_batch_and_its_second_run(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(50)
    first = bench.run(prompts)
    assert (first.made, first.failed) == (50, 0) and first.model == "tiny-untrained (random weights)"
    bench.check_exact(prompts)
    assert max(map(len, bench.endpoint.bodies)) <= 8
    assert 7 <= len(bench.endpoint.bodies) <= 40, "several images to a request"
    record = next(r for r in read_manifest(bench.store.manifest_path) if r.id == "p7")
    assert (record.seed, record.attempts, record.width) == (7, 1, 32) and (record.latency_ms or 0) > 0
    assert bench.run(prompts).reused == 50
    assert sum(bench.endpoint.requests.values()) == 50


def test_it_makes_the_same_files_as_one_by_one(tmp_path: Path, endpoint: Any, kit: Any) -> None:
    prompts, files = kit.prompts(12), []
    for items in (0, 8):
        endpoint.items = items
        bench = Bench(tmp_path / str(items), endpoint)
        bench.run(prompts)
        files.append({p.name: p.read_bytes() for p in (bench.store.path / "images").glob("p*")})
    assert files[0] == files[1] and len(files[0]) == 12
    assert endpoint.bodies, "the second went through POST"


def answering(status: int, body: str = "{}", headers: dict[str, str] | None = None) -> Any:
    async def answer(fake: Any, request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers=headers)

    return answer


@pytest.mark.parametrize(
    ("poison", "requests", "reason"),
    [
        (answering(422, '{"detail": [{"loc": ["query", "prompt"], "msg": "too rude"}]}'), 1, "too rude"),
        (answering(500, '{"detail": "NaN in latents"}'), 3, "NaN in latents"),
        (answering(504, '{"detail": "too slow"}'), 3, "too slow"),
        (answering(200, "<html>"), 3, "not image/png"),
    ],
)
def test_a_poisoned_prompt_fails_alone(
    bench: Bench, kit: Any, poison: Any, requests: int, reason: str
) -> None:
    bench.endpoint.by_prompt["prompt 3"] = poison
    prompts = kit.prompts(20)
    result = bench.run(prompts)
    assert (result.made, result.failed) == (19, 1)
    (failure,) = result.failures
    assert failure.id == "p3" and failure.attempts == requests and reason in failure.reason
    assert bench.endpoint.requests["prompt 3"] == requests
    del bench.endpoint.by_prompt["prompt 3"]
    assert bench.run(prompts).made == 1
    bench.check_exact(prompts)


def test_only_the_lost_tail_of_a_stream_is_asked_for_again(bench: Bench, kit: Any) -> None:
    bench.endpoint.break_after = 3
    prompts = kit.prompts(24)
    assert bench.run(prompts).made == 24
    bench.check_exact(prompts)
    first = [item["prompt"] for item in bench.endpoint.bodies[0]]
    assert len(first) == 8
    alone = [body[0]["prompt"] for body in bench.endpoint.bodies[1:] if len(body) == 1]
    lost = set(first) & set(alone)
    # What came before the break was on its way when the connection was cut: it may be lost with it.
    assert 5 <= len(lost) <= 8
    asked = sum(len(body) for body in bench.endpoint.bodies)
    assert asked == 24 + len(lost)


def test_a_prompt_that_kills_its_stream_takes_no_other_with_it(bench: Bench, kit: Any) -> None:
    async def kill(fake: Any, request: web.Request) -> web.Response:
        request.transport.abort()  # type: ignore[union-attr]
        return web.Response(body=b"")

    bench.endpoint.by_prompt["prompt 5"] = kill
    prompts = kit.prompts(24)
    result = bench.run(prompts)
    assert (result.made, result.failed) == (23, 1) and result.failures[0].id == "p5"


def test_a_full_queue_uses_up_no_attempt_and_all_wait_as_asked(bench: Bench, kit: Any) -> None:
    times: list[float] = []
    refused = [0]

    async def full_at_first(fake: Any, request: web.Request) -> web.StreamResponse:
        times.append(asyncio.get_running_loop().time())
        if refused[0] < 20:
            refused[0] += 1
            return web.json_response({"detail": "full"}, status=503, headers={"Retry-After": "1"})
        return await fake.good(request)  # type: ignore[no-any-return]

    bench.endpoint.answer = full_at_first
    prompts = kit.prompts(16)
    result = bench.run(prompts, Batch(concurrency=16, attempts=1))
    assert (result.made, result.failed) == (16, 0)
    assert all(r.attempts == 1 for r in read_manifest(bench.store.manifest_path))
    rounds = 1 + sum(later - earlier > 0.9 for earlier, later in zip(times, times[1:], strict=False))
    assert rounds >= 3, "each refusal was followed by the pause it asked for"


def test_an_endpoint_that_only_refuses_is_not_hammered_and_ends_at_the_deadline(
    bench: Bench, kit: Any
) -> None:
    bench.endpoint.answer = answering(503, '{"detail": "full"}', {"Retry-After": "1"})
    result = bench.run(kit.prompts(10), Batch(concurrency=8, deadline_seconds=2.5))
    assert result.failed == 10
    assert "batch.deadline_seconds" in result.failures[0].reason
    # At first as many as two batches of 4; then half as many each second, one at the end.
    assert sum(bench.endpoint.requests.values()) <= 8 + 4 + 2 + 1 + 10


def test_the_deadline_covers_all_attempts(bench: Bench, kit: Any) -> None:
    bench.endpoint.by_prompt["prompt 1"] = answering(500, '{"detail": "no"}')
    slow = Backoff(first=0.4, factor=1.0, most=0.4, jitter=0.0)
    result = bench.run(kit.prompts(3), Batch(concurrency=4, attempts=20, deadline_seconds=1.0), backoff=slow)
    assert (result.made, result.failed) == (2, 1)
    assert 1 <= result.failures[0].attempts <= 3 and "Given up after 1 s" in result.failures[0].reason


def test_an_endpoint_that_does_not_keep_its_offer_is_asked_one_by_one(bench: Bench, kit: Any) -> None:
    bench.endpoint.many = answering(405)
    prompts = kit.prompts(20)
    assert bench.run(prompts).made == 20
    bench.check_exact(prompts)
    assert 1 <= len(bench.endpoint.bodies) <= 4 and all(
        record.attempts == 1 for record in read_manifest(bench.store.manifest_path)
    )


def test_expired_credentials_end_the_batch(bench: Bench, kit: Any) -> None:
    bench.endpoint.many = answering(401)
    with pytest.raises(AccessError):
        bench.run(kit.prompts(5))


async def until_let_go(fake: Any, request: Any) -> web.Response:
    """Hang until the client closes its connection."""
    while not fake.release.is_set() and request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
    return web.Response(status=500, body=b"")


def test_cancelling_a_slow_batch_ends_in_seconds_and_can_be_resumed(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(30)
    for i in range(5, 30):
        bench.endpoint.by_prompt[f"prompt {i}"] = until_let_go
    seen: list[Progress] = []
    result = bench.run(
        prompts,
        Batch(concurrency=16, timeout_seconds=600),
        on_progress=seen.append,
        progress_every=0.0,
        should_stop=lambda: bool(seen) and seen[-1].made >= 5,
    )
    assert result.stopped and (result.made, result.failed) == (5, 0)
    kit.eventually(lambda: bench.endpoint.in_flight == 0)
    bench.endpoint.by_prompt.clear()
    assert bench.run(prompts).made == 25
    bench.check_exact(prompts)


def test_an_endpoint_that_vanishes_and_comes_back(bench: Bench, kit: Any) -> None:
    bench.endpoint.delay = 0.05
    prompts, seen = kit.prompts(120), []

    def blink(progress: Progress) -> None:
        if progress.made >= 10 and not seen:
            seen.append("")
            bench.endpoint.down_status = 503
        elif progress.outage:
            seen.append(progress.outage)
            bench.endpoint.down_status = None

    result = bench.run(prompts, on_progress=blink, progress_every=0.0, unreachable_after=40)
    assert (result.made, result.failed) == (120, 0) and seen[1:]
    bench.check_exact(prompts)
    bench.endpoint.down_status = 502
    with pytest.raises(UnreachableError):
        bench.run([*prompts, *kit.prompts(3, 500)], unreachable_after=0.3)


def slow_once(prompt: str, endpoint: Any) -> Callable[[], int]:
    """The first request for `prompt` hangs, the next is answered; how often it was asked for."""
    asked = [0]

    async def answer(fake: Any, request: web.Request) -> web.StreamResponse:
        asked[0] += 1
        if asked[0] == 1:
            return await until_let_go(fake, request)
        return await fake.good(request)  # type: ignore[no-any-return]

    endpoint.by_prompt[prompt] = answer
    return lambda: asked[0]


@pytest.mark.parametrize("items", [0, 8])
def test_a_hedged_straggler_is_asked_for_twice_and_the_loser_let_go(
    tmp_path: Path, endpoint: Any, kit: Any, items: int
) -> None:
    endpoint.items, endpoint.at_once = items, 4
    bench, prompts = Bench(tmp_path, endpoint), kit.prompts(60)
    asked = slow_once("prompt 50", endpoint)
    result = bench.run(prompts, Batch(concurrency=16, timeout_seconds=600, hedge=90))
    assert (result.made, result.failed) == (60, 0) and asked() == 2
    bench.check_exact(prompts)
    kit.eventually(lambda: endpoint.in_flight == 0)
    # The budget: a tenth, and one.
    assert sum(endpoint.requests.values()) <= 60 + 7


class HedgeOnce:
    """Hedges the first image, at once."""

    left = 1

    def after(self) -> float | None:
        return 0.0 if self.left else None

    def hedged(self) -> None:
        self.left -= 1

    def answered(self, seconds: float) -> None:
        """Of no interest."""


class Made:
    """Work for a dispatcher: two images, of which one answer is damaged."""

    def __init__(self, prompts: list[Any]) -> None:
        self.jobs = [Job(prompt, request_for(prompt, Batch(), OFFER), prompt.id) for prompt in prompts]
        self.settled: list[tuple[str, bytes]] = []

    def take(self, most: int) -> tuple[list[Job], bool]:
        return self.jobs, True

    def settle(self, arrivals: Any) -> list[RemoteError | None]:
        self.settled.extend((arrival.job.file, arrival.answer.body) for arrival in arrivals)
        broken = RemoteError("The PNG is cut off.", verdict=Verdict.RETRYABLE, status=200)
        return [broken if arrival.answer.body == b"damaged" else None for arrival in arrivals]

    def fail(self, job: Job, error: RemoteError, attempts: int) -> None:
        raise AssertionError(error)


def test_an_image_whose_hedge_came_damaged_is_not_asked_for_a_third_time(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first request is still under way; a third one's answer once ended the whole batch."""
    work, asked = Made(kit.prompts(2)), list[int]()

    async def script(client: Any, requests: Any, on_answer: Any, *, seconds: float) -> None:
        asked.append(len(requests))
        if len(asked) == 2:
            on_answer(0, Answer(200, {}, b"damaged"))
            return
        while ("p0", b"damaged") not in work.settled or next(iter(dispatcher._flights)).over:
            await asyncio.sleep(0.001)
        for index in range(len(requests)):
            on_answer(index, Answer(200, {}, b"good"))

    monkeypatch.setattr("raynest_pipeline.images.dispatch.ask_many", script)
    slow = Backoff(first=5.0, factor=1.0, most=5.0, jitter=0.0)
    client: Any = SimpleNamespace(where=lambda: "here")
    outage: Any = None
    pace = Pace(most=3, start=3)
    settings = Batch(concurrency=3, hedge=90, attempts=5)
    dispatcher = Dispatcher(
        client, work, outage, settings, pace, items=8, url="", clock=SystemClock(), backoff=slow
    )
    dispatcher._hedge = HedgeOnce()  # type: ignore[assignment]
    asyncio.run(asyncio.wait_for(dispatcher.run(), 40))
    assert asked == [2, 1] and dispatcher._again == [] and pace.in_flight == 0
    assert sorted(work.settled) == [("p0", b"damaged"), ("p0", b"good"), ("p1", b"good")]


def test_without_hedging_a_straggler_has_its_time(bench: Bench, kit: Any) -> None:
    asked = slow_once("prompt 50", bench.endpoint)
    result = bench.run(kit.prompts(60), Batch(concurrency=16, timeout_seconds=1.5))
    assert result.made == 60 and asked() == 2
    assert sum(bench.endpoint.requests.values()) == 61
    assert {r.id: r.attempts for r in read_manifest(bench.store.manifest_path)}["p50"] == 2
