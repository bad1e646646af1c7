"""Train the small model from nothing: `python -m raynest_pipeline.serving.tinymodel.train --out DIR`.

Makes its own data, runs its four stages in order, skips those already done, and resumes the last one from
its checkpoint. DIR/pipeline is at any time the newest complete model, in the Stable Diffusion format.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.tinymodel.model import scheduler_config, write_tokens
from raynest_pipeline.serving.tinymodel.progress import save_atomically, save_folder
from raynest_pipeline.serving.tinymodel.scenes import VOCABULARIES
from raynest_pipeline.serving.tinymodel.train_text import train_text_encoder
from raynest_pipeline.serving.tinymodel.train_tolerance import train_tolerance
from raynest_pipeline.serving.tinymodel.train_unet import UNetTrainer
from raynest_pipeline.serving.tinymodel.train_vae import (
    encode_dataset,
    refine_vae,
    sharpen_decoder,
    train_vae,
)

DEFAULT_STEPS, DEFAULT_GUIDANCE = 16, 1.3
"""What generation.json recommends.

At zero signal v-prediction is the image itself, so more guidance distorts colours.
"""
MODEL_NAME = "raynest-shapes"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the small text-to-image model of coloured shapes.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("training/tinymodel"),
        help="folder for checkpoints and the finished model",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: all cores")
    parser.add_argument("--text-steps", type=int, default=300)
    parser.add_argument("--tolerance-steps", type=int, default=3000)
    parser.add_argument("--vae-steps", type=int, default=700)
    parser.add_argument("--decoder-steps", type=int, default=2500)
    parser.add_argument("--refine-steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=64_000, help="size of the data set")
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="full")
    parser.add_argument("--start", type=Path, help="unet.pt of another training to start from")
    parser.add_argument("--steps", type=int, default=9000, help="steps of the UNet")
    parser.add_argument("--minutes", type=float, help="end the UNet's training after so many minutes of work")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    train(parser.parse_args(arguments))


def train(options: argparse.Namespace) -> None:
    """Run or resume the stages under `options.out`."""
    import torch

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, encoder = text_stage(out, options)
    vae = vae_stage(out, options)
    trainer = UNetTrainer(encoder, tokenizer, data_stage(out, vae, tokenizer, options), options.seed)
    if trainer.resume(out / "unet.pt"):
        print(f"resuming at step {trainer.step}")
    elif options.start:
        trainer.start_from(options.start)

    def export(unet: Any, step: int) -> None:
        export_pipeline(out, vae, encoder, tokenizer, unet, step)

    trainer.train(options.steps, options.minutes, out / "unet.pt", options.checkpoint_every, export)


def text_stage(out: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """The tokenizer and text encoder: read if a run finished them, else trained."""
    from transformers import CLIPTextModel, CLIPTokenizer

    if not (out / "text_encoder" / "config.json").is_file():
        tokenizer, encoder, accuracy = train_text_encoder(options.text_steps, options.seed)
        print(f"text encoder: every attribute right in {accuracy:.1%} of unseen captions")
        save_folder(tokenizer, out / "tokenizer")
        save_folder(encoder, out / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    if not (out / "text_tolerant" / "config.json").is_file():
        encoder = CLIPTextModel.from_pretrained(out / "text_encoder")
        error = train_tolerance(encoder, tokenizer, options.tolerance_steps, options.seed)
        print(f"tolerant text encoder: squared error {error:.3f} of states with strange words", flush=True)
        save_folder(encoder, out / "text_tolerant")
    encoder = CLIPTextModel.from_pretrained(out / "text_tolerant").eval().requires_grad_(False)
    return tokenizer, encoder


def vae_stage(out: Path, options: argparse.Namespace) -> Any:
    """The autoencoder, sharpened, then refined as a whole: read if a run finished it, else trained."""
    from diffusers import AutoencoderKL

    if not (out / "vae" / "config.json").is_file():
        vae, error = train_vae(options.vae_steps, options.seed)
        print(f"autoencoder: mean absolute error {error:.2f} of 255", flush=True)
        save_folder(vae, out / "vae")
    if not (out / "vae_sharp" / "config.json").is_file():
        vae = AutoencoderKL.from_pretrained(out / "vae")
        error = sharpen_decoder(vae, options.decoder_steps, options.seed)
        print(f"sharpened decoder: mean absolute error {error:.2f} of 255", flush=True)
        save_folder(vae, out / "vae_sharp")
    if not (out / "vae_refined" / "config.json").is_file():
        vae = AutoencoderKL.from_pretrained(out / "vae_sharp")
        error = refine_vae(vae, options.refine_steps, options.seed)
        print(f"refined autoencoder: mean absolute error {error:.2f} of 255", flush=True)
        save_folder(vae, out / "vae_refined")
    return AutoencoderKL.from_pretrained(out / "vae_refined").eval().requires_grad_(False)


def data_stage(out: Path, vae: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The latents: read if they were made with these options, else made."""
    import torch

    path = out / "latents.pt"
    made_with = {name: getattr(options, name) for name in ("images", "seed", "vocabulary")}
    if path.is_file():
        data: dict[str, Any] = torch.load(path, weights_only=True)
        if data.get("made_with") == made_with:
            return data
    words = VOCABULARIES[options.vocabulary]
    data = encode_dataset(vae, tokenizer, options.images, options.seed, words)
    save_atomically(data | {"made_with": made_with}, path)
    return data


def export_pipeline(out: Path, vae: Any, encoder: Any, tokenizer: Any, unet: Any, step: int) -> None:
    """Write DIR/pipeline: half-precision weights, and generation.json with what the model recommends."""
    import copy

    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(encoder),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet),
        scheduler=DDIMScheduler(**scheduler_config(), set_alpha_to_one=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    # Where the autoencoder was read from is of no use to others, and names a folder of this machine.
    pipeline.vae.register_to_config(_name_or_path="")
    fresh, final = out / "pipeline.new", out / "pipeline"
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    write_tokens(fresh / "tokenizer")
    recommendation = {
        "name": MODEL_NAME,
        "revision": f"step-{step}",
        "steps": DEFAULT_STEPS,
        "guidance": DEFAULT_GUIDANCE,
    }
    (fresh / "generation.json").write_text(json.dumps(recommendation, indent=2) + "\n", encoding="utf-8")
    for path in fresh.rglob("*.safetensors"):
        # Written for their owner alone, which a container's user is not.
        path.chmod(0o644)
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)


if __name__ == "__main__":
    main()
