"""The model deployment without a cluster: its bound, refusals, health, and what a finished image carries."""

import asyncio
import io
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raynest_pipeline.serving import painter as room
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterFacts,
    PainterUnavailable,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.serving.engine import Bucket, Canvas
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.painter import Painter, finish, painter_deployment
from raynest_pipeline.serving.sources import LoadedModel

MODEL = LoadedModel(None, "stand-in", "r1", "cpu", None, "float32", 64, 20, 7.5, 0.25)
CANVAS = Canvas(np.full((64, 64, 3), 9, np.uint8), Bucket(64, 20, 2.5), 0.123456, 3, False)


class Meter:
    """Stands for Ray's metrics, which exist only inside a replica."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.depths: list[int] = []
        self.waits: list[float] = []

    def depth(self, images: int) -> None:
        self.depths.append(images)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def painted(self, outcomes: Sequence[Canvas | PaintingFailed]) -> None:
        self.calls.append(len(outcomes))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that needs a replica replaced."""
    monkeypatch.setattr(room, "RayPainterMeter", Meter)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(replica_tag="r-1"))


@pytest.fixture
def painter(stand_ins: None) -> Painter:
    """A Painter that holds 2 + 1 requests."""
    return Painter(ServingOptions(max_batch_size=2, queue_size=1, cpu_threads=1))


def batches(painter: Painter, answer: Callable[[ImageRequest], Coroutine[Any, Any, Any]]) -> None:
    batcher: Any = painter._batcher
    batcher.paint = answer


def test_the_constructor_returns_warm(painter: Painter) -> None:
    facts = asyncio.run(painter.facts())
    assert facts.warm
    assert facts.warm_up_s > 0
    assert (facts.model, facts.device, facts.max_batch_size) == ("tiny-untrained (random weights)", "cpu", 2)


def test_one_image_more_than_it_holds_is_refused_and_room_comes_back(painter: Painter) -> None:
    async def crowd() -> tuple[list[Any], Any]:
        release = asyncio.Event()

        async def held(_request: ImageRequest) -> Canvas:
            await release.wait()
            return CANVAS

        batches(painter, held)
        waiting = [asyncio.create_task(painter.paint(ImageRequest("x", n))) for n in range(4)]
        refused, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert len(pending) == 3
        release.set()
        await asyncio.gather(*pending)
        return [task.result() for task in refused], await painter.paint(ImageRequest("x", 9))

    refusals, later = asyncio.run(crowd())
    assert [type(refusal) for refusal in refusals] == [PainterBusy]
    assert str(refusals[0]) == "the queue is full: 3 images are in work or waiting"
    assert isinstance(later, Painting)


def test_a_caller_that_goes_away_frees_its_place(painter: Painter) -> None:
    async def leave() -> int:
        async def never(_request: ImageRequest) -> Canvas:
            await asyncio.Event().wait()
            return CANVAS

        batches(painter, never)
        task = asyncio.create_task(painter.paint(ImageRequest("x", 0)))
        await asyncio.sleep(0)
        assert painter._in_work == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return painter._in_work

    assert asyncio.run(leave()) == 0


def test_a_failure_is_an_answer_and_not_an_exception(painter: Painter) -> None:
    async def fail(_request: ImageRequest) -> PaintingFailed:
        return PaintingFailed("RuntimeError: x")

    batches(painter, fail)
    outcome = asyncio.run(painter.paint(ImageRequest("x", 0)))
    assert isinstance(outcome, PaintingFailed)
    assert str(outcome) == "RuntimeError: x"


def test_real_batches_come_from_the_engine(painter: Painter) -> None:
    canvases = asyncio.run(painter._paint_requests([ImageRequest("x", n, steps=1) for n in range(2)]))
    assert [canvas.batch for canvas in canvases if isinstance(canvas, Canvas)] == [2, 2]


def test_memory_that_ran_out_at_one_size_is_told_and_heeded_there_alone(painter: Painter) -> None:
    pipeline = painter._engine.model.pipeline
    calls: list[tuple[int, int]] = []

    def call(**more: Any) -> Any:
        calls.append((more["height"], len(more["prompt"])))
        if calls[-1] == (32, 2):
            raise RuntimeError("CUDA error: out of memory")
        return pipeline(**more)

    painter._engine.model.pipeline = call

    async def paint() -> PainterFacts:
        for size in (32, 32, 64):
            requests = [ImageRequest("x", n, size=size, steps=1) for n in range(2)]
            outcomes = await asyncio.gather(*[painter.paint(request) for request in requests])
            assert [type(outcome) for outcome in outcomes] == [Painting, Painting]
        return await painter.facts()

    facts = asyncio.run(paint())
    assert calls == [(32, 2), *[(32, 1)] * 4, (64, 2)]
    assert (facts.max_batch_size, facts.batch_limits) == (2, {"32": 1})
    assert facts.device_failure is None
    meter = painter._meter
    assert isinstance(meter, Meter)
    assert meter.calls == [2, 1, 1, 2], "the batcher knows the limit of each size"


