"""The batch engine beside its peers, against one endpoint in one run; what a finished or huge batch costs.

python benchmarks/batch.py                        four ways to make 500 images, side by side
python benchmarks/batch.py --endpoint URL         the same against a real endpoint
python benchmarks/batch.py --resume 100000        a batch that is finished, run again
python benchmarks/batch.py --prompts 1000000      memory of a huge batch beside one of 1,000

Without --endpoint a stub serves on loopback (endpoint.py): PNGs of about 500 kB, batches of 8 in 0.25 s, 64
may wait. The huge batches get tiny PNGs, at once. Each contender runs in a process of its own, and
Ray's and the interpreter's start don't count. Ends with status 1 when a target is missed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
NAMES = {
    "script": "the walkthrough's script in a loop",
    "pool": "thread pool of requests",
    "ray": "Ray Data map_batches",
    "raynest": "raynest",
}
WANTED_SHARE = 0.97
WANTED_CPU_MS = 3.0
WANTED_RESUME_SECONDS = 3.0
WANTED_MEMORY_BYTES = 100e6
FEW = 1_000
PACKAGES = ("aiohttp", "requests", "ray")


@dataclass(frozen=True)
class Run:
    """What a contender came to."""

    name: str
    images: int
    seconds: float
    cpu_seconds: float
    rss_bytes: float

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time for one image, milliseconds."""
        return 1000 * self.cpu_seconds / max(1, self.images)


