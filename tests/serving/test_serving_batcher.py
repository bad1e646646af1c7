"""The queue before the pipeline, without one: what gets into a batch, in which order, and what never."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raynest_pipeline.serving.batcher import Batcher, Outcome
from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.engine import Bucket, Canvas


def bucket_of(request: ImageRequest) -> Bucket:
    return Bucket(request.size or 64, 20, 7.5)


def canvas(request: ImageRequest, batch: int) -> Canvas:
    pixels = np.full((2, 2, 3), request.seed % 256, np.uint8)
    return Canvas(pixels, bucket_of(request), 0.1, batch, False)


class Counts:
    def __init__(self) -> None:
        self.depths: list[int] = []
        self.waits: list[float] = []

    def depth(self, images: int) -> None:
        self.depths.append(images)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)


class Device:
    """Paints batches when told to; `batches` are the seeds of each."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = asyncio.Event()
        self.now = 100.0

    async def paint(self, requests: list[ImageRequest]) -> Sequence[Outcome]:
        self.batches.append([request.seed for request in requests])
        await self.free.wait()
        return [canvas(request, len(requests)) for request in requests]

    def batcher(self, limit: int = 4, wait_s: float = 0.0, deadline_s: float = 60.0) -> Batcher:
        self.counts = Counts()
        return Batcher(
            self.paint,
            bucket_of,
            lambda _bucket: limit,
            self.counts,
            wait_s=wait_s,
            deadline_s=deadline_s,
            clock=lambda: self.now,
        )


def run(scene: Callable[[Device], Coroutine[Any, Any, None]]) -> Device:
    async def play() -> Device:
        device = Device()
        async with asyncio.timeout(40):
            await scene(device)
        return device

    return asyncio.run(play())


def arrive(batcher: Batcher, seed: int, size: int = 64) -> "asyncio.Task[Outcome]":
    return asyncio.create_task(batcher.paint(ImageRequest("x", seed, size=size)))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_everyone_gets_the_own_image_in_batches_of_the_limit() -> None:
    async def scene(device: Device) -> None:
        device.free.set()
        batcher = device.batcher(limit=4)
        tasks = [arrive(batcher, seed) for seed in range(10)]
        for seed, outcome in enumerate(await asyncio.gather(*tasks)):
            assert isinstance(outcome, Canvas)
            assert outcome.pixels[0, 0, 0] == seed
        assert batcher.waiting == 0

    device = run(scene)
    assert device.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(device.counts.waits) == 10
    assert device.counts.depths[-1] == 0


def test_a_batch_is_of_one_bucket_and_begins_with_who_has_waited_longest() -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher(limit=3)
        first = arrive(batcher, 0)
        await turns()
        sizes = [128, 64, 128, 64, 64, 64, 128]
        tasks = [arrive(batcher, seed, size) for seed, size in enumerate(sizes, 1)]
        await turns()
        device.free.set()
        await asyncio.gather(first, *tasks)

    assert run(scene).batches == [[0], [1, 3, 7], [2, 4, 5], [6]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([64, 128, 256]), min_size=1, max_size=40), st.integers(1, 8))
