"""The model deployment without a cluster: its bound, refusals, health, and what a finished image carries."""

import asyncio
import io
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raynest_pipeline.serving import painter as room
from raynest_pipeline.serving.contract import ImageRequest, PainterBusy, Painting, PaintingFailed
from raynest_pipeline.serving.engine import Bucket, Canvas
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.painter import Painter, finish, painter_deployment
from raynest_pipeline.serving.sources import LoadedModel

MODEL = LoadedModel(None, "stand-in", "r1", "cpu", None, "float32", 64, 20, 7.5, 0.25)
CANVAS = Canvas(np.full((64, 64, 3), 9, np.uint8), Bucket(64, 20, 2.5), 0.123456, 3, False)


class Meter:
    """Stands for a Ray metric, which exists only inside a replica."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.seen: list[Any] = []

    def inc(self, tags: dict[str, str]) -> None:
        self.seen.append(tags["outcome"])

    def observe(self, value: float) -> None:
        self.seen.append(value)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    """A Painter that holds 2 + 1 requests, with everything that needs a replica replaced."""
    monkeypatch.setattr(room.metrics, "Counter", Meter)
    monkeypatch.setattr(room.metrics, "Histogram", Meter)
    monkeypatch.setattr(room.serve, "batch", lambda **_knobs: lambda function: function)
    return Painter(ServingOptions(max_batch_size=2, queue_size=1, cpu_threads=1))


def batches(painter: Painter, answer: Callable[[ImageRequest], Coroutine[Any, Any, Any]]) -> None:
    painter._paint_batch = answer


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
    assert painter._images.seen == ["refused", *["painted"] * 4]


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
    assert painter._images.seen == ["failed"]


def test_real_batches_come_from_the_engine(painter: Painter) -> None:
    canvases = asyncio.run(painter._paint_requests([ImageRequest("x", n, steps=1) for n in range(2)]))
    assert [canvas.batch for canvas in canvases if isinstance(canvas, Canvas)] == [2, 2]


def test_health_fails_when_the_device_has(painter: Painter) -> None:
    asyncio.run(painter.check_health())
    painter._engine.device_failure = "CUDA error: out of luck"
    with pytest.raises(RuntimeError, match="the device failed: CUDA error: out of luck"):
        asyncio.run(painter.check_health())


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
    }
    assert (painting.seconds, painting.batch, painting.filtered) == (0.1235, 3, False)


def test_the_deployment_is_sized_by_its_options() -> None:
    options = ServingOptions(num_cpus=3, num_gpus=0.5, replicas=2, max_batch_size=4, queue_size=10)
    deployment = painter_deployment(options)
    assert deployment.name == "Painter"
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.max_ongoing_requests > options.replica_capacity
