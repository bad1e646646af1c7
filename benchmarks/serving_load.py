"""One contestant's turn of benchmarks/serving.py: requests over HTTP, and what came of them."""

import asyncio
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp
import psutil

PROMPTS = ("a small red circle left of a large blue square on a white background", "a large green star")
STOCK, ALONE, OURS, POST = "stock", "stock, one at a time", "ours", "ours, POST"


@dataclass
class Tally:
    """What one contestant did at one concurrency, over all its turns."""

    images: int = 0
    errors: int = 0
    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    """Good images per second of each turn."""
    load: list[float] = field(default_factory=list)
    """Utilisation of the device during each turn, in per cent, as far as it is known."""
    busy_s: float = 0.0
    """Seconds within pipeline calls, as the replica counts them (ours only)."""

    @property
    def images_per_s(self) -> float:
        """Good images; an error counts for nothing, but takes its time."""
        return self.images / self.wall_s if self.wall_s else 0.0

    def document(self) -> dict[str, float | str]:
        """The figures of one row. A latency is a request's: with POST all its images'."""
        ordered = sorted(self.latencies_s) or [0.0]
        return {
            "images_per_s": round(self.images_per_s, 3),
            "p50_s": round(statistics.median(ordered), 2),
            "p95_s": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
            "device_percent": round(statistics.fmean(self.load)) if self.load else "unknown",
            "pipeline_busy_percent": round(100 * self.busy_s / self.wall_s) if self.wall_s else 0,
            "images": self.images,
            "errors": self.errors,
        }


class Load:
    """Utilisation of the GPU, by nvidia-smi, or else of all CPU cores, while in the context."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._samples: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Load":
        psutil.cpu_percent()
        if self._cuda:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        if self._cuda:
            self._thread.join()
        else:
            self._samples.append(psutil.cpu_percent())

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._over.wait(0.5):
            done = subprocess.run(query, capture_output=True, text=True)
            if done.returncode == 0 and (used := utilisation(done.stdout)) is not None:
                self._samples.append(used)

    @property
    def percent(self) -> float | None:
        """The mean; None when the device did not tell."""
        return statistics.fmean(self._samples) if self._samples else None


def utilisation(told: str) -> float | None:
    """What nvidia-smi says; None for its "[N/A]" of a GPU that is split (MIG)."""
    try:
        return float(told.strip())
    except ValueError:
        return None


async def turn(base: str, way: str, concurrency: int, count: int, size: int, tally: Tally) -> None:
    """One contestant's turn: `count` images, `concurrency` in flight, each new one when another is there."""
    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
    ) as session:
        seeds = iter(range(count))

        async def get() -> None:
            for seed in seeds:
                query = {"prompt": PROMPTS[seed % len(PROMPTS)], "img_size": size}
                started = time.perf_counter()
                async with session.get(f"{base}/imagine?{urlencode(query)}") as answer:
                    good = answer.status == 200 and (await answer.read()).startswith(b"\x89PNG")
                tally.latencies_s.append(time.perf_counter() - started)
                tally.images += good
                tally.errors += not good

        async def post(wanted: int) -> None:
            prompts = [PROMPTS[n % len(PROMPTS)] for n in range(wanted)]
            items = [{"prompt": prompt, "seed": n, "img_size": size} for n, prompt in enumerate(prompts)]
            started = time.perf_counter()
            async with session.post(f"{base}/v1/images", json={"images": items}) as answer:
                good = (await answer.read()).lower().count(b"x-raynest-status: 200")
            tally.latencies_s.append(time.perf_counter() - started)
            tally.images += good
            tally.errors += wanted - good

        before, started = await busy(session, base, way), time.perf_counter()
        had = tally.images
        if way == POST:
            for _ in range(max(1, count // concurrency)):
                await post(concurrency)
        else:
            await asyncio.gather(*(get() for _ in range(concurrency)))
        took = time.perf_counter() - started
        tally.wall_s += took
        tally.turns.append((tally.images - had) / took)
        tally.busy_s += await busy(session, base, way) - before


async def busy(session: aiohttp.ClientSession, base: str, way: str) -> float:
    """Seconds that our replica has spent in its pipeline."""
    if way in (STOCK, ALONE):
        return 0.0
    async with session.get(f"{base}/health") as answer:
        return float((await answer.json())["speed"]["busy_s"])
