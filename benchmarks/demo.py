"""`raynest demo` in an empty folder, twice: what the first run costs, and what the second one reuses.

python benchmarks/demo.py [--json FILE]

Both runs belong to one measurement on one machine; what matters is their ratio, which is to be 5 or more.
Ends with status 1 when it is less, or when a run fails. The sandbox is stopped at the end.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

WANTED_RATIO = 5.0
RAYNEST = [sys.executable, "-c", "from raynest_pipeline.cli import main; main()"]
LINK = re.compile(r"^(preflight|cluster|public_ip|kubeconfig|ray_service)\s+ready\s+([0-9.]+)", re.MULTILINE)
IMAGES = re.compile(r"^images:\s+(\d+) \((.+?)\) in ([0-9.]+) s", re.MULTILINE)
MODEL = re.compile(r"^model:\s+(.+)$", re.MULTILINE)
PACKAGES = ("dagster", "ray", "torch", "diffusers", "transformers", "kubernetes")


@dataclass(frozen=True)
class Run:
    """One `raynest demo`; all times in seconds."""

    wall: float
    """From the start of the process to its end, Python's own start included."""
    links: dict[str, float]
    images: str
    images_seconds: float
    model: str


def demo(home: Path) -> Run:
    """Run it once on this home.

    Raises:
        SystemExit: It failed, or printed no figures.
    """
    environment = {**os.environ, "RAYNEST_HOME": str(home), "RAYNEST_PROFILE": "sandbox", "COLUMNS": "200"}
    started = time.monotonic()
    done = subprocess.run(
        [*RAYNEST, "demo"], env=environment, cwd=home.parent, capture_output=True, text=True
    )
    wall = time.monotonic() - started
    images, model = IMAGES.search(done.stdout), MODEL.search(done.stdout)
    if done.returncode != 0 or images is None or model is None:
        sys.exit(f"raynest demo ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    links = {name: float(seconds) for name, seconds in LINK.findall(done.stdout)}
    count, how, seconds = images.groups()
    return Run(round(wall, 1), links, f"{count} ({how})", float(seconds), model[1].strip())


def machine() -> dict[str, str]:
    """What the figures belong to."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": load,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def table(first: Run, second: Run) -> str:
    """Both runs side by side, as Markdown."""
    rows = [(name, f"{first.links[name]:.1f}", f"{second.links[name]:.1f}") for name in first.links]
    rows.append(("images", f"{first.images_seconds:.1f}", f"{second.images_seconds:.1f}"))
    rows.append(("whole command", f"{first.wall:.1f}", f"{second.wall:.1f}"))
    lines = ["| part | first run, s | second run, s |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="Time `raynest demo`, first run and second.")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="raynest-bench-") as folder:
        home = Path(folder) / ".raynest"
        try:
            first = demo(home)
            second = demo(home)
        finally:
            stop = [*RAYNEST, "sandbox", "stop"]
            subprocess.run(stop, env={**os.environ, "RAYNEST_HOME": str(home)}, capture_output=True)
    ratio = first.wall / second.wall
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print(f"model: {first.model}\nimages: first {first.images}; second {second.images}\n")
    print(table(first, second))
    print(f"\nThe second run is {ratio:.1f} times faster (wanted: {WANTED_RATIO:g}).")
    if arguments.json:
        runs = {"first": asdict(first), "second": asdict(second)}
        document = {"machine": about, **runs, "ratio": round(ratio, 2)}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if ratio >= WANTED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