def test_nobody_waits_for_more_calls_than_in_plain_order_of_arrival(sizes: list[int], limit: int) -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher(limit=limit)
        device.free.set()
        await asyncio.gather(*[arrive(batcher, seed, size) for seed, size in enumerate(sizes)])

    batches = run(scene).batches
    call_of = {seed: call for call, batch in enumerate(batches) for seed in batch}
    assert sorted(call_of) == list(range(len(sizes)))
    for seed in call_of:
        plain = {
            (size, sum(1 for s in sizes[:index] if s == size) // limit)
            for index, size in enumerate(sizes[: seed + 1])
        }
        assert call_of[seed] < len(plain)
    for batch in batches:
        assert len({sizes[seed] for seed in batch}) == 1
        assert len(batch) <= limit


def test_an_incomplete_batch_waits_for_company_as_long_as_it_comes() -> None:
    async def scene(device: Device) -> None:
        device.free.set()
        batcher = device.batcher(limit=3, wait_s=30)
        tasks = []
        for seed in range(3):
            assert device.batches == []
            device.now += 20
            tasks.append(arrive(batcher, seed))
            await turns()
        await asyncio.gather(*tasks)

    assert run(scene).batches == [[0, 1, 2]]


def test_an_incomplete_batch_starts_when_nobody_comes_or_it_has_waited_too_long() -> None:
    async def scene(device: Device) -> None:
        device.free.set()
        batcher = device.batcher(limit=100, wait_s=0.01)
        # The device's clock stands still: only real time ends this wait.
        lonely = arrive(batcher, 0)
        await turns()
        assert device.batches == []
        device.now += 0.02
        await lonely
        tasks = []
        for seed in range(1, 9):
            device.now += 0.009
            tasks.append(arrive(batcher, seed))
            await turns()
        assert len(device.batches) == 2
        device.now += 1
        await asyncio.gather(*tasks)

    batches = run(scene).batches
    assert batches[0] == [0]
    assert 5 <= len(batches[1]) <= 7


def test_who_went_away_never_reaches_the_device_and_leaves_no_hole() -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher(limit=4)
        first = arrive(batcher, 0)
        await turns()
        tasks = [arrive(batcher, seed) for seed in range(1, 8)]
        await turns()
        assert batcher.waiting == 7
        for gone in (tasks[0], tasks[2]):
            gone.cancel()
        await turns()
        assert batcher.waiting == 5
        # In the very turn in which the device comes free.
        tasks[4].cancel()
        device.free.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)

    assert run(scene).batches == [[0], [2, 4, 6, 7]]


def test_a_whole_queue_that_went_away_costs_no_call_and_the_next_is_served() -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher(limit=4)
        first = arrive(batcher, 0)
        await turns()
        tasks = [arrive(batcher, seed) for seed in range(1, 4)]
        await turns()
        for task in tasks:
            task.cancel()
        device.free.set()
        await asyncio.gather(first, *tasks, return_exceptions=True)
        await turns()
        await arrive(batcher, 9)

    assert run(scene).batches == [[0], [9]]


def test_the_deadline_ends_waiting_before_it_costs_device_time() -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher(limit=2, deadline_s=10)
        first = arrive(batcher, 0)
        await turns()
        late = [arrive(batcher, seed) for seed in (1, 2)]
        await turns()
        device.now += 11
        fresh = arrive(batcher, 3)
        await turns()
        device.free.set()
        outcomes = await asyncio.gather(first, *late, fresh, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Canvas, TimeoutError, TimeoutError, Canvas]
        assert str(outcomes[1]) == "the deadline passed in the queue"

    device = run(scene)
    assert device.batches == [[0], [3]]
    assert device.counts.waits == [0.0, 0.0]


def test_a_failure_of_one_batch_reaches_its_callers_and_the_queue_goes_on() -> None:
    async def scene(device: Device) -> None:
        calls: list[int] = []

        async def paint(requests: list[ImageRequest]) -> Sequence[Outcome]:
            calls.append(len(requests))
            if len(calls) == 1:
                raise RuntimeError("the thread is gone")
            return [PaintingFailed("ValueError: NaN") for _ in requests]

        batcher = device.batcher(limit=2)
        batcher._run = paint
        outcomes = await asyncio.gather(*[arrive(batcher, n) for n in range(4)], return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the thread is gone"] * 2 + ["ValueError: NaN"] * 2
        assert [type(outcome) for outcome in outcomes[2:]] == [PaintingFailed, PaintingFailed]

    run(scene)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_may_shrink_on_the_way(limit: int) -> None:
    async def scene(device: Device) -> None:
        now = [4]
        batcher = device.batcher()
        batcher._limit = lambda _bucket: now[0]
        first = [arrive(batcher, seed) for seed in range(4)]
        await turns()
        rest = [arrive(batcher, seed) for seed in range(4, 8)]
        now[0] = limit
        device.free.set()
        await asyncio.gather(*first, *rest)

    assert [len(batch) for batch in run(scene).batches] == [4, *[limit] * (4 // limit)]


def test_each_bucket_has_its_own_limit() -> None:
    async def scene(device: Device) -> None:
        batcher = device.batcher()
        batcher._limit = lambda bucket: 1 if bucket.size == 128 else 4
        first = arrive(batcher, 0)
        await turns()
        tasks = [arrive(batcher, seed, size) for seed, size in enumerate([128, 64, 128, 64, 64, 64], 1)]
        await turns()
        device.free.set()
        await asyncio.gather(first, *tasks)

    assert run(scene).batches == [[0], [1], [2, 4, 5, 6], [3]]
