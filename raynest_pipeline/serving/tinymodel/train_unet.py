"""Stage 4: the denoiser. Checkpoints itself and resumes; keeps an exponential moving average, which is what
is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raynest_pipeline.serving.tinymodel.model import build_unet, scheduler_config
from raynest_pipeline.serving.tinymodel.progress import (
    Clock,
    cosine_rate,
    report,
    save_atomically,
    set_rate,
    spare_threads,
)
from raynest_pipeline.serving.tinymodel.train_text import tokenize

PEAK_RATE = 8e-4
"""Of both optimizers. Muon's updates are scaled to the size of AdamW's."""
EMA_DECAY = 0.999
BLANK_SHARE = 0.1
"""Captions replaced by the empty one: classifier-free guidance needs a model of images without words."""
NOISE_SHIFT = 2.0
"""Draws more of the noisy steps, where the layout and the colours are decided."""


class UNetTrainer:
    """Trains on latents that were computed before, against frozen text states."""

    def __init__(
        self, encoder: Any, tokenizer: Any, data: dict[str, Any], seed: int, batch: int = 64
    ) -> None:
        import torch
        from diffusers import DDPMScheduler
        from diffusers.models.attention_processor import AttnProcessor

        torch.manual_seed(seed)
        self._encoder, self._data, self._batch = encoder, data, batch
        self._blank = tokenize(tokenizer, [""])
        config = {key: value for key, value in scheduler_config().items() if key != "timestep_spacing"}
        self._schedule = DDPMScheduler(**config)
        self.unet = build_unet()
        # Over so few tokens plain attention is faster on a CPU than the fused kernel's backward pass.
        self.unet.set_attn_processor(AttnProcessor())
        self.ema = copy.deepcopy(self.unet).requires_grad_(False)
        self._optimizer = MuonAndAdamW(self.unet)
        self.step = 0
        self._spent = 0.0

    def resume(self, path: Path) -> bool:
        """Go on from a checkpoint, if there is one."""
        import torch

        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self._optimizer.load_state(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self._spent = state["step"], state["spent"]
        return True

    def start_from(self, path: Path) -> None:
        """Take another training's averaged weights, but begin a new learning-rate curve, for other words say.

        Raises:
            FileNotFoundError: There is no checkpoint at `path`.
        """
        import torch

        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint to start from at {path}")
        weights = torch.load(path, weights_only=True)["ema"]
        self.unet.load_state_dict(weights)
        self.ema.load_state_dict(weights)

    def train(
        self,
        steps: int,
        minutes: float | None,
        checkpoint: Path,
        every: int,
        export: Callable[[Any, int], None],
    ) -> None:
        """Train to `steps`, or for `minutes` of work if that ends first; `export` gets the average at each
        checkpoint.
        """
        import torch

        clock = Clock(steps, minutes, self._spent)
        average: float | None = None
        threads = torch.get_num_threads()
        while clock.fraction(self.step) < 1:
            self._optimizer.set_rate(PEAK_RATE * cosine_rate(clock.fraction(self.step)))
            loss = self._one_step()
            average = loss if average is None else average + 0.02 * (loss - average)
            self.step += 1
            if self.step % 25 == 0:
                torch.set_num_threads(spare_threads(threads, torch.get_num_threads()))
            over = clock.fraction(self.step) >= 1
            if self.step % 50 == 0 or over:
                report("unet", self.step, clock, loss=average)
            if self.step % every == 0 or over:
                state = {
                    "unet": self.unet.state_dict(),
                    "ema": self.ema.state_dict(),
                    "optimizer": self._optimizer.state(),
                    "rng": torch.get_rng_state(),
                    "step": self.step,
                    "spent": clock.spent,
                }
                save_atomically(state, checkpoint)
                export(self.ema, self.step)

    def _one_step(self) -> float:
        import torch
        from torch.nn import functional

        chosen = torch.randint(len(self._data["latents"]), (self._batch,))
        latents, ids = self._data["latents"][chosen], self._data["ids"][chosen]
        ids = torch.where(torch.rand(self._batch, 1) < BLANK_SHARE, self._blank, ids)
        noise = torch.randn_like(latents)
        uniform = torch.rand(self._batch)
        times = (NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform) * 1000).long().clamp(0, 999)
        noisy = self._schedule.add_noise(latents, noise, times)
        target = self._schedule.get_velocity(latents, noise, times)
        with torch.no_grad():
            states = self._encoder(ids).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = self.unet(noisy, times, states).sample
        # v-prediction is even over the noise levels by itself; min-SNR vanishes at zero signal.
        loss = functional.mse_loss(predicted.float(), target)
        self.unet.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self._optimizer.step()
        self._follow()
        return float(loss.detach())

    def _follow(self) -> None:
        """Move the average towards the weights, faster at first, when the weights are far from good."""
        import torch

        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages, weights = list(self.ema.parameters()), list(self.unet.parameters())
            torch._foreach_lerp_(averages, weights, 1 - decay)


class MuonAndAdamW:
    """Muon for the layers' weights, AdamW for the rest: biases, norms, embeddings, the first and last layer.

    Muon (Keller Jordan, 2024) orthogonalizes the momentum of each weight matrix; a convolution counts as the
    matrix of its filters. A step takes a third longer and is worth several of AdamW's.
    """

    def __init__(self, model: Any) -> None:
        import torch

        outer = ("conv_in.", "conv_out.", "embedding")
        weights: list[Any] = []
        rest: list[Any] = []
        for name, parameter in model.named_parameters():
            inner = parameter.ndim >= 2 and not any(part in name for part in outer)
            (weights if inner else rest).append(parameter)
        # The same memory, as the matrices that torch's Muon insists on.
        matrices = [torch.nn.Parameter(weight.data.view(len(weight), -1)) for weight in weights]
        self._pairs = list(zip(matrices, weights, strict=True))
        self._muon = torch.optim.Muon(
            matrices, lr=PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(rest, lr=PEAK_RATE, weight_decay=0.01, fused=True)

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        set_rate(self._muon, rate)
        set_rate(self._adamw, rate)

    def step(self) -> None:
        """Change the weights by their gradients."""
        for matrix, weight in self._pairs:
            matrix.grad = weight.grad.flatten(1)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