@contextmanager
def stub(*arguments: str) -> Iterator[str]:
    """The stub endpoint; yields its address."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "endpoint.py"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)


def run(name: str, url: str, images: int, folder: Path, concurrency: int = 64) -> Run:
    """Let a contender make `images` images in `folder`.

    Raises:
        SystemExit: It failed.
    """
    command = [sys.executable, str(HERE / "contenders.py"), name, url, str(images), str(folder)]
    # Its progress is not captured: a million images take a while.
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BENCH_CONCURRENCY": str(concurrency), "RAY_TRAIN_V2_ENABLED": "1"},
    )
    if done.returncode != 0:
        sys.exit(f"{name} ended with status {done.returncode}:\n{done.stdout}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return Run(name, **figures)


def compare(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, object], bool]:
    """All contenders against one endpoint."""
    with _endpoint(arguments) as url:
        count = arguments.images
        run("saturate", url, count, folder / "saturate")
        capacity = float((folder / "saturate" / "capacity").read_text())
        runs = []
        for name in arguments.contenders:
            # One at a time it would take eight times as long, and its rate shows in fewer.
            own = max(1, count // 8) if name == "script" else count
            runs.append(run(name, url, own, folder / name))
            shutil.rmtree(folder / name)
    print(f"capacity of the endpoint: {capacity:.2f} images/s\n\n{table(runs, capacity)}\n")
    ours = next((one for one in runs if one.name == "raynest"), None)
    good = ours is None or _judge(ours, [one for one in runs if one is not ours], capacity)
    return {"capacity": capacity, "runs": [asdict(one) for one in runs]}, good


@contextmanager
def _endpoint(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.endpoint:
        yield arguments.endpoint.rstrip("/")
        return
    pace = ["--batch", str(arguments.batch), "--seconds", str(arguments.seconds)]
    with stub(*pace, "--queue", str(arguments.queue), "--pixels", str(arguments.pixels)) as url:
        yield url


def _judge(ours: Run, peers: list[Run], capacity: float) -> bool:
    """Print what was wanted and what was reached."""
    best = max((peer.per_second for peer in peers), default=0.0)
    checks = {
        f">= {WANTED_SHARE:.0%} of capacity": ours.per_second >= WANTED_SHARE * capacity,
        "as fast as the best peer": ours.per_second >= best,
        f"<= {WANTED_CPU_MS:g} ms of processor time an image": ours.cpu_ms <= WANTED_CPU_MS,
    }
    for what, reached in checks.items():
        print(f"{'reached' if reached else 'MISSED'}: {what}")
    return all(checks.values())


def table(runs: list[Run], capacity: float) -> str:
    """Side by side, as Markdown."""
    lines = [
        "| | images | images/s | of capacity | client CPU, ms an image | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for one in runs:
        share = f"{one.per_second / capacity:.1%}" if capacity else "-"
        cells = [NAMES[one.name], f"{one.images:,}", f"{one.per_second:.2f}", share]
        cells += [f"{one.cpu_ms:.2f}", f"{one.rss_bytes / 1e6:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def resume(count: int, folder: Path, processes: int) -> tuple[dict[str, object], bool]:
    """Make a batch of tiny images, then run it again."""
    with _tiny(processes) as url:
        first = run("raynest", url, count, folder, concurrency=512)
        second = run("raynest", url, count, folder, concurrency=512)
    print(f"made {count:,} images in {first.seconds:.1f} s ({1000 * first.seconds / count:.2f} ms each)")
    print(
        f"run again, with nothing to do: {second.seconds:.2f} s (wanted: {WANTED_RESUME_SECONDS:g} s), "
        f"of processor time {second.cpu_seconds:.2f} s"
    )
    return {"first": asdict(first), "second": asdict(second)}, second.seconds <= WANTED_RESUME_SECONDS


def huge(count: int, folder: Path, processes: int) -> tuple[dict[str, object], bool]:
    """Memory of a small batch and of a huge one."""
    with _tiny(processes) as url:
        runs = []
        for number in (min(FEW, count), count):
            runs.append(run("raynest", url, number, folder / str(number), concurrency=512))
            shutil.rmtree(folder / str(number))
    few, many = runs
    for one in runs:
        print(
            f"{one.images:,} images: {one.seconds:.1f} s, {one.per_second:.0f}/s, "
            f"{one.cpu_ms:.2f} ms of processor time each, peak memory {one.rss_bytes / 1e6:.1f} MB"
        )
    grown = many.rss_bytes - few.rss_bytes
    print(f"difference: {grown / 1e6:.1f} MB (wanted: less than {WANTED_MEMORY_BYTES / 1e6:.0f} MB)")
    return {"few": asdict(few), "many": asdict(many)}, grown < WANTED_MEMORY_BYTES


@contextmanager
def _tiny(processes: int) -> Iterator[str]:
    with stub("--batch", "256", "--seconds", "0", "--pixels", "16", "--processes", str(processes)) as url:
        yield url


def machine() -> dict[str, str]:
    """What the figures belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": f"{os.cpu_count()} x {next(named, platform.processor())}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load before": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The batch engine beside its peers.")
    parser.add_argument("--endpoint", metavar="URL", help="a real endpoint instead of the stub")
    parser.add_argument("--images", type=int, default=500, help="of each contender (the script: an eighth)")
    parser.add_argument("--contenders", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--batch", type=int, default=8, help="images the stub paints at a time")
    parser.add_argument("--seconds", type=float, default=0.25, help="for a batch of the stub")
    parser.add_argument("--queue", type=int, default=64, help="images that may wait in the stub")
    parser.add_argument("--pixels", type=int, default=512, help="of the stub's images")
    parser.add_argument("--resume", type=int, metavar="N", help="run a finished batch of N again")
    parser.add_argument("--prompts", type=int, metavar="N", help="memory of a batch of N beside 1,000")
    parser.add_argument("--processes", type=int, default=1, help="of the stub, for --resume and --prompts")
    parser.add_argument("--folder", type=Path, help="where the batches are made, and removed again")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args(given)


def main() -> int:
    """Measure, print, judge."""
    arguments, about = parse(), machine()
    print("\n".join(f"{key}: {value}" for key, value in about.items()) + "\n")
    with tempfile.TemporaryDirectory(prefix="raynest-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.resume:
            figures, good = resume(arguments.resume, folder, arguments.processes)
        elif arguments.prompts:
            figures, good = huge(arguments.prompts, folder, arguments.processes)
        else:
            figures, good = compare(arguments, folder)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, **figures}, indent=2) + "\n", "utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
