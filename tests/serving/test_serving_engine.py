"""The driving thread: batches by bucket, order, isolation of failures, running out of memory, determinism."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raynest_pipeline.serving.contract import ImageRequest, PaintingFailed
from raynest_pipeline.serving.engine import Bucket, Canvas, Engine, develop, group
from raynest_pipeline.serving.sources import LoadedModel
from raynest_pipeline.serving.untrained import UNTRAINED_SIZE, build_untrained_pipeline


class RecordingPipeline:
    """Paints each image in the shade of its seed; records its calls; fails where told to."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.fits = 10**9
        self.fits_at: dict[int, int] = {}
        self.error: Exception | None = None
        self.no_memory: Exception = torch.OutOfMemoryError("CUDA out of memory")
        self.flags: list[bool] | None = None

    def __call__(self, **call: Any) -> SimpleNamespace:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)
        if self.error and "bad" in call["prompt"]:
            raise self.error
        if len(call["prompt"]) > self.fits_at.get(call["height"], self.fits):
            raise self.no_memory
        shades = [generator.initial_seed() % 256 / 255 for generator in call["generator"]]
        images = torch.stack([torch.full((3, call["height"], call["width"]), shade) for shade in shades])
        return SimpleNamespace(images=images, nsfw_content_detected=self.flags)


def loaded(pipeline: Any) -> LoadedModel:
    return LoadedModel(pipeline, "stand-in", "1", "cpu", None, "float32", 64, 20, 7.5, 0.0)


def engine_over(pipeline: Any, max_batch_size: int = 8) -> Engine:
    return Engine(lambda: loaded(pipeline), 1, max_batch_size)


def painted(outcomes: list[Canvas | PaintingFailed]) -> list[Canvas]:
    assert all(isinstance(outcome, Canvas) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Canvas)]


def test_one_bucket_is_one_call() -> None:
    pipeline = RecordingPipeline()
    requests = [ImageRequest(f"p{n}", n, f"n{n}") for n in range(5)]
    canvases = painted(engine_over(pipeline).submit(requests).result())
    assert [canvas.pixels[0, 0, 0] for canvas in canvases] == [0, 1, 2, 3, 4]
    assert len(pipeline.calls) == 1
    call = pipeline.calls[0]
    assert call["prompt"] == ["p0", "p1", "p2", "p3", "p4"]
    assert call["negative_prompt"] == ["n0", "n1", "n2", "n3", "n4"]
    assert (call["height"], call["width"], call["num_inference_steps"], call["guidance_scale"]) == (
        64,
        64,
        20,
        7.5,
    )
    assert {canvas.batch for canvas in canvases} == {5}


REQUESTS = st.lists(
    st.builds(
        ImageRequest,
        prompt=st.just("x"),
        seed=st.integers(0, 255),
        size=st.sampled_from([None, 32, 64]),
        steps=st.sampled_from([None, 1, 20]),
        guidance=st.sampled_from([None, 0.0, 7.5]),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(1, 6))
def test_a_mixed_batch_comes_back_in_order_from_uniform_calls(
    requests: list[ImageRequest], limit: int
) -> None:
    pipeline = RecordingPipeline()
    engine = engine_over(pipeline, limit)
    canvases = painted(engine.submit(requests).result())
    engine.close()
    assert [int(canvas.pixels[0, 0, 0]) for canvas in canvases] == [request.seed for request in requests]
    assert [canvas.bucket for canvas in canvases] == [engine.bucket_of(request) for request in requests]
    assert all(len(call["prompt"]) <= limit for call in pipeline.calls)
    assert sum(len(call["prompt"]) for call in pipeline.calls) == len(requests)


def test_zero_guidance_is_not_the_default() -> None:
    engine = engine_over(RecordingPipeline())
    assert engine.bucket_of(ImageRequest("x", 0, guidance=0.0)) == Bucket(64, 20, 0.0)
    assert engine.bucket_of(ImageRequest("x", 0)) == Bucket(64, 20, 7.5)


def test_one_thread_alone_drives_the_pipeline() -> None:
    pipeline = RecordingPipeline()
    engine = engine_over(pipeline)
    futures = [engine.submit([ImageRequest("x", n)]) for n in range(20)]
    for future in futures:
        future.result()
    assert len(pipeline.threads) == 1
    assert threading.current_thread().name not in pipeline.threads


def test_a_failure_stays_within_its_bucket_and_the_engine_goes_on() -> None:
    pipeline = RecordingPipeline()
    pipeline.error = RuntimeError("shapes do not match")
    engine = engine_over(pipeline)
    fine, bad = engine.submit([ImageRequest("fine", 1), ImageRequest("bad", 2, size=32)]).result()
    assert isinstance(fine, Canvas)
    assert isinstance(bad, PaintingFailed)
    assert str(bad) == "RuntimeError: shapes do not match"
    assert engine.device_failure is None
    painted(engine.submit([ImageRequest("fine", 3)]).result())


def test_a_cuda_error_marks_the_device_as_failed() -> None:
    pipeline = RecordingPipeline()
    pipeline.error = RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors ..."
    )
    engine = engine_over(pipeline)
    engine.submit([ImageRequest("bad", 1)]).result()
    assert engine.device_failure == "CUDA error: an illegal memory access was encountered"