def test_health_fails_when_the_device_has(painter: Painter) -> None:
    asyncio.run(painter.check_health())
    painter._engine.device_failure = "CUDA error: out of luck"
    with pytest.raises(RuntimeError, match="the device failed: CUDA error: out of luck"):
        asyncio.run(painter.check_health())


def test_a_device_that_hangs_has_failed_when_nobody_can_be_waiting_any_more(
    monkeypatch: pytest.MonkeyPatch, stand_ins: None
) -> None:
    async def hang() -> None:
        now = [0.0]
        painter = Painter(ServingOptions(deadline_s=30, warm_up=False, cpu_threads=1), lambda: now[0])
        call: Future[list[Any]] = Future()
        monkeypatch.setattr(painter._engine, "submit", lambda _requests: call)
        first = asyncio.create_task(painter.paint(ImageRequest("x", 0)))
        while painter._batch_began is None:
            await asyncio.sleep(0)
        now[0] = 119.0
        await painter.check_health()
        assert (await painter.facts()).device_failure is None
        now[0] = 121.0
        with pytest.raises(RuntimeError, match="the device failed: a batch has been in work for 121 s"):
            await painter.check_health()
        assert isinstance(await painter.paint(ImageRequest("x", 1)), PainterUnavailable)
        assert (await painter.facts()).device_failure == "a batch has been in work for 121 s"
        call.set_result([CANVAS])
        assert isinstance(await first, Painting)
        await painter.check_health()

    asyncio.run(hang())


def test_a_failed_device_is_unavailable_and_not_the_image_s_fault(painter: Painter) -> None:
    """503, so that the client comes back when Serve has replaced the replica."""

    async def fail(_request: ImageRequest) -> PaintingFailed:
        painter._engine.device_failure = "CUDA error: out of luck"
        return PaintingFailed("RuntimeError: CUDA error: out of luck")

    batches(painter, fail)
    outcomes = [asyncio.run(painter.paint(ImageRequest("x", 0))) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [PainterUnavailable, PainterUnavailable]
    assert {str(outcome) for outcome in outcomes} == {"the device failed: CUDA error: out of luck"}
    assert asyncio.run(painter.facts()).device_failure == "CUDA error: out of luck"


def test_a_deadline_that_passed_in_the_queue_is_a_value_too(painter: Painter) -> None:
    async def late(_request: ImageRequest) -> Canvas:
        raise TimeoutError("the deadline passed in the queue")

    batches(painter, late)
    outcome = asyncio.run(painter.paint(ImageRequest("x", 0)))
    assert isinstance(outcome, TimeoutError)
    assert painter._in_work == 0


def test_facts_and_meter_count_what_cost_device_time(painter: Painter) -> None:
    async def two() -> PainterFacts:
        await asyncio.gather(*[painter.paint(ImageRequest("x", n, steps=1)) for n in range(2)])
        return await painter.facts()

    facts = asyncio.run(two())
    assert (facts.replica, facts.waiting, facts.images_painted) == ("r-1", 0, 2)
    meter = painter._meter
    assert isinstance(meter, Meter)
    assert sum(meter.calls) == len(meter.waits) == 2
    assert meter.depths[-1] == 0


def test_the_file_alone_tells_how_to_make_the_image_again() -> None:
    painting = finish(ImageRequest("ein Kätzchen 模型", 7, "blur"), CANVAS, MODEL)
    image = Image.open(io.BytesIO(painting.data))
    image.load()
    assert image.text == {
        "prompt": "ein Kätzchen 模型",
        "negative_prompt": "blur",
        "seed": "7",
        "steps": "20",
        "guidance": "2.5",
        "size": "64x64",
        "model": "stand-in",
        "revision": "r1",
        "software": "raynest",
        "scheduler": "the model's own",
    }
    assert (painting.seconds, painting.batch, painting.filtered) == (0.1235, 3, False)
    assert painting.made_with == {"scheduler": "the model's own"}


def test_the_file_tells_the_guidance_exactly() -> None:
    canvas = replace(CANVAS, bucket=Bucket(64, 20, 7.123456789))
    text = Image.open(io.BytesIO(finish(ImageRequest("x", 7), canvas, MODEL).data)).text
    assert float(text["guidance"]) == 7.123456789


def test_the_deployment_is_sized_by_its_options() -> None:
    options = ServingOptions(num_cpus=3, num_gpus=0.5, replicas=2, max_batch_size=4, queue_size=10)
    deployment = painter_deployment(options)
    assert deployment.name == "Painter"
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.max_ongoing_requests > options.replica_capacity
    # Serve replaces a replica when three checks have failed; until then a broken device draws requests.
    assert 3 * deployment._deployment_config.health_check_period_s < 10


def test_autoscaling_aims_at_a_batch_in_work_for_each_replica() -> None:
    deployment = painter_deployment(ServingOptions(min_replicas=1, max_replicas=3, max_batch_size=4))
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 4)
    assert painter_deployment(ServingOptions())._deployment_config.autoscaling_config is None
