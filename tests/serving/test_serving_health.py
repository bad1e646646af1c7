"""What the front counts, bounds and remembers, and /health, over a stand-in painter."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from serving_stand_in import FACTS, StandIn, failing, get

from raynest_pipeline.serving.api import create_api
from raynest_pipeline.serving.contract import ImageRequest, PainterBusy, PainterFacts, PainterUnavailable
from raynest_pipeline.serving.front import LOADING, SILENT_S, Front
from raynest_pipeline.serving.options import ServingOptions


def test_retry_after_follows_the_pace_within_a_minute() -> None:
    front = Front(StandIn(), 10)
    assert front.retry_after_s == 1
    front._seconds_per_image = 7.2
    assert front.retry_after_s == 8
    front._seconds_per_image = 1e6
    assert front.retry_after_s == 60


def test_what_is_beyond_the_bound_is_refused_when_no_painter_does_it() -> None:
    """While there is no model replica Serve lets every request wait, in its proxy without end."""

    async def crowd() -> tuple[list[BaseException], int]:
        release = asyncio.Event()

        async def held() -> None:
            await release.wait()

        front = Front(StandIn(held), 60, most_held=2)
        waiting = [asyncio.create_task(front.paint(ImageRequest("x", n))) for n in range(2)]
        await asyncio.sleep(0)
        refused = await asyncio.gather(front.paint(ImageRequest("x", 9)), return_exceptions=True)
        in_work = front.in_work
        release.set()
        await asyncio.gather(*waiting)
        await front.paint(ImageRequest("x", 9))
        return [error for error in refused if isinstance(error, BaseException)], in_work

    refusals, in_work = asyncio.run(crowd())
    assert [type(refusal) for refusal in refusals] == [PainterBusy]
    assert str(refusals[0]) == "the queue is full: 2 images are in work or waiting"
    assert in_work == 2


def test_a_painter_that_is_silent_for_long_is_no_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve lets a call wait while there is no replica: nobody says that it has died."""
    monkeypatch.setattr("raynest_pipeline.serving.front.FACTS_TIMEOUT_S", 0.01)

    async def watch() -> list[tuple[int, str]]:
        now, silent, told = [0.0], [False], []

        async def maybe() -> None:
            if silent[0]:
                await asyncio.Event().wait()

        backend = StandIn(maybe)
        front = Front(backend, 10, clock=lambda: now[0])

        async def look(passed: float) -> None:
            now[0] += passed
            status, body = await front.health()
            told.append((status, str(body["status"])))

        await look(0)
        silent[0] = True
        await look(1000)
        await look(SILENT_S - 1)
        await look(2)
        silent[0] = False
        await front.paint(ImageRequest("x", 0))
        silent[0] = True
        await look(0)
        await look(SILENT_S)
        silent[0] = False
        await look(0)
        return told

    ok, busy, failed = (200, "ok"), (200, "busy"), (503, "failed")
    assert asyncio.run(watch()) == [ok, busy, busy, failed, busy, failed, ok]


def test_health_tells_the_facts_and_the_counts() -> None:
    async def ask() -> tuple[dict[str, object], dict[str, object]]:
        transport = httpx.ASGITransport(create_api(StandIn(), ServingOptions()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            before = (await client.get("/health")).json()
            await client.get("/imagine", params={"prompt": "x"})
            return before, (await client.get("/health")).json()

    before, after = asyncio.run(ask())
    assert before["status"] == "ok"
    assert (before["model"], before["device"], before["warm"], before["native_size"]) == (
        "stand-in",
        "cpu",
        True,
        64,
    )
    assert (before["queue_depth"], before["images_served"]) == (0, 0)
    assert (after["queue_depth"], after["images_served"]) == (0, 1)


def test_health_counts_what_is_in_work() -> None:
    async def watch() -> tuple[int, int]:
        release = asyncio.Event()

        async def held() -> None:
            await release.wait()

        front = Front(StandIn(held), 10)
        painting = [asyncio.create_task(front.paint(ImageRequest("x", n))) for n in range(3)]
        await asyncio.sleep(0)
        during = front.in_work
        release.set()
        await asyncio.gather(*painting)
        return during, front.in_work

    assert asyncio.run(watch()) == (3, 0)


def test_health_is_503_when_the_model_is_gone() -> None:
    answer = get(failing(PainterUnavailable("the model replica died")), {}, "/health")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "failed",
        "detail": "the model replica died",
        "queue_depth": 0,
        "images_served": 0,
    }


def test_health_is_503_when_the_device_has_failed() -> None:
    class Broken(StandIn):
        async def facts(self) -> PainterFacts:
            return replace(FACTS, device_failure="CUDA error: out of luck", replica="r-1")

    answer = get(Broken(), {}, "/health")
    assert answer.status_code == 503
    told = answer.json()
    assert (told["status"], told["detail"]) == ("failed", "the device failed: CUDA error: out of luck")
    assert (told["model"], told["replica"]) == ("stand-in", "r-1")


def test_a_busy_painter_leaves_health_with_what_it_last_knew() -> None:
    async def watch() -> tuple[tuple[int, dict[str, object]], tuple[int, dict[str, object]]]:
        busy = [False]

        async def maybe() -> None:
            if busy[0]:
                raise PainterBusy("full")

        front = Front(StandIn(maybe), 10)
        first = await front.health()
        busy[0] = True
        return first, await front.health()

    (_, first), (status, second) = asyncio.run(watch())
    assert status == 200
    assert (first["status"], second["status"]) == ("ok", "busy")
    assert second["model"] == "stand-in"


@pytest.mark.parametrize("passed", [0.0, 10 * SILENT_S])
def test_health_is_503_while_the_first_replica_loads(passed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: gigabytes may have to come first."""
    monkeypatch.setattr("raynest_pipeline.serving.front.FACTS_TIMEOUT_S", 0.01)

    async def watch() -> list[tuple[int, dict[str, object]]]:
        now, ready = [0.0], asyncio.Event()

        async def maybe() -> None:
            await ready.wait()

        front = Front(StandIn(maybe), 10, clock=lambda: now[0])
        first = await front.health()
        now[0] += passed
        second = await front.health()
        ready.set()
        return [first, second, await front.health()]

    (first_status, first), second, (status, body) = asyncio.run(watch())
    assert first_status == 503
    assert first == {"status": "loading", "detail": LOADING, "queue_depth": 0, "images_served": 0}
    assert second == (503, first)
    assert (status, body["status"], body["model"]) == (200, "ok", "stand-in")


def test_a_full_replica_that_has_told_nothing_yet_is_no_healthy_one() -> None:
    answer = get(failing(PainterBusy("the queue is full")), {}, "/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "loading")
