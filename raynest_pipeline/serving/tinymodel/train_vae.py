"""Stage 3: the autoencoder, and the latents of the whole data set, computed once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from raynest_pipeline.serving.tinymodel.data import EDGE, captioned, render
from raynest_pipeline.serving.tinymodel.model import build_vae
from raynest_pipeline.serving.tinymodel.progress import Clock, cosine_rate, report, set_rate
from raynest_pipeline.serving.tinymodel.scenes import FULL, Vocabulary, sample_scene


def to_tensor(images: Any) -> Any:
    """uint8 (n, h, w, 3) to floats (n, 3, h, w) in -1..1, channels last in memory, which is twice as fast."""
    import torch

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.to(memory_format=torch.channels_last)


CROP = 32
"""Most of the training looks at crops of this edge: the autoencoder is local, and they cost a ninth."""
FULL_SHARE = 0.12
"""The last steps see whole images: the group norms' statistics depend on what surrounds an object."""


def training_pixels(seed: int, whole: bool) -> Any:
    """A batch of 6 whole images, or of 32 crops: of each image the busiest of a few random ones."""
    import numpy as np

    rng = random.Random(seed)
    if whole:
        return to_tensor(captioned(seed, 6)[1])
    crops = []
    for image in captioned(seed, 32)[1]:
        corners = [(rng.randrange(EDGE - CROP + 1), rng.randrange(EDGE - CROP + 1)) for _ in range(4)]
        candidates = [image[y : y + CROP, x : x + CROP] for y, x in corners]
        crops.append(max(candidates, key=lambda crop: float(crop.std(axis=(0, 1)).sum())))
    return to_tensor(np.stack(crops))


def train_vae(steps: int, seed: int) -> tuple[Any, float]:
    """The trained autoencoder and its mean absolute error in 8-bit pixel values on unseen images."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    clock = Clock(steps)
    for step in range(steps):
        set_rate(optimizer, 2e-3 * cosine_rate(clock.fraction(step)))
        pixels = training_pixels(seed * 1_000_003 + step, whole=clock.fraction(step) > 1 - FULL_SHARE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        # Half L1 for crisp edges, half squared for colour. The KL term and the sampling teach the decoder to
        # take
        # latents that are a little off, which is what a small UNet will hand it.
        error = (decoded.float() - pixels).abs().mean() + functional.mse_loss(decoded.float(), pixels)
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        (error + 2e-3 * divergence).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            report("vae", step, clock, error=error.item(), kl=divergence.item())
    vae.eval()
    standardize(vae, seed)
    return vae, unseen_error(vae, seed)


def standardize(vae: Any, seed: int) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latents.

    Diffusion then starts from data of mean 0 and deviation 1, and the pipeline needs no scaling factor.
    """
    import torch

    with torch.no_grad():
        latents = vae.encode(to_tensor(captioned(seed + 13, 256)[1])).latent_dist.mean
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        channels = len(mean)
        leaving, entering = vae.quant_conv, vae.post_quant_conv
        leaving.weight[:channels] /= deviation.view(-1, 1, 1, 1)
        leaving.bias[:channels] = (leaving.bias[:channels] - mean) / deviation
        leaving.bias[channels:] -= 2 * deviation.log()
        entering.bias += entering.weight[:, :, 0, 0] @ mean
        entering.weight *= deviation.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def encode_dataset(
    vae: Any, tokenizer: Any, count: int, seed: int, vocabulary: Vocabulary, batch: int = 64
) -> dict[str, Any]:
    """`count` captioned scenes as token ids (count, tokens) and latents (count, 4, 24, 24)."""
    import torch

    from raynest_pipeline.serving.tinymodel.train_text import tokenize

    ids, latents, clock = [], [], Clock(count)
    for start in range(0, count, batch):
        captions, images = captioned(seed * 7_919 + start, batch, vocabulary)
        ids.append(tokenize(tokenizer, captions))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            latents.append(vae.encode(to_tensor(images)).latent_dist.mean.float().contiguous())
        if start % (batch * 50) == 0:
            report("latents", start, clock)
    return {"ids": torch.cat(ids), "latents": torch.cat(latents)}


