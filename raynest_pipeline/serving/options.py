"""Settings of the Serve application: builder args first, then the environment, then the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

UNTRAINED = "tiny-untrained"
"""Name under which the built-in pipeline with random weights is asked for."""

ENVIRONMENT = {
    "model": "RAYNEST_MODEL",
    "revision": "RAYNEST_REVISION",
    "hf_endpoint": "HF_ENDPOINT",
    "modelscope_endpoint": "MODELSCOPE_ENDPOINT",
    "cache_dir": "RAYNEST_MODEL_CACHE",
}
"""Option -> the variable that sets it where the builder's args are silent."""


class ServingOptions(BaseModel):
    """Every knob of the application.

    They arrive as the `args` of serveConfigV2, so all of them are plain JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default=UNTRAINED, min_length=1)
    """A folder in the Stable Diffusion format, a Hugging Face id, modelscope://org/name[@revision], an
    object-store URL (s3://, oss://, gs://, or file:// for a slow mount), or `tiny-untrained`.
    """
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face or ModelScope model."""
    hf_endpoint: str | None = None
    """Mirror of huggingface.co; the hub itself is slow or blocked from mainland China."""
    modelscope_endpoint: str | None = None
    """Base URL of ModelScope; None: https://www.modelscope.cn."""
    cache_dir: str | None = None
    """Folder that keeps downloaded models, best on a volume. None: ~/.cache/raynest/models. Models of the
    Hugging Face hub go to HF_HOME or HF_HUB_CACHE instead where one is set.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where torch sees one, else cpu."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: bfloat16 on cuda, float16 where the device only emulates that, float32 on cpu."""
    channels_last: bool | None = None
    """Memory layout of the UNet and the VAE; None: on with cuda, off with cpu."""
    scheduler: Literal["ddim", "euler", "dpmsolver++", "unipc"] | None = None
    """Solver in place of the model's own; with the last two some 20 to 25 steps do the work of 50."""
    tiny_vae: str | None = Field(default=None, min_length=1)
    """Folder or Hugging Face id of an AutoencoderTiny, e.g. madebyollin/taesd: faster, less detail."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """torch.compile mode of the UNet. Minutes of warm-up for each shape before the replica is ready; what
    fits no shape is painted uncompiled, so nothing is compiled under load.
    """
    bucket_sizes: tuple[int, ...] = ()
    """Edges in pixels whose pipeline calls are kept to bucket_batches; empty: the model's native size."""
    bucket_batches: tuple[int, ...] = ()
    """Batch sizes that pipeline calls are padded or split to. Empty: any, or with torch.compile the powers of
    two up to max_batch_size.
    """
    num_cpus: float = Field(default=1.0, ge=0)
    """Ray CPUs that one model replica reserves."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Ray GPUs that one model replica reserves."""
    replicas: int = Field(default=1, ge=1)
    """Model replicas, fixed, unless min_replicas and max_replicas let Serve choose."""
    min_replicas: int | None = Field(default=None, ge=1)
    """Fewest model replicas with autoscaling. Not 0: the first request would wait for a model to load."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Most model replicas; set, it turns autoscaling on. Only the cluster knows whether they fit: it takes
    max_replicas * num_gpus GPUs, in nodes that are there or that Ray's autoscaler may add. Beyond that the
    application stays UPSCALING, and serves with the replicas it has.
    """
    max_batch_size: int = Field(default=8, ge=1, le=256)
    """Images per pipeline call."""
    batch_wait_s: float = Field(default=0.02, ge=0, le=10)
    """A batch that is not full starts when nobody has come for so many seconds."""
    queue_size: int = Field(default=128, ge=1)
    """Images that may wait per model replica beyond one batch in work; one more is answered 503. The default
    holds two full POST /v1/images, so that the second waits while the first is painted, and with the batch in
    work leaves a few places for single requests. What takes longer than deadline_s to reach is of no use.
    """
    max_images_per_request: int = Field(default=64, ge=1, le=1024)
    """Most images of one POST /v1/images. The default gives way to what all replicas together hold."""
    deadline_s: float = Field(default=300.0, gt=0)
    """Seconds after which a request is answered 504 and its work dropped."""
    default_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of a request that names none; None: what the model folder asks for, else 25, and at
    most max_steps.
    """
    default_guidance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Guidance scale of a request that names none; None: what the model folder asks for, else 7.5."""
    max_img_size: int = Field(default=1024, ge=32, multiple_of=8)
    """Largest edge in pixels; also of a request that names none, where the model's own is larger."""
    max_steps: int = Field(default=150, ge=1)
    """Most denoising steps of one request; also where the model folder asks for more."""
    max_prompt_chars: int = Field(default=2000, ge=1)
    """Longest prompt and negative prompt. CLIP reads 77 tokens; what follows them is ignored by the model."""
    cpu_threads: int = Field(default=0, ge=0)
    """torch threads on CPU; 0: all cores that the container may use."""
    warm_up: bool = True
    """Paint before the replica reports ready: every shape of bucket_sizes and bucket_batches, or else one
    image at the native size.
    """

    @property
    def replica_capacity(self) -> int:
        """Requests that one model replica holds before it refuses: a batch in work, and the queue."""
        return self.max_batch_size + self.queue_size

    @property
    def most_replicas(self) -> int:
        """Model replicas that there may ever be."""
        return self.max_replicas or self.replicas

    @property
    def fewest_replicas(self) -> int:
        """Model replicas that there are at the least."""
        return self.min_replicas or (1 if self.max_replicas else self.replicas)

    @property
    def most_in_work(self) -> int:
        """Images that the HTTP face takes at a time: twice what all replicas hold, which refuse the rest as
        long as there are any.
        """
        return 2 * self.replica_capacity * self.most_replicas

    @property
    def images_per_request(self) -> int:
        """Most images of one request: what fits into the idle service, at most max_images_per_request."""
        return min(self.max_images_per_request, self.replica_capacity * self.fewest_replicas)

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if wrong := [batch for batch in self.bucket_batches if not 1 <= batch <= self.max_batch_size]:
            raise ValueError(f"bucket_batches has {wrong[0]}; max_batch_size is {self.max_batch_size}")
        if wrong := [size for size in self.bucket_sizes if size % 8 or not 8 <= size <= self.max_img_size]:
            most = self.max_img_size
            raise ValueError(
                f"bucket_sizes has {wrong[0]}; allowed: multiples of 8 up to max_img_size, {most}"
            )
        if self.bucket_sizes and self.compile == "off" and not self.bucket_batches:
            raise ValueError("bucket_sizes needs bucket_batches or compile beside it")
        if self.compile != "off" and not self.warm_up:
            raise ValueError("compile needs warm_up: else it would compile under load")
        return self

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min_replicas is not None and self.max_replicas is None:
            raise ValueError("min_replicas needs max_replicas beside it")
        if self.max_replicas is not None and "replicas" in self.model_fields_set:
            raise ValueError("replicas is a fixed number; set either it or max_replicas")
        if self.max_replicas is not None and self.max_replicas < self.fewest_replicas:
            raise ValueError("max_replicas is below min_replicas")
        if self.default_steps is not None and self.default_steps > self.max_steps:
            raise ValueError(f"default_steps is {self.default_steps}; max_steps is {self.max_steps}")
        asked = self.max_images_per_request
        if "max_images_per_request" in self.model_fields_set and asked > self.images_per_request:
            raise ValueError(
                f"max_images_per_request is {asked}, but the replicas hold {self.images_per_request} images "
                "(replicas * (max_batch_size + queue_size)): raise queue_size"
            )
        return self


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
            ": ".join(filter(None, [".".join(str(part) for part in issue["loc"]), _said(issue)]))
            for issue in error.errors()
        )
        raise ValueError(f"serving args: {problems}") from None


def _said(issue: Any) -> str:
    return str(issue["msg"]).removeprefix("Value error, ")
