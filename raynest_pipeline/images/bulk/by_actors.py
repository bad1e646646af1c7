"""Mode `actors`: Ray Data actors that hold the model themselves, with true batching.

The pipeline, its one thread and its encoder are the Serve replica's own (serving/), so that a seed gives the
same image in either mode.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

from raynest_pipeline.errors import NotReadyError, RaynestError
from raynest_pipeline.images.bulk.keeper import Keeper, fatal, request_of, table
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.bulk.todo import Row, failure, unpacked
from raynest_pipeline.serving.contract import PaintingFailed
from raynest_pipeline.serving.engine import Canvas, Engine
from raynest_pipeline.serving.locate import require_whole
from raynest_pipeline.serving.options import UNTRAINED, ServingOptions, resolve_options
from raynest_pipeline.serving.painter import finish
from raynest_pipeline.serving.sources import (
    DEFAULT_GUIDANCE,
    Located,
    ModelUnavailable,
    choose_device,
    choose_dtype,
    first_given,
    load_model,
    locate,
    read_recommendation,
    steps_by_default,
)
from raynest_pipeline.serving.speed import SpeedUnavailable, revision_of

_TOLD = ("revision", "native_size", "default_steps", "default_guidance")
ENCODERS = 4
"""Threads that encode and store while the device paints on; zlib and files release the GIL."""


class GpuPainter:
    """One actor: one pipeline on its share of a device."""

    def __init__(self, plan: str) -> None:
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self._broken: RaynestError | None = None
        try:
            self._keeper = Keeper(Plan.from_json(plan))
            self._engine = open_engine(Plan.from_json(plan))
        except RaynestError as error:
            # Raised in a constructor it would reach the driver as Ray's error, without its words.
            self._broken = error

    def __call__(self, batch: Any) -> Iterator[Any]:
        """`batch`: an Arrow table with one packed chunk a row."""
        if self._broken is not None:
            yield table([fatal(self._broken)])
            return
        for chunk in batch["chunk"].to_pylist():
            yield from self._make(unpacked(chunk))

    def _make(self, rows: list[Row]) -> Iterator[Any]:
        size = self._engine.max_batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        # All parts are queued at once: while one is encoded and stored, the device paints the next.
        started = time.monotonic()
        queued = [(part, self._engine.submit([request_of(row) for row in part])) for part in parts]
        for part, painted in queued:
            try:
                outcomes = painted.result()
                latency = (time.monotonic() - started) * 1000
                answers = list(self._encoders.map(self._settle, part, outcomes, repeat(latency)))
            except RaynestError as error:
                yield table([fatal(error)])
                return
            if broken := self._engine.device_failure:
                yield table([fatal(_device_failed(broken))])
                return
            yield table(answers)

    def _settle(self, row: Row, outcome: Canvas | PaintingFailed, latency_ms: float) -> Row:
        if isinstance(outcome, PaintingFailed):
            return failure(row, str(outcome), 1, fruitless=True)
        return self._keeper.settle(row, finish(request_of(row), outcome, self._engine.model), 1, latency_ms)


def _device_failed(reason: str) -> NotReadyError:
    return NotReadyError(
        "A GPU failed during the batch.",
        why=reason,
        fix="Run the batch again: finished images are kept. If it fails again, replace the node.",
    )


def options_of(plan: Plan) -> ServingOptions:
    """The options of an actor: those of a Serve replica on the same node, its environment included.

    Raises:
        NotReadyError: They do not go together.
    """
    try:
        return resolve_options(plan.serving, os.environ)
    except ValueError as error:
        raise _no_model(error) from None


def open_engine(plan: Plan) -> Engine:
    """The pipeline that the plan's serving options describe, warm.

    Raises:
        NotReadyError: The model cannot be loaded.
    """
    options = options_of(plan)
    try:
        engine = Engine(lambda: load_model(options), options.cpu_threads, options.max_batch_size)
        if options.warm_up:
            engine.warm_up(options.max_steps)
    except (ModelUnavailable, SpeedUnavailable, PaintingFailed) as error:
        raise _no_model(error) from None
    return engine


def _no_model(error: Exception) -> NotReadyError:
    return NotReadyError(
        "The model cannot be loaded on the cluster.",
        why=str(error),
        fix="See ray_service.model and .serving.",
    )


def facts_of_model(plan: str) -> dict[str, Any]:
    """What /health of the Serve application would say of this model; runs as a task on a worker.

    Reads a model's description only: its weights are for the actors to load.

    Raises:
        NotReadyError: The model cannot be found or read.
    """
    options = options_of(Plan.from_json(plan))
    try:
        if options.model == UNTRAINED:
            model = load_model(options)
            told = {"model": model.name} | {name: getattr(model, name) for name in _TOLD}
        else:
            device, _ = choose_device(options)
            told = _described(locate(options, half=choose_dtype(options, device) != "float32"), options)
    except (ModelUnavailable, SpeedUnavailable) as error:
        raise _no_model(error) from None
    return {**told, "max_batch_size": options.max_batch_size}


def _described(found: Located, options: ServingOptions) -> dict[str, Any]:
    """As `load_model` finds it; a test holds the two against each other."""
    require_whole(found.folder, options.model)
    recommended = read_recommendation(found.folder)
    try:
        unet = json.loads((found.folder / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((found.folder / "vae" / "config.json").read_text(encoding="utf-8"))
        native = int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"model {options.model!r} in {found.folder} cannot be read: {error}") from None
    guidance = (options.default_guidance, recommended.get("guidance"), DEFAULT_GUIDANCE)
    return {
        "model": recommended.get("name", found.name),
        "revision": revision_of(recommended.get("revision", found.revision), options),
        "native_size": min(native, options.max_img_size),
        "default_steps": steps_by_default(recommended, options),
        "default_guidance": first_given(*guidance),
    }
