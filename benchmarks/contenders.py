"""One way to make a batch of images, in a process of its own: `contenders.py NAME URL IMAGES FOLDER`.

Prints one line of JSON: images, seconds (from the first request to the last file; Ray's and the
interpreter's start not included), cpu_seconds (of this process and all it started), rss_bytes (their peak).
"""

import asyncio
import concurrent.futures
import json
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

THREADS = 32
SATURATING = 48
"""Requests in flight of the saturating load: more than any contender has, and no more than may wait."""
RAY_ACTORS = 4
SAMPLE_SECONDS = 1.0


class Meter:
    """Processor time and peak memory of this process, and of its descendants where it is to have some."""

    def __init__(self, *, family: bool) -> None:
        """
        Args:
            family: Look at the descendants, too. That itself costs time, so not for those who have none.
        """
        self._own = psutil.Process()
        self._cpu: dict[int, float] = {}
        self._family = family
        self._over = threading.Event()
        self._rss = 0
        self._sample()
        self._before = self._own_cpu() + sum(self._cpu.values())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _own_cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    def _watch(self) -> None:
        while self._family and not self._over.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        rss = 0
        for child in self._own.children(recursive=True) if self._family else ():
            try:
                times = child.cpu_times()
                rss += child.memory_info().rss
            except psutil.Error:
                continue
            self._cpu[child.pid] = times.user + times.system
        self._rss = max(self._rss, rss)

    def stop(self) -> tuple[float, int]:
        """CPU seconds since it was made, and the peak of the memory in bytes."""
        own = self._own_cpu()
        self._over.set()
        self._thread.join()
        self._sample()
        # Linux counts ru_maxrss in kB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + self._rss
        return own + sum(self._cpu.values()) - self._before, peak


def parameters(index: int) -> dict[str, Any]:
    """What image number `index` is."""
    return {"prompt": f"a red ball, number {index}", "seed": index}


def script(url: str, images: int, folder: Path) -> int:
    """The walkthrough's script in a loop: one request at a time, each written to a file."""
    import requests

    for index in range(images):
        answer = requests.get(f"{url}/imagine", params=parameters(index))
        (folder / f"{index}.png").write_bytes(answer.content)
    return images


def pool(url: str, images: int, folder: Path) -> int:
    """A plain thread pool of requests, each thread with a session of its own."""
    import requests

    local = threading.local()

    def fetch(index: int) -> int:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        answer = local.session.get(f"{url}/imagine", params=parameters(index))
        if answer.status_code != 200:
            return 0
        (folder / f"{index}.png").write_bytes(answer.content)
        return 1

    with concurrent.futures.ThreadPoolExecutor(THREADS) as executor:
        return sum(executor.map(fetch, range(images)))


def ray_data(url: str, images: int, folder: Path) -> int:
    """A Ray Data job: map_batches over actors, each with some threads of requests."""
    import ray

    class Fetch:
        def __init__(self) -> None:
            import requests

            self._session = requests.Session()
            self._threads = concurrent.futures.ThreadPoolExecutor(THREADS // RAY_ACTORS)
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=THREADS)
            self._session.mount("http://", adapter)

        def _one(self, index: int) -> int:
            answer = self._session.get(f"{url}/imagine", params=parameters(index))
            if answer.status_code != 200:
                return 0
            (folder / f"{index}.png").write_bytes(answer.content)
            return 1

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
            return {"made": list(self._threads.map(self._one, (int(i) for i in batch["id"])))}

    data = ray.data.range(images, override_num_blocks=RAY_ACTORS * 4)
    share = max(1, min(THREADS, images // RAY_ACTORS))
    made = data.map_batches(Fetch, batch_size=share, concurrency=RAY_ACTORS, num_cpus=0.25).sum("made")
    return int(made)


def raynest(url: str, images: int, folder: Path) -> int:
    """The batch engine."""
    from raynest_pipeline.images.engine import generate
    from raynest_pipeline.images.store import BatchFolder
    from raynest_pipeline.kube.http import HttpTarget
    from raynest_pipeline.settings import Batch

    most = int(os.environ.get("BENCH_CONCURRENCY", "64"))
    result = generate(
        Prompts(images),
        HttpTarget.plain(url),
        BatchFolder(folder, "bench"),
        Batch(concurrency=most),
        on_progress=lambda progress: print(progress, file=sys.stderr),
        progress_every=10.0,
    )
    return result.made + result.reused


class Prompts:
    """`count` prompts, made as they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Any:
        from raynest_pipeline.images.prompts import Prompt

        for index in range(self._count):
            yield Prompt(id=f"p{index:07d}", prompt=f"a red ball, number {index}", seed=index)


def saturate(url: str, images: int, folder: Path) -> int:
    """What the endpoint gives at most: many GETs at once, nothing checked and nothing kept.

    Writes the images per second while it ran full (the slope of images over time, without both ends) to
    `capacity` in `folder`.
    """
    import aiohttp

    times: list[float] = []

    async def one(session: aiohttp.ClientSession, left: Iterator[int]) -> None:
        for index in left:
            async with session.get(f"{url}/imagine", params=parameters(index)) as answer:
                await answer.read()
                if answer.status == 200:
                    times.append(time.monotonic())
                    continue
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))

    async def work() -> None:
        left = iter(range(images))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, left) for _ in range(SATURATING)))

    asyncio.run(work())
    middle = times[len(times) // 10 : -SATURATING] or times
    slope = statistics.linear_regression(middle, range(len(middle))).slope if len(middle) > 1 else 0.0
    (folder / "capacity").write_text(f"{slope:.6f}")
    return len(times)


CONTENDERS: dict[str, Callable[[str, int, Path], int]] = {
    "saturate": saturate,
    "script": script,
    "pool": pool,
    "ray": ray_data,
    "raynest": raynest,
}


def prepare(name: str) -> None:
    """What is not part of the work: imports, Ray's start."""
    import requests  # noqa: F401

    if name == "raynest":
        import raynest_pipeline.images.engine  # noqa: F401
    if name == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        ray.data.range(1).take_all()


def main() -> int:
    """Run one contender."""
    name, url, images, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    prepare(name)
    meter, started = Meter(family=name == "ray"), time.monotonic()
    made = CONTENDERS[name](url, images, folder)
    seconds = time.monotonic() - started
    cpu, rss = meter.stop()
    print(json.dumps({"images": made, "seconds": seconds, "cpu_seconds": cpu, "rss_bytes": rss}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
