"""Bookkeeping that the training stages share: a learning-rate curve, progress lines, atomic checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """How far a stage has come: by steps, or by minutes of work where a budget is set, whichever is further.

    `spent` seconds of earlier runs count, so a resumed stage goes on where it was on its curve.
    """

    def __init__(self, steps: int, minutes: float | None = None, spent: float = 0.0) -> None:
        self.steps = steps
        self._budget = None if minutes is None else minutes * 60
        self._started = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds of work so far."""
        return time.monotonic() - self._started

    def fraction(self, step: int) -> float:
        """0 at the start, 1 when the stage is over."""
        by_steps = step / self.steps
        return by_steps if self._budget is None else max(by_steps, self.spent / self._budget)


def cosine_rate(fraction: float, warm_up: float = 0.03, floor: float = 0.03) -> float:
    """Factor on the peak learning rate: a linear rise, then half a cosine down to `floor`."""
    if fraction < warm_up:
        return max(fraction / warm_up, 0.02)
    return floor + (1 - floor) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, (fraction - warm_up) / (1 - warm_up)))
    )


def set_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group the learning rate `rate`."""
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate


def spare_threads(limit: int, in_use: int) -> int:
    """How many of `limit` threads to use now: all, or one while other programs keep the machine busy.

    On a busy machine each operation waits for its slowest thread, and two threads are slower than one.
    """
    others = os.getloadavg()[0] - in_use
    return limit if others < 1.0 else 1


def report(stage: str, step: int, clock: Clock, **numbers: float) -> None:
    """One progress line on stderr."""
    values = " ".join(f"{name}={value:.4g}" for name, value in numbers.items())
    line = f"[{stage}] step {step} {clock.fraction(step):6.1%} {clock.spent / 60:.1f} min {values}"
    print(line, file=sys.stderr, flush=True)


def save_atomically(state: Any, path: Path) -> None:
    """torch.save that never leaves half a file behind."""
    import torch

    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def save_folder(part: Any, folder: Path) -> None:
    """`part.save_pretrained(folder)` that never leaves half a folder behind."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    part.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
