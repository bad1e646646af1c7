"""The built-in `tiny-untrained` pipeline: Stable Diffusion's format and code path with random weights, made
in a second.

It stands in where no model is at hand, so that everything around the model can run for real. Its images are
seeded noise textures and follow no prompt; every place that names it says "random weights".
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

UNTRAINED_LABEL = "tiny-untrained (random weights)"
UNTRAINED_SIZE = 64
"""Native edge in pixels: 8 latents of 8 pixels."""

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's byte-level BPE works on (GPT-2's table), in its
    order.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    shifted = [256 + n for n in range(256 - len(printable))]
    return [chr(code) for code in [*printable, *shifted]]


def byte_level_tokenizer() -> Any:
    """A CLIPTokenizer without merges: every byte of the prompt is one token, so no prompt is out of
    vocabulary.
    """
    from transformers import CLIPTokenizer

    alphabet = byte_alphabet()
    vocabulary = [*alphabet, *(char + "</w>" for char in alphabet), START, END]
    with tempfile.TemporaryDirectory() as folder:
        # Through files: the constructor's signature differs between transformers 4 and 5, the format does
        # not.
        (Path(folder) / "vocab.json").write_text(
            json.dumps({token: index for index, token in enumerate(vocabulary)}), encoding="utf-8"
        )
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def build_untrained_pipeline(dtype: str = "float32", seed: int = 0) -> Any:
    """A StableDiffusionPipeline with random weights; the same `seed` gives the same weights. Leaves torch's
    global RNG as it was.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    weights: torch.dtype = getattr(torch, dtype)
    tokenizer = byte_level_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
                bos_token_id=len(tokenizer) - 2,
                eos_token_id=len(tokenizer) - 1,
                pad_token_id=len(tokenizer) - 1,
            )
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=UNTRAINED_SIZE,
        )
        unet = UNet2DConditionModel(
            sample_size=UNTRAINED_SIZE // 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    return StableDiffusionPipeline(
        vae=vae.to(weights).eval(),
        text_encoder=text_encoder.to(weights).eval(),
        tokenizer=tokenizer,
        unet=unet.to(weights).eval(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
