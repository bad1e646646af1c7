"""Settings of the Serve application: builder args first, then the environment, then the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

UNTRAINED = "tiny-untrained"
"""Name under which the built-in pipeline with random weights is asked for."""

ENVIRONMENT = {"model": "RAYNEST_MODEL", "revision": "RAYNEST_REVISION", "hf_endpoint": "HF_ENDPOINT"}
"""Option -> the variable that sets it where the builder's args are silent."""


class ServingOptions(BaseModel):
    """Every knob of the application.

    They arrive as the `args` of serveConfigV2, so all of them are plain JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default=UNTRAINED, min_length=1)
    """A folder in the Stable Diffusion format, a Hugging Face id, or `tiny-untrained`."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face model."""
    hf_endpoint: str | None = None
    """Mirror of huggingface.co; the hub itself is slow or blocked from mainland China."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where torch sees one, else cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: float16 on cuda, float32 on cpu."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs that one model replica reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that one model replica reserves."""
    replicas: int = Field(default=1, ge=1)
    """Model replicas. Fixed: autoscaling past the GPUs that exist leaves the application UPSCALING for ever.
    """
    max_batch_size: int = Field(default=8, ge=1, le=256)
    """Images per pipeline call."""
    batch_wait_s: float = Field(default=0.02, ge=0, le=10)
    """Seconds that a batch may wait to fill."""
    queue_size: int = Field(default=64, ge=1)
    """Requests that may wait per model replica beyond one batch in work; one more is answered 503."""
    deadline_s: float = Field(default=300.0, gt=0)
    """Seconds after which a request is answered 504 and its work dropped."""
    default_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of a request that names none; None: what the model folder asks for, else 25."""
    default_guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Guidance scale of a request that names none; None: what the model folder asks for, else 7.5."""
    max_img_size: int = Field(default=1024, ge=32, multiple_of=8)
    """Largest edge in pixels."""
    max_steps: int = Field(default=150, ge=1)
    """Most denoising steps of one request."""
    max_prompt_chars: int = Field(default=2000, ge=1)
    """Longest prompt and negative prompt. CLIP reads 77 tokens; what follows them is ignored by the model."""
    cpu_threads: int = Field(default=0, ge=0)
    """torch threads on CPU; 0: all cores (Ray would leave an actor with as many as its num_cpus)."""
    warm_up: bool = True
    """Paint one image at the native size before the replica reports ready."""

    @property
    def replica_capacity(self) -> int:
        """Requests that one model replica holds before it refuses: a batch in work, and the queue."""
        return self.max_batch_size + self.queue_size


def resolve_options(args: Mapping[str, Any], environ: Mapping[str, str]) -> ServingOptions:
    """Merge builder `args` over the environment.

    Raises ValueError naming the key, what is wrong with it and, for an unknown key, the allowed ones.
    """
    merged: dict[str, Any] = {
        option: environ[name] for option, name in ENVIRONMENT.items() if environ.get(name)
    }
    merged.update({key: value for key, value in args.items() if value is not None})
    unknown = sorted(set(merged) - set(ServingOptions.model_fields))
    if unknown:
        allowed = ", ".join(ServingOptions.model_fields)
        raise ValueError(f"serving args: unknown key {unknown[0]!r}; allowed: {allowed}")
    try:
        return ServingOptions.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in issue['loc'])}: {issue['msg']}" for issue in error.errors()
        )
        raise ValueError(f"serving args: {problems}") from None
