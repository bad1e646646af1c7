"""The stock application against ours, over HTTP, and how near ours comes to the bare pipeline.

python benchmarks/serving.py [--model small|full] [--steps N] [--size N] [--json FILE] [--check]
python benchmarks/serving.py --ways ours post --batch 16 --bare 16 --concurrency 64 --images 64 --rounds 10

One run on one machine. All contestants live in one Ray and take turns, so that what else the machine does
hits them alike; who does not have its turn is idle. `full` is a UNet, VAE and text encoder of Stable
Diffusion 1.5's size with random weights: they cost the time of trained ones, and nothing is downloaded.
The second command leaves the stock application out: how near ours comes to the bare pipeline is a matter of a
few per cent, which takes many turns. With --check the exit code is 1 when a target is missed.
"""

import argparse
import asyncio
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo import machine
from serving_load import ALONE, OURS, POST, PROMPTS, STOCK, Load, Tally, turn

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "raynest_pipeline/serving/tinymodel/weights"
BARE_BATCHES = (1, 2, 4, 8, 16)
WANTED_OF_BARE = 0.95
WANTED_RATIO = {"cpu": 3.0, "cuda": 2.5}
WAYS = {"stock": STOCK, "alone": ALONE, "ours": OURS, "post": POST}
"""Contestants as `--ways` calls them."""
RATIO_AT = 16
"""Concurrency at which the stock application and ours are compared."""


