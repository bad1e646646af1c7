"""Fixed shapes: to which calls batches are padded or split, that a padded batch paints the same images, that
every shape is warm before the replica is ready, and that nothing is compiled after that.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from raynest_pipeline.serving import speed as room
from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.engine import Canvas, Engine
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import LoadedModel, load_model
from raynest_pipeline.serving.speed import Speed, allowed_batches, shapes_of

SHAPES = Speed(sizes=(64,), batches=(1, 2, 4, 8))


class Recorder:
    """Paints each image in the shade of its seed, and remembers the size of each call."""

    def __init__(self, fits: int = 1000) -> None:
        self.calls: list[tuple[int, int]] = []
        self.fits = fits

    def __call__(self, *, generator: list[torch.Generator], height: int, **_call: Any) -> SimpleNamespace:
        self.calls.append((height, len(generator)))
        if len(generator) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shades = [each.initial_seed() % 256 / 255 for each in generator]
        return SimpleNamespace(
            images=torch.stack([torch.full((3, height, height), shade) for shade in shades]),
            nsfw_content_detected=[False] * len(generator),
        )


def engine_with(pipeline: Recorder, speed: Speed = SHAPES, max_batch_size: int = 8) -> Engine:
    model = LoadedModel(pipeline, "stand-in", "1", "cpu", None, "float32", 64, 20, 7.5, 0.0, speed)
    return Engine(lambda: model, 1, max_batch_size)


def shades(engine: Engine, count: int, size: int = 64) -> list[int]:
    outcomes = engine.submit([ImageRequest("x", seed, size=size) for seed in range(count)]).result()
    return [int(outcome.pixels[0, 0, 0]) for outcome in outcomes if isinstance(outcome, Canvas)]


@pytest.mark.parametrize(
    ("count", "calls"),
    [
        (1, [1]),
        (2, [2]),
        (3, [4]),  # three quarters are real
        (4, [4]),
        (5, [4, 1]),  # eight would be three eighths padding
        (6, [8]),
        (7, [8]),
        (8, [8]),
        (13, [8, 4, 1]),
    ],
)
def test_a_batch_is_padded_or_split_to_allowed_sizes(count: int, calls: list[int]) -> None:
    pipeline = Recorder()
    engine = engine_with(pipeline)
    assert shades(engine, count) == list(range(count))
    assert pipeline.calls == [(64, batch) for batch in calls]
    assert engine.work.calls == len(calls)
    assert (engine.work.images, engine.work.padding) == (count, sum(calls) - count)


def test_a_size_that_has_no_shapes_is_painted_as_it_comes() -> None:
    pipeline = Recorder()
    assert shades(engine_with(pipeline), 5, size=32) == [0, 1, 2, 3, 4]
    assert pipeline.calls == [(32, 5)]


@given(
    st.sets(st.integers(1, 32), min_size=1).map(lambda sizes: tuple(sorted(sizes))),
    st.integers(1, 64),
    st.integers(1, 32),
)
def test_a_call_has_an_allowed_size_within_the_limit_and_takes_something(
    batches: tuple[int, ...], count: int, limit: int
) -> None:
    taken, padded = Speed(sizes=(64,), batches=batches).part(64, count, limit)
    assert 1 <= taken <= min(count, padded)
    assert padded <= limit
    assert padded in batches or batches[0] > limit


def test_out_of_memory_goes_on_with_the_allowed_sizes_that_fit() -> None:
    pipeline = Recorder(fits=3)
    engine = engine_with(pipeline)
    assert shades(engine, 7) == list(range(7))
    assert engine.batch_limit(64) == 2
    assert [batch for _, batch in pipeline.calls] == [8, 4, 2, 2, 2, 1]


def test_out_of_memory_below_the_smallest_allowed_size_drops_the_padding() -> None:
    pipeline = Recorder(fits=1)
    engine = engine_with(pipeline, Speed(sizes=(64,), batches=(4,)), max_batch_size=4)
    assert shades(engine, 2) == [0, 1]
    assert [batch for _, batch in pipeline.calls] == [4, 2, 1, 1]


def test_out_of_memory_is_told_when_not_even_one_image_fits() -> None:
    (outcome,) = engine_with(Recorder(fits=0)).submit([ImageRequest("x", 0)]).result()
    assert isinstance(outcome, PaintingFailed)
    assert "out of memory for one image" in str(outcome)


def test_warm_up_paints_every_shape_once_and_counts_none_of_it() -> None:
    pipeline = Recorder()
    engine = engine_with(pipeline, Speed(sizes=(32, 64), batches=(1, 4)))
    engine.warm_up(max_steps=150)
    assert pipeline.calls == [(64, 4), (64, 1), (32, 4), (32, 1)]
    assert engine.warm
    assert engine.work.images == 0
    facts = engine.speed_facts()
    assert (facts["sizes"], facts["batches"]) == ((32, 64), (1, 4))


def test_warm_up_leaves_out_a_shape_that_memory_has_no_room_for() -> None:
    pipeline = Recorder(fits=2)
    engine = engine_with(pipeline)
    engine.warm_up(max_steps=150)
    assert engine.batch_limit(64) == 2
    assert [batch for _, batch in pipeline.calls] == [8, 4, 2, 2, 2, 2, 2, 1]


def test_warm_up_paints_the_shapes_of_the_sizes_that_fit() -> None:
    class Small(Recorder):
        def __call__(self, *, generator: list[torch.Generator], height: int, **call: Any) -> SimpleNamespace:
            self.fits = 2 if height == 64 else 1000
            return super().__call__(generator=generator, height=height, **call)

    pipeline = Small()
    engine = engine_with(pipeline, Speed(sizes=(32, 64), batches=(2, 4)), max_batch_size=4)
    engine.warm_up(max_steps=150)
    assert pipeline.calls == [(64, 4), (64, 2), (64, 2), (64, 2), (32, 4), (32, 2)]
    assert engine.batch_limits == {"64": 2}


def test_the_largest_shape_is_warmed_first() -> None:
    assert shapes_of(Speed(sizes=(32, 64), batches=(1, 2))) == [(64, 2), (64, 1), (32, 2), (32, 1)]
    assert shapes_of(Speed()) == []


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, ()),
        ({"bucket_batches": [4, 1, 4]}, (1, 4)),
        ({"compile": "default"}, (1, 2, 4, 8)),
        ({"compile": "default", "max_batch_size": 6}, (1, 2, 4, 6)),
        ({"compile": "default", "max_batch_size": 1}, (1,)),
        ({"compile": "default", "bucket_batches": [8]}, (8,)),
    ],
)
def test_allowed_batches(options: dict[str, Any], batches: tuple[int, ...]) -> None:
    assert allowed_batches(ServingOptions.model_validate(options)) == batches


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bucket_batches": [9]}, "bucket_batches has 9; max_batch_size is 8"),
        ({"bucket_batches": [0]}, "bucket_batches has 0"),
        ({"bucket_batches": [1], "bucket_sizes": [65]}, "bucket_sizes has 65"),
        ({"bucket_batches": [1], "bucket_sizes": [2048]}, "up to max_img_size, 1024"),
        ({"bucket_sizes": [64]}, "bucket_sizes needs bucket_batches or compile"),
        ({"compile": "default", "warm_up": False}, "compile needs warm_up"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ServingOptions.model_validate(options)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Engine]:
    """An engine over torch.compile with the backend that only traces: quick, and it recompiles like any."""
    torch._dynamo.reset()
    monkeypatch.setattr(room, "compiled", partial(room.compiled, backend="eager"))

    def start(arguments: dict[str, Any]) -> Engine:
        options = ServingOptions.model_validate({"compile": "default", "default_steps": 2, **arguments})
        return Engine(lambda: load_model(options), 1, options.max_batch_size)

    return start


def test_nothing_is_compiled_once_the_engine_is_warm(traced: Callable[[dict[str, Any]], Engine]) -> None:
    engine = traced({"max_batch_size": 4, "bucket_batches": [1, 4]})
    engine.warm_up(max_steps=150)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 2
    for count, size in ((1, 64), (2, 64), (3, 64), (4, 64), (2, 32), (1, 128)):
        outcomes = engine.submit([ImageRequest("x", seed, size=size) for seed in range(count)]).result()
        assert all(isinstance(outcome, Canvas) for outcome in outcomes)
    # Without guidance the UNet sees half the batch: a shape of its own, painted uncompiled.
    (unguided,) = engine.submit([ImageRequest("x", 0, guidance=1.0)]).result()
    assert isinstance(unguided, Canvas)
    assert counters["stats"]["unique_graphs"] == graphs
    engine.close()


def test_a_shape_that_would_be_compiled_again_keeps_the_replica_from_being_ready(
    traced: Callable[[dict[str, Any]], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = traced({"bucket_batches": [1]})
    probe = engine._probe

    def forgetful(size: int, batch: int, steps: int) -> None:
        probe(size, batch, steps)
        torch._dynamo.reset()

    monkeypatch.setattr(engine, "_probe", forgetful)
    with pytest.raises(PaintingFailed):
        engine.warm_up(max_steps=150)
    assert not engine.warm
    engine.close()


def test_compiled_and_padded_batches_paint_the_same_images(
    traced: Callable[[dict[str, Any]], Engine],
) -> None:
    engine = traced({"max_batch_size": 4, "bucket_batches": [4]})
    engine.warm_up(max_steps=150)
    plain = Engine(lambda: load_model(ServingOptions(default_steps=2)), 1, 8)
    requests = [ImageRequest(f"prompt {seed}", seed) for seed in range(3)]
    together = engine.submit(requests).result()
    assert engine.work.padding == 1
    for request, in_batch in zip(requests, together, strict=True):
        (alone,) = plain.submit([request]).result()
        assert isinstance(alone, Canvas) and isinstance(in_batch, Canvas)
        assert np.abs(alone.pixels.astype(int) - in_batch.pixels.astype(int)).max() <= 2
        assert in_batch.batch == 3
    engine.close()
    plain.close()