LATENT_NOISE = 0.2
"""Largest deviation of the noise on latents that the decoder learns to see through; the latents' own is 1."""


def sharpen_decoder(vae: Any, steps: int, seed: int) -> float:
    """Train the decoder alone on, against latents with noise, and return its error as train_vae does.

    The encoder, and with it the latents, stay as they are, so the UNet may train at the same time. A small
    UNet's latents are never exact; a decoder that has met noise still paints flat colours and crisp edges.
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    vae.requires_grad_(False)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    clock = Clock(steps)
    for step in range(steps):
        set_rate(optimizer, 2e-3 * cosine_rate(clock.fraction(step)))
        whole = clock.fraction(step) > 1 - 2 * FULL_SHARE
        pixels = training_pixels(seed * 1_000_003 + 500_000 + step, whole)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(pixels).latent_dist.mean.float()
            noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * LATENT_NOISE
            decoded = vae.decode(latents + noise).sample
        error = (decoded.float() - pixels).abs().mean() + functional.mse_loss(decoded.float(), pixels)
        optimizer.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            report("decoder", step, clock, error=error.item())
    vae.eval().requires_grad_(False)
    return unseen_error(vae, seed)


REFINE_RATE, REFINE_NOISE = 4e-4, 0.12
EDGE_WEIGHT = 10.0
"""How much more a pixel within two of an edge counts: a small star is lost in the mean over an image."""


def refine_vae(vae: Any, steps: int, seed: int) -> float:
    """Train all of it on, on whole images of mostly small shapes, edges first; returns its error as train_vae
    does.

    Crops taught it colours and edges cheaply, but its group norms see a whole image in use.
    """
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    vae.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=REFINE_RATE, weight_decay=0.0)
    clock = Clock(steps)
    for step in range(steps):
        set_rate(optimizer, REFINE_RATE * cosine_rate(clock.fraction(step)))
        pixels = small_shapes(seed * 1_000_003 + 900_000 + step)
        weight = edge_weight(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            latents = posterior.sample().float()
            noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * REFINE_NOISE
            decoded = vae.decode(latents + noise).sample
        off = decoded.float() - pixels
        error = (weight * off.abs()).mean() + (weight * off**2).mean()
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        (error + 1e-3 * divergence).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            report("refine", step, clock, error=functional.l1_loss(decoded.float(), pixels).item())
    vae.eval().requires_grad_(False)
    standardize(vae, seed)
    return unseen_error(vae, seed)


def small_shapes(seed: int, count: int = 6) -> Any:
    """A batch of whole images, most of them with a small shape."""
    import numpy as np

    rng, words = random.Random(seed), replace(FULL, pair_share=0.8)
    images: list[Any] = []
    while len(images) < count:
        scene = sample_scene(rng, words)
        if any(thing.size == "small" for thing in scene.things) or rng.random() < 0.4:
            images.append(render(scene, rng))
    return to_tensor(np.stack(images))


def edge_weight(pixels: Any) -> Any:
    """Weights (n, 1, h, w) of mean 1, `EDGE_WEIGHT` times higher near an edge of the image."""
    from torch.nn import functional

    contrast = functional.max_pool2d(pixels, 5, 1, 2) + functional.max_pool2d(-pixels, 5, 1, 2)
    weight = 1 + (EDGE_WEIGHT - 1) * (contrast.amax(1, keepdim=True) > 0.1).float()
    return weight / weight.mean()


def unseen_error(vae: Any, seed: int) -> float:
    """Mean absolute error, in 8-bit pixel values, of what the autoencoder makes of unseen images."""
    import torch

    with torch.no_grad():
        pixels = to_tensor(captioned(seed + 17, 64)[1])
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return float((decoded - pixels).abs().mean()) * 127.5
