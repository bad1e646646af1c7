"""Stragglers of a batch through POST /v1/images: asked for again, or waited for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from images_many import OFFER, Bench, until_let_go

from raynest_pipeline.errors import RemoteError, Verdict
from raynest_pipeline.images.client import Answer
from raynest_pipeline.images.dispatch import Dispatcher
from raynest_pipeline.images.flight import Job
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.offer import request_for
from raynest_pipeline.images.pace import Pace
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff, SystemClock


@pytest.fixture
def bench(tmp_path: Path, many: Any) -> Bench:
    return Bench(tmp_path / "out", many)


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
