"""How long a replica takes to load a model: the import of the libraries, and the model's own loading.

python benchmarks/load.py [--model MODEL] [--runs N] [--check] [--json FILE]

The model is the small one that ships with raynest, unless another is named (as in `ray_service.model`). Each
run is a fresh process. Prints the median and the extremes of wall and processor time; what else runs on the
machine counts into the wall time. With --check the exit code is 1 if the median of both together is over 3 s.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "raynest_pipeline" / "serving" / "tinymodel" / "weights"
TARGET_SECONDS = 3.0
PACKAGES = ("torch", "diffusers", "transformers", "safetensors")

CHILD = """
import json, sys, time
from raynest_pipeline.serving.options import ServingOptions
from raynest_pipeline.serving.sources import load_model, without_garbage_collection

def now():
    return time.perf_counter(), time.process_time()

start = now()
with without_garbage_collection():
    import diffusers, torch, transformers
    # Both packages import a class's module when the class is first asked for.
    transformers.CLIPTextModel, transformers.CLIPTokenizer
    diffusers.StableDiffusionPipeline, diffusers.DDIMScheduler
imported = now()
load_model(ServingOptions(model=sys.argv[1]))
loaded = now()
steps = [(imported, start), (loaded, imported)]
print(json.dumps([after[clock] - before[clock] for after, before in steps for clock in (0, 1)]))
"""


@dataclass(frozen=True)
class Run:
    """One fresh process; all in seconds."""

    import_wall: float
    import_cpu: float
    load_wall: float
    load_cpu: float


def measure(model: str) -> Run:
    """Load it once in a process of its own.

    Raises:
        SystemExit: It failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, model], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"loading {model} ended with status {done.returncode}:\n{done.stderr}")
    return Run(*(round(value, 3) for value in json.loads(done.stdout.splitlines()[-1])))


def row(name: str, values: list[float]) -> str:
    """One line of the table."""
    return f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(SHIPPED))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measure(args.model)  # Compiles what is not compiled, fetches what is not there, warms the disk's cache.
    runs = [measure(args.model) for _ in range(args.runs)]
    print(f"| {args.runs} fresh processes, s | median | least | most |\n|---|---|---|---|")
    print(row("import of the libraries", [run.import_wall for run in runs]))
    print(row("... processor time", [run.import_cpu for run in runs]))
    print(row("loading the model", [run.load_wall for run in runs]))
    print(row("... processor time", [run.load_cpu for run in runs]))
    both = [run.import_wall + run.load_wall for run in runs]
    print(row("both", both))
    load = os.getloadavg()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(f"\n{os.cpu_count()} cores, load {load[0]:.1f}, Python {platform.python_version()}, {versions}")
    if args.json:
        record = {"model": args.model, "load": load, "versions": versions, "runs": [asdict(r) for r in runs]}
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    if args.check and statistics.median(both) > TARGET_SECONDS:
        sys.exit(f"missed: {statistics.median(both):.2f} s, target {TARGET_SECONDS:g} s")


if __name__ == "__main__":
    main()
