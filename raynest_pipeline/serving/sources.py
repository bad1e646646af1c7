"""A pipeline out of whatever the options name: found, read, and put on its device."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.locate import Located, fingerprint, locate, require_whole
from raynest_pipeline.serving.modelfiles import variant_of
from raynest_pipeline.serving.modelname import ModelUnavailable, advice, one_line
from raynest_pipeline.serving.options import UNTRAINED, ServingOptions
from raynest_pipeline.serving.speed import Speed, equip, half_precision, native_size, revision_of
from raynest_pipeline.serving.untrained import UNTRAINED_LABEL, build_untrained_pipeline

__all__ = ["LoadedModel", "Located", "ModelUnavailable", "fingerprint", "load_model", "locate"]

logger = logging.getLogger("ray.serve")

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 7.5

GENERATION_FILE = "generation.json"
"""Optional file in a model folder: {"name", "revision", "steps", "guidance"}, what the model's makers
recommend.
"""


@dataclass(slots=True)
class LoadedModel:
    """A pipeline ready to be driven by one thread, with its provenance."""

    pipeline: Any
    name: str
    revision: str
    device: str
    device_note: str | None
    dtype: str
    native_size: int
    """Edge in pixels of an image that is asked for without a size: what the model was trained for, or
    max_img_size where that is less.
    """
    default_steps: int
    default_guidance: float
    load_s: float
    """Seconds, with the import of the libraries and the download."""
    speed: Speed = field(default_factory=Speed)


def load_model(options: ServingOptions) -> LoadedModel:
    """Load the model that `options` name onto the device. Raises ModelUnavailable."""
    started = time.perf_counter()
    with without_garbage_collection():
        device, note = choose_device(options)
        dtype = choose_dtype(options, device)
        recommended: dict[str, Any] = {}
        if options.model == UNTRAINED:
            pipeline, name, revision = build_untrained_pipeline(dtype), UNTRAINED_LABEL, "built-in"
        else:
            found = locate(options, half=dtype != "float32")
            recommended = read_recommendation(found.folder)
            name = recommended.get("name", found.name)
            revision = recommended.get("revision", found.revision)
            pipeline = read_pipeline(found.folder, dtype, options.model)
        place(pipeline, device, dtype)
        speed = equip(pipeline, options, device, dtype)
    loaded = LoadedModel(
        pipeline=pipeline,
        name=name,
        revision=revision_of(revision, options),
        device=device_label(device),
        device_note=note,
        dtype=dtype,
        native_size=native_size(pipeline, options),
        default_steps=steps_by_default(recommended, options),
        default_guidance=first_given(options.default_guidance, recommended.get("guidance"), DEFAULT_GUIDANCE),
        load_s=time.perf_counter() - started,
        speed=speed,
    )
    logger.info("loaded %s (%s) onto %s in %.1f s", name, revision, loaded.device, loaded.load_s)
    return loaded


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import and load without cyclic garbage collection, which costs a sixth of that time and finds nothing
    (docs/performance.md).

    What is there afterwards stays for the life of the process: it is frozen, so that later collections, which
    stop the whole process, don't go through a million objects of the libraries.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def steps_by_default(recommended: Mapping[str, Any], options: ServingOptions) -> int:
    """Denoising steps of a request that names none: as the options say, else the model's makers, else
    DEFAULT_STEPS; never more than a request may name.
    """
    return min(options.default_steps or int(recommended.get("steps", DEFAULT_STEPS)), options.max_steps)


def first_given(*values: float | None) -> float:
    """The first value that is not None; 0 counts as given."""
    return next(float(value) for value in values if value is not None)


def choose_device(options: ServingOptions) -> tuple[str, str | None]:
    """The torch device, and a note where it is not what one would expect.

    Raises ModelUnavailable for cuda without CUDA.
    """
    import torch

    if torch.cuda.is_available() and options.device != "cpu":
        return "cuda", None
    if options.device == "cuda":
        raise ModelUnavailable(
            "device 'cuda' was asked for, but torch sees no CUDA device; use device 'auto' or 'cpu'"
        )
    if options.num_gpus > 0 and options.device == "auto":
        return "cpu", f"Ray lent {options.num_gpus:g} GPU, but torch sees no CUDA device: painting on the CPU"
    return "cpu", None


def choose_dtype(options: ServingOptions, device: str) -> str:
    """Weights' type: as asked, else half precision where the device is built for it."""
    if options.dtype != "auto":
        return options.dtype
    return half_precision() if device == "cuda" else "float32"


def device_label(device: str) -> str:
    """The device in words: `cpu` or `cuda:0 (NVIDIA A10)`."""
    import torch

    return f"cuda:0 ({torch.cuda.get_device_name(0)})" if device == "cuda" else "cpu"


def place(pipeline: Any, device: str, dtype: str) -> None:
    """Move the pipeline to its device and type; silence its own progress bars."""
    import torch

    pipeline.to(device)
    if pipeline.unet.dtype != getattr(torch, dtype):
        # An older diffusers reads only `torch_dtype` and ignores `dtype`.
        pipeline.to(getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)


def read_pipeline(folder: Path, dtype: str, asked: str) -> Any:
    """Read a Stable-Diffusion-format folder. Raises ModelUnavailable for one that is broken, of another kind,
    or made for other libraries.
    """
    import torch
    from diffusers import DiffusionPipeline

    require_whole(folder, asked)
    try:
        return DiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype), variant=variant_of(folder), local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, ImportError) as error:
        # With its type: the text of a KeyError is a bare name.
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ModelUnavailable(f"model {asked!r} in {folder} cannot be read: {reason}{advice()}") from error


def read_recommendation(folder: Path) -> dict[str, Any]:
    """The folder's generation.json, or nothing. Raises ModelUnavailable when it is not a JSON object."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnavailable(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content