def test_out_of_memory_halves_this_batch_and_those_that_follow() -> None:
    pipeline = RecordingPipeline()
    pipeline.fits = 3
    engine = engine_over(pipeline, 8)
    canvases = painted(engine.submit([ImageRequest("x", n) for n in range(8)]).result())
    assert [int(canvas.pixels[0, 0, 0]) for canvas in canvases] == list(range(8))
    assert engine.batch_limit(64) == 2
    pipeline.calls.clear()
    painted(engine.submit([ImageRequest("x", n) for n in range(4)]).result())
    assert [len(call["prompt"]) for call in pipeline.calls] == [2, 2]


def test_out_of_memory_at_one_size_leaves_the_others_their_batches(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = RecordingPipeline()
    pipeline.fits_at = {128: 1, 96: 4}
    engine = engine_over(pipeline, 8)
    assert engine.batch_limits == {}
    for size in (128, 96, 64):
        painted(engine.submit([ImageRequest("x", n, size=size) for n in range(8)]).result())
    assert [(call["height"], len(call["prompt"])) for call in pipeline.calls] == [
        *[(128, 8), (128, 4), (128, 2)],
        *[(128, 1)] * 8,
        *[(96, 8), (96, 4), (96, 4)],
        (64, 8),
    ]
    assert engine.batch_limits == {"96": 4, "128": 1}
    assert [engine.batch_limit(size) for size in (64, 96, 128)] == [8, 4, 1]
    assert engine.max_batch_size == 8
    assert "out of memory painting 8 images at 96: batches of this size are now of 4" in caplog.text


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
    ),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=range(len(NO_MEMORY)))
def test_memory_that_runs_out_in_other_words_is_no_failure_of_the_device(error: Exception) -> None:
    pipeline = RecordingPipeline()
    pipeline.fits, pipeline.no_memory = 2, error
    engine = engine_over(pipeline, 4)
    painted(engine.submit([ImageRequest("x", n) for n in range(4)]).result())
    assert [len(call["prompt"]) for call in pipeline.calls] == [4, 2, 2]
    pipeline.fits = 0
    (outcome,) = engine.submit([ImageRequest("x", 0)]).result()
    assert isinstance(outcome, PaintingFailed)
    assert "out of memory for one image at 64x64" in str(outcome)
    assert engine.device_failure is None
    assert engine.batch_limits == {"64": 2}, "one image that does not fit says nothing of batches"


def test_the_cpu_s_own_allocator_is_understood() -> None:
    class Greedy(RecordingPipeline):
        def __call__(self, **call: Any) -> SimpleNamespace:
            if len(call["prompt"]) > 1:
                torch.empty(2**62, dtype=torch.uint8)
            return super().__call__(**call)

    engine = engine_over(Greedy(), 2)
    painted(engine.submit([ImageRequest("x", n) for n in range(2)]).result())
    assert engine.batch_limits == {"64": 1}


def test_the_words_alone_are_not_enough() -> None:
    pipeline = RecordingPipeline()
    pipeline.error = ValueError("the prompt 'out of memory' is too long")
    engine = engine_over(pipeline)
    outcomes = engine.submit([ImageRequest("bad", n) for n in range(2)]).result()
    assert {str(outcome) for outcome in outcomes} == {"ValueError: the prompt 'out of memory' is too long"}
    assert (len(pipeline.calls), engine.batch_limits) == (1, {})


def test_out_of_memory_for_a_single_image_is_told() -> None:
    pipeline = RecordingPipeline()
    pipeline.fits = 0
    (outcome,) = engine_over(pipeline).submit([ImageRequest("x", 0)]).result()
    assert isinstance(outcome, PaintingFailed)
    assert "out of memory for one image at 64x64" in str(outcome)


def test_not_a_number_is_a_failure_and_not_a_black_image() -> None:
    images = torch.zeros(2, 3, 1, 2)
    images[0, :, 0, 1] = torch.tensor([0.0, 0.5, 1.0])
    images[1, 0, 0, 0] = torch.nan
    finite, pixels = develop(images)
    assert finite == [True, False]
    assert pixels.shape == (2, 1, 2, 3)
    assert pixels[0].tolist() == [[[0, 0, 0], [0, 128, 255]]]


def test_one_image_that_overflowed_does_not_spoil_its_batch() -> None:
    class Overflowing(RecordingPipeline):
        def __call__(self, **call: Any) -> SimpleNamespace:
            output = super().__call__(**call)
            output.images[1] = torch.inf
            return output

    first, second = engine_over(Overflowing()).submit([ImageRequest("x", 7), ImageRequest("x", 8)]).result()
    assert isinstance(first, Canvas)
    assert isinstance(second, PaintingFailed)
    assert "NaN" in str(second)


