"""What makes a pipeline faster: each an explicit choice, and each repeated in /health.

diffusers' own default with torch 2 is scaled dot product attention; `Speed.attention` says whether it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raynest_pipeline.serving.hub import fetch_component
from raynest_pipeline.serving.modelfiles import SourceFailed
from raynest_pipeline.serving.options import ServingOptions

SOLVERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Option -> class of diffusers.

None of them draws noise while it solves, so an image depends on its seed alone. The last two reach with about
half the steps what the first two do.
"""

ENOUGH = 0.75
"""A batch is padded to the next allowed size when at least so much of it is real, else it is split."""

OWN = "the model's own"

Stance = Literal["default", "fail_on_recompile", "eager_on_recompile"]


class SpeedUnavailable(Exception):
    """A choice does not fit this model or this installation. One line: which, why, what to do."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What is on. `sizes` and `batches` are the shapes that pipeline calls are kept to; none: any shape."""

    attention: str = "unknown"
    channels_last: bool = False
    solver: str = OWN
    vae: str = OWN
    compile: str = "off"
    sizes: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()

    def part(self, size: int, count: int, limit: int) -> tuple[int, int]:
        """For `count` waiting images: how many the next call takes, and to how many it is padded.

        `limit` images at most: also when running out of memory has made that fewer than the shapes allow.
        """
        allowed = [batch for batch in self.batches if batch <= limit] if size in self.sizes else []
        if not allowed:
            return min(count, limit), min(count, limit)
        wide_enough = [batch for batch in allowed if batch >= count]
        narrower = [batch for batch in allowed if batch <= count]
        if wide_enough and (not narrower or count >= ENOUGH * wide_enough[0]):
            return count, wide_enough[0]
        return narrower[-1], narrower[-1]

    def recorded(self) -> dict[str, str]:
        """What of it changes the picture, for the image's own metadata."""
        return {"scheduler": self.solver, **({} if self.vae == OWN else {"vae": self.vae})}

    def stance(self, stance: Stance) -> AbstractContextManager[Any]:
        """How torch.compile treats a shape it has not seen; nothing where it is off."""
        import torch

        return nullcontext() if self.compile == "off" else torch.compiler.set_stance(stance)


def revision_of(revision: str, options: ServingOptions) -> str:
    """A model's revision, and after it what was put in the place of its own parts.

    Batches take an image over from another one where model, revision and request are the same, and another
    solver or VAE gives another picture.
    """
    return "+".join((revision, *(part for part in (options.scheduler, options.tiny_vae) if part)))


def equip(pipeline: Any, options: ServingOptions, device: str, dtype: str) -> Speed:
    """Fit the pipeline with what `options` choose, on its device. Raises SpeedUnavailable."""
    import torch

    if options.scheduler is not None:
        pipeline.scheduler = solver(options.scheduler, pipeline.scheduler)
    if options.tiny_vae is not None:
        pipeline.vae = tiny_vae(options.tiny_vae, options, pipeline, dtype).to(device)
    channels_last = options.channels_last if options.channels_last is not None else device == "cuda"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=layout)
    attention = attention_of(pipeline.unet)
    batches = allowed_batches(options)
    sizes = (options.bucket_sizes or (native_size(pipeline, options),)) if batches else ()
    if options.compile != "off":
        pipeline.unet = compiled(pipeline.unet, options.compile, shapes=len(sizes) * len(batches))
    # cuDNN then tries its convolutions once per shape; with any shape allowed it would do so under load.
    torch.backends.cudnn.benchmark = device == "cuda" and bool(batches)
    return Speed(
        attention=attention,
        channels_last=channels_last,
        solver=type(pipeline.scheduler).__name__,
        vae=options.tiny_vae or OWN,
        compile=options.compile,
        sizes=sizes,
        batches=batches,
    )


def native_size(pipeline: Any, options: ServingOptions) -> int:
    """Edge in pixels that the model was trained for, or max_img_size where that is less."""
    return min(int(pipeline.unet.config.sample_size * pipeline.vae_scale_factor), options.max_img_size)


def allowed_batches(options: ServingOptions) -> tuple[int, ...]:
    """The batch sizes of pipeline calls, ascending: those asked for; with torch.compile, else, the powers of
    two up to the largest batch; otherwise none, which means any.
    """
    if options.bucket_batches:
        return tuple(sorted({*options.bucket_batches}))
    if options.compile == "off":
        return ()
    powers = [2**power for power in range(options.max_batch_size.bit_length())]
    return tuple(sorted({*powers, options.max_batch_size}))


def half_precision() -> str:
    """The half-precision type that the CUDA device calculates in: bfloat16 cannot overflow into black
    images; devices before Ampere only emulate it.
    """
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def solver(name: str, current: Any) -> Any:
    """The solver `name`, with the noise schedule and prediction type that the model was trained for."""
    import diffusers

    return getattr(diffusers, SOLVERS[name]).from_config(current.config)


def tiny_vae(source: str, options: ServingOptions, pipeline: Any, dtype: str) -> Any:
    """A distilled decoder (TAESD and its kin) for the pipeline's latents, from the mirror and cache of the
    model, too. Raises SpeedUnavailable.
    """
    import torch
    from diffusers import AutoencoderTiny

    cache_dir = Path(options.cache_dir).expanduser() if options.cache_dir else None
    try:
        local = Path(source).expanduser()
        folder = local if local.is_dir() else fetch_component(source, options.hf_endpoint, cache_dir)
        vae = AutoencoderTiny.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    except (SourceFailed, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SpeedUnavailable(
            f"tiny VAE {source!r} cannot be read: {reason}; leave out `tiny_vae`"
        ) from error
    scale = 2 ** (len(vae.config.decoder_block_out_channels) - 1)
    have = (scale, vae.config.latent_channels)
    want = (pipeline.vae_scale_factor, pipeline.unet.config.in_channels)
    if have != want:
        raise SpeedUnavailable(
            f"tiny VAE {source!r} has {have[0]}-fold latents of {have[1]} channels, the model {want[0]}-fold "
            f"ones of {want[1]}; leave out `tiny_vae`, or name one distilled for this model"
        )
    return vae


def attention_of(unet: Any) -> str:
    """`sdpa` where every attention is torch's scaled dot product, else the classes in use."""
    kinds = {type(processor).__name__ for processor in unet.attn_processors.values()}
    return "sdpa" if kinds == {"AttnProcessor2_0"} else ", ".join(sorted(kinds)) or "none"


def compiled(unet: Any, mode: str, shapes: int, backend: str = "inductor") -> Any:
    """The UNet under torch.compile: one graph per shape, in full or not at all."""
    import torch
    from torch import _dynamo

    # Dynamo's own limit is 8, and beyond it it falls back to eager without an error.
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 2 * shapes)
    return torch.compile(
        unet, fullgraph=True, dynamic=False, backend=backend, mode=mode if backend == "inductor" else None
    )


def shapes_of(speed: Speed) -> Sequence[tuple[int, int]]:
    """Every allowed (size, batch), the largest first: what does not fit the memory shows at once."""
    return [(size, batch) for size in sorted(speed.sizes)[::-1] for batch in speed.batches[::-1]]
