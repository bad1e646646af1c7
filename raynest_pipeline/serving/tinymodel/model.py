"""The parts of the model: Stable Diffusion's own classes, sized for a laptop's CPU."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.tinymodel.data import EDGE
from raynest_pipeline.serving.tinymodel.scenes import vocabulary
from raynest_pipeline.serving.untrained import END, START, byte_alphabet

MAX_TOKENS = 24
"""The longest caption has 15 words. 77 as in CLIP would triple the cost of cross-attention."""
TEXT_WIDTH = 128
LATENT_CHANNELS = 4
LATENT_EDGE = EDGE // 4
NORM_GROUPS_VAE, NORM_GROUPS_UNET = 1, 4
"""Few groups: a group of two or three channels, normalized, forgets how bright a flat picture was."""


def build_tokenizer() -> Any:
    """A CLIP tokenizer with one token per word of the vocabulary; other words fall into pieces and bytes."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokens(Path(folder))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def write_tokens(folder: Path) -> None:
    """Write the tokenizer's vocab.json and merges.txt: what transformers 4 reads, and 5 does not save."""
    alphabet = byte_alphabet()
    merges: list[str] = []
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    for word in vocabulary():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # From the end of the word, where "</w>" keeps one word's merges from eating into another's.
            left, right = pieces[-2:]
            pieces[-2:] = [left + right]
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
    tokens += [START, END]
    numbers = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def build_text_encoder(tokenizer: Any) -> Any:
    """CLIP's text transformer, 3 layers of 128."""
    from transformers import CLIPTextConfig, CLIPTextModel

    size = len(tokenizer)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def build_vae() -> Any:
    """96x96x3 pixels to 24x24x4 latents and back.

    Eight-fold compression, as in Stable Diffusion, would spare the UNet work, but a small star is then two
    latents wide and the autoencoder needs many times the training.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=NORM_GROUPS_VAE,
        mid_block_add_attention=False,
        sample_size=EDGE,
    )
    silence_residuals(vae)
    return vae


def build_unet() -> Any:
    """The caption as a whole steers every layer, beside the noise level; its words are attended to at 6x6.

    Cross-attention alone left the fine layers without a word: colours came out in patches. Where a feature
    is, it knows from the padding, seen through the coarse layers.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=LATENT_EDGE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=NORM_GROUPS_UNET,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    silence_residuals(unet)
    return unet


def silence_residuals(model: Any) -> None:
    """Start every residual block as the identity: deep stacks of layers then learn from the first step."""
    import torch

    for name, parameter in model.named_parameters():
        if ".resnets." in name and ".conv2." in name:
            torch.nn.init.zeros_(parameter)


def scheduler_config() -> dict[str, Any]:
    """Noise schedule with zero terminal signal: else the background's colour leaks from the noise's mean."""
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