def test_the_safety_checker_s_verdict_is_passed_on() -> None:
    pipeline = RecordingPipeline()
    pipeline.flags = [False, True]
    canvases = painted(engine_over(pipeline).submit([ImageRequest("x", 0), ImageRequest("x", 1)]).result())
    assert [canvas.filtered for canvas in canvases] == [False, True]


def test_a_constructor_that_cannot_load_raises_what_loading_raised() -> None:
    def missing() -> LoadedModel:
        raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        Engine(missing, 1, 8)


def test_warm_up_paints_once_and_reports_a_pipeline_that_cannot() -> None:
    pipeline = RecordingPipeline()
    engine = engine_over(pipeline)
    assert not engine.warm
    engine.warm_up(max_steps=150)
    assert engine.warm
    assert [call["num_inference_steps"] for call in pipeline.calls] == [2]
    broken = RecordingPipeline()
    broken.fits = 0
    with pytest.raises(PaintingFailed, match="out of memory"):
        engine_over(broken).warm_up(max_steps=150)


class Crowded(RecordingPipeline):
    """Takes `seconds[threads]` by the clock that the engine reads."""

    def __init__(self, clock: list[float], seconds: dict[int, float]) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.counts: list[tuple[int, int]] = []

    def __call__(self, **call: Any) -> SimpleNamespace:
        threads = torch.get_num_threads()
        self.counts.append((len(call["prompt"]), threads))
        self.clock[0] += self.seconds[threads]
        return super().__call__(**call)


@pytest.mark.parametrize(
    ("seconds", "alone", "tries"),
    [
        ({4: 0.3, 2: 0.2, 1: 0.25}, 2, 9),
        ({4: 0.1, 2: 0.2, 1: 0.25}, 4, 9),
        ({4: 5.0, 2: 0.1, 1: 0.1}, 4, 1),
        ({4: 0.6, 2: 0.5, 1: 1.1}, 2, 7),
    ],
)
def test_a_single_image_gets_as_many_threads_as_are_quickest(
    seconds: dict[int, float], alone: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("raynest_pipeline.serving.engine.time.perf_counter", lambda: clock[0])
    pipeline = Crowded(clock, seconds)
    engine = Engine(lambda: loaded(pipeline), 4, 8)
    engine.warm_up(max_steps=150)
    assert engine.speed_facts()["cpu_threads_alone"] == alone
    assert len(pipeline.counts) == 1 + tries
    pipeline.counts.clear()
    engine.submit([ImageRequest("x", 1)]).result()
    engine.submit([ImageRequest("x", 1), ImageRequest("y", 2)]).result()
    engine.submit([ImageRequest("x", 1, size=128)]).result()
    assert pipeline.counts == [(1, alone), (2, 4), (1, 4)]
    assert engine.work.images == 4
    engine.close()


def test_groups_keep_the_order_of_first_appearance() -> None:
    requests = [ImageRequest("x", n, size=size) for n, size in enumerate([64, 32, 64, 32])]
    grouped = group(requests, lambda request: Bucket(request.size or 0, 1, 1.0))
    assert list(grouped.values()) == [[0, 2], [1, 3]]


@pytest.fixture(scope="module")
def real_engine() -> Engine:
    pipeline = build_untrained_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return Engine(
        lambda: LoadedModel(pipeline, "tiny", "1", "cpu", None, "float32", UNTRAINED_SIZE, 3, 7.5, 0.0), 1, 8
    )


def test_same_seed_same_image_alone_or_in_any_batch(real_engine: Engine) -> None:
    """On CPU within 2/255 per pixel; with these kernels it is bit-equal in practice."""
    requests = [ImageRequest(f"prompt {n}", seed=100 + n) for n in range(5)]
    together = painted(real_engine.submit(requests).result())
    reverse = painted(real_engine.submit(requests[::-1]).result())[::-1]
    for request, in_batch, in_reverse in zip(requests, together, reverse, strict=True):
        (alone,) = painted(real_engine.submit([request]).result())
        for other in (in_batch, in_reverse):
            difference = np.abs(alone.pixels.astype(int) - other.pixels.astype(int)).max()
            assert difference <= 2
        assert alone.batch == 1
    assert not np.array_equal(together[0].pixels, together[1].pixels)


def test_seed_prompt_and_negative_prompt_each_change_the_image(real_engine: Engine) -> None:
    base = ImageRequest("a red circle", 1)
    others = [
        ImageRequest("a red circle", 2),
        ImageRequest("blue", 1),
        ImageRequest("a red circle", 1, "blur"),
    ]
    first, *rest = painted(real_engine.submit([base, *others]).result())
    assert all(not np.array_equal(first.pixels, other.pixels) for other in rest)


@pytest.mark.parametrize("size", [32, 40, 64, 128])
def test_every_multiple_of_eight_can_be_painted(real_engine: Engine, size: int) -> None:
    (canvas,) = painted(real_engine.submit([ImageRequest("x", 0, size=size, steps=1)]).result())
    assert canvas.pixels.shape == (size, size, 3)
    assert canvas.pixels.std() > 1