def full_model(folder: Path) -> Path:
    """Write a pipeline of Stable Diffusion 1.5's size, with random weights, in half precision."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from raynest_pipeline.serving.untrained import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
    )  # fmt: skip
    # UNet2DConditionModel's defaults are Stable Diffusion's, but for the text encoder's width.
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


class Bare:
    """The bare diffusers loop: the pipeline that we serve, in this process, without Ray and HTTP."""

    def __init__(self, options: dict[str, Any], size: int) -> None:
        from raynest_pipeline.serving.cores import set_threads, spin_briefly, usable_cores
        from raynest_pipeline.serving.options import ServingOptions
        from raynest_pipeline.serving.sources import load_model

        spin_briefly()
        given = ServingOptions.model_validate(options)
        set_threads(given.cpu_threads or usable_cores())
        self.model, self.size = load_model(given), size
        self.images_per_s: dict[int, list[float]] = {}

    def turn(self, batch: int, count: int) -> None:
        """Paint at least `count` images in calls of `batch`; before the first turn one call that is not
        timed, as the others have: it pays for what is lazy, and with torch.compile for minutes.
        """
        if batch not in self.images_per_s:
            self._call(batch)
        calls = max(1, count // batch)
        started = time.perf_counter()
        for _ in range(calls):
            self._call(batch)
        self.images_per_s.setdefault(batch, []).append(calls * batch / (time.perf_counter() - started))

    def _call(self, batch: int) -> None:
        import torch

        with torch.inference_mode():
            self.model.pipeline(
                prompt=[PROMPTS[n % len(PROMPTS)] for n in range(batch)],
                negative_prompt=[""] * batch,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(batch)],
                height=self.size,
                width=self.size,
                num_inference_steps=self.model.default_steps,
                guidance_scale=self.model.default_guidance,
                output_type="np",
            )

    def document(self) -> dict[str, float]:
        """Images per second at each batch size: the mean of the turns."""
        return {str(batch): round(statistics.fmean(seen), 3) for batch, seen in self.images_per_s.items()}


def start(
    folder: Path, options: dict[str, Any], steps: int, device: str, ways: Sequence[str]
) -> dict[str, str]:
    """Ray, Serve and the applications of `ways`. The contestants and their base URLs."""
    import ray
    import stock_app
    from ray import serve

    from raynest_pipeline.serving.app import build

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray gives itself 30 s to start, which a busy machine exceeds.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    # Ray's workers run at niceness 15: beside anything else the replicas would lose to the bare pipeline.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    ray.init(
        address="local",
        # Idle replicas need no core of their own; torch's threads are set by the applications.
        num_cpus=max(8, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    share = {"num_cpus": 1.0, **({"num_gpus": 0.3} if device == "cuda" else {})}
    serve.run(build({**options, **share}), name="ours", route_prefix="/ours")
    for way, most in (("stock", None), ("alone", 1)):
        if way in ways:
            serve.run(stock_app.build(str(folder), steps, share, most), name=way, route_prefix=f"/{way}")
    base = f"http://127.0.0.1:{port}"
    paths_of = {STOCK: "stock", ALONE: "alone", OURS: "ours", POST: "ours"}
    return {WAYS[way]: f"{base}/{paths_of[WAYS[way]]}" for way in WAYS if way in ways}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All turns; the whole document."""
    import ray
    from ray import serve

    options: dict[str, Any] = {
        "model": str(folder),
        "max_batch_size": arguments.batch,
        "queue_size": 256,
        "default_steps": arguments.steps,
        "deadline_s": 3600.0,
        **json.loads(arguments.options),
    }
    bare = Bare(options, arguments.size)
    device = "cuda" if bare.model.device.startswith("cuda") else "cpu"
    tallies: dict[tuple[str, int], Tally] = {}
    try:
        bases = start(folder, options, bare.model.default_steps, device, arguments.ways)
        for way, base in bases.items():
            # The first images pay for what is lazy, and belong to no figure.
            asyncio.run(turn(base, way, 1, 1, arguments.size, Tally()))
        for number in range(arguments.rounds):
            for concurrency in arguments.concurrency:
                for batch in arguments.bare:
                    bare.turn(batch, arguments.images // len(arguments.bare))
                for way, base in bases.items():
                    tally = tallies.setdefault((way, concurrency), Tally())
                    count = max(concurrency, arguments.images)
                    with Load(device) as load:
                        asyncio.run(turn(base, way, concurrency, count, arguments.size, tally))
                    if load.percent is not None:
                        tally.load.append(load.percent)
                    print(f"round {number + 1}: {way}, {concurrency}: {tally.document()}", file=sys.stderr)
    finally:
        serve.shutdown()
        ray.shutdown()
    rows = [
        {"way": way, "concurrency": concurrency, **tally.document()}
        for (way, concurrency), tally in tallies.items()
    ]
    about = {
        "model": f"{bare.model.name}, {arguments.size} pixels, {bare.model.default_steps} steps",
        "device": f"{bare.model.device}, {bare.model.dtype}, batches of up to {arguments.batch}",
        "ours": ", ".join(f"{key} {value}" for key, value in options.items() if key not in ("model",)),
    }
    figures = {"bare": bare.document(), "rows": rows, **judge(bare, tallies, device)}
    return {"machine": {**machine(), **about}, **figures}


def judge(bare: Bare, tallies: dict[tuple[str, int], Tally], device: str) -> dict[str, Any]:
    """The targets and what came of them."""
    best = max(bare.images_per_s.values(), key=statistics.fmean)
    ours = max(
        (tally for (way, _), tally in tallies.items() if way in (OURS, POST)),
        key=lambda tally: tally.images_per_s,
    )
    share = ours.images_per_s / statistics.fmean(best)
    judged: dict[str, Any] = {
        "of_bare": round(share, 3),
        "of_bare_error": round(share * math.hypot(spread(best), spread(ours.turns)), 3),
        "of_bare_wanted": WANTED_OF_BARE,
    }
    at = min({concurrency for _, concurrency in tallies}, key=lambda concurrency: abs(concurrency - RATIO_AT))
    # The better of the two: the sample itself spoils images when its calls share a pipeline.
    stocks = [tallies[way, at].images_per_s for way in (STOCK, ALONE) if (way, at) in tallies]
    if stocks and (OURS, at) in tallies:
        ratio = tallies[OURS, at].images_per_s / max(stocks) if max(stocks) else 0.0
        judged |= {"ratio": round(ratio, 2), "ratio_wanted": WANTED_RATIO[device], "ratio_at": at}
    return judged


def spread(seen: Sequence[float]) -> float:
    """Standard error of the mean, as a part of it; 0.0 when a single turn tells nothing of it."""
    if len(seen) < 2:
        return 0.0
    return statistics.stdev(seen) / math.sqrt(len(seen)) / statistics.fmean(seen)


def table(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{key}: {value}" for key, value in document["machine"].items()]
    lines += ["", "| bare pipeline, batch | images/s |", "|---|---|"]
    lines += [f"| {batch} | {value:.2f} |" for batch, value in document["bare"].items()]
    lines += ["", "| concurrency | | images/s | p50, s | p95, s | device, % | pipeline, % | errors |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in document["rows"]:
        pipeline = row["pipeline_busy_percent"] or ""
        lines.append(
            f"| {row['concurrency']} | {row['way']} | {row['images_per_s']:.2f} | {row['p50_s']:.2f} | "
            f"{row['p95_s']:.2f} | {row['device_percent']} | {pipeline} | {row['errors'] or ''} |"
        )
    return "\n".join(lines)


def verdict(document: dict[str, Any]) -> str:
    """What came of the targets, in a sentence or two."""
    said = (
        f"Ours reaches {document['of_bare']:.1%} of the bare pipeline's best, with a standard error of "
        f"{document['of_bare_error']:.1%} (wanted: {document['of_bare_wanted']:.0%})."
    )
    if "ratio" not in document:
        return said
    return (
        f"{said} At concurrency {document['ratio_at']} it makes {document['ratio']:.2f} times the stock "
        f"application's images/s (wanted: {document['ratio_wanted']:g})."
    )


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the model's own size and steps filled in."""
    parser = argparse.ArgumentParser(description="Serve images: the stock application's way against ours.")
    parser.add_argument("--model", default="small", help="small, full, or a folder")
    parser.add_argument("--size", type=int, help="pixels (small: 96, else 512)")
    parser.add_argument("--steps", type=int, help="denoising steps (small: 16, else 50)")
    parser.add_argument("--batch", type=int, default=8, help="our largest batch")
    parser.add_argument("--images", type=int, default=32, help="images per turn, at least one per client")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="contestants")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--bare", type=int, nargs="+", default=list(BARE_BATCHES), help="batch sizes")
    parser.add_argument("--options", default="{}", help='more of our options, e.g. {"compile": "default"}')
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help="fail when a target is missed")
    arguments = parser.parse_args(words)
    small = arguments.model == "small"
    if not {"ours", "post"} & set(arguments.ways):
        parser.error("--ways needs ours or post: they are what is judged")
    arguments.size = arguments.size or (96 if small else 512)
    arguments.steps = arguments.steps or (16 if small else 50)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    arguments = parse(words)
    with tempfile.TemporaryDirectory(prefix="raynest-bench-") as scratch:
        folder = {"small": SMALL}.get(arguments.model, Path(arguments.model))
        document = measure(arguments, full_model(Path(scratch)) if arguments.model == "full" else folder)
    print(table(document))
    print("\n" + verdict(document))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    reached = all(
        document[name] >= document[f"{name}_wanted"] for name in ("of_bare", "ratio") if name in document
    )
    return 0 if reached or not arguments.check else 1


if __name__ == "__main__":
    # As a script only benchmarks/ is on the path.
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
