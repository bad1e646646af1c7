"""Whole batches made through POST /v1/images."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from images_many import Bench, until_let_go

from raynest_pipeline.errors import AccessError, UnreachableError
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.result import Progress
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff


@pytest.fixture
def bench(tmp_path: Path, many: Any) -> Bench:
    return Bench(tmp_path / "out", many)


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
    prompts, seen = kit.prompts(120), list[str]()

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
