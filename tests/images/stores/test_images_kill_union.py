"""kill -9 of a real process at random instants, on a folder and on an object store: the union is exact.

The victims are forked from a process that has imported the engine already, so that a kill costs
milliseconds. Half of them die when the endpoint has served so many images, wherever the engine is then;
the others in the midst of an operation on the disk or the store, chosen by its number.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet

from raynest_pipeline.images.batch_store import BatchStore, open_batch
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.finish import finish_batch
from raynest_pipeline.images.manifest import latest_records
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.summary import Summary
from raynest_pipeline.settings import Batch

SECONDS = 120.0
"""For a condition, on a machine that is busy with other things."""

NURSERY = """
import importlib.util, os, signal, sys, traceback
import fsspec
from raynest_pipeline.images import lease
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.finish import finish_batch
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch

directory_store, root, url, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
spec = importlib.util.spec_from_file_location("directory_store", directory_store)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
fsspec.register_implementation("bucket", module.DirectoryStore)
lease.SETTLE_SECONDS = 0.0
# What heavy parts a run needs is loaded once, here.
import PIL.Image, PIL.ImageDraw, PIL.ImageFont, pyarrow.parquet

def die_at(number):
    left = [number]
    def count_down(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def counted(real, before):
        def call(*args, **kwargs):
            count_down() if before else None
            result = real(*args, **kwargs)
            None if before else count_down()
            return result
        return call
    if root.startswith("bucket:"):
        module.DirectoryStore.fault = count_down
    else:
        for name, before in (("replace", True), ("write", False), ("fsync", True), ("link", False)):
            setattr(os, name, counted(getattr(os, name), before))

def live(number):
    if number:
        die_at(number)
    prompts = [Prompt(f"p{i}", f"prompt {i}", i) for i in range(count)]
    store = open_batch(root, "b")
    generate(
        prompts, HttpTarget.plain(url), store, Batch(concurrency=8), on_end=lambda m: finish_batch(store, m)
    )

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            live(int(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Starts victims, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(self, operation: int = 0) -> int:
        """The process id of a new victim, which dies at its `operation`th operation, if not 0."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{operation}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return line.strip()


@contextmanager
def nursery(root: str, endpoint: Any, count: int) -> Iterator[Nursery]:
    store = Path(__file__).with_name("directory_store.py")
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(store), root, endpoint.target.base_url, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield Nursery(process)
    finally:
        process.kill()
        process.communicate()


def kill_when_served(victims: Nursery, endpoint: Any, kit: Any, images: int) -> int:
    until, gone = endpoint.served + images, []
    pid = victims.start()

    def over() -> bool:
        if not gone and not _alive(pid):
            gone.append(pid)
        return endpoint.served >= until or bool(gone)

    kit.eventually(over, SECONDS)
    if not gone:
        os.kill(pid, signal.SIGKILL)
    return victims.ended()


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended is waited for by the nursery at once."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def lines_of(store: BatchStore) -> list[dict[str, Any]]:
    data = store.read("manifest.jsonl")
    assert data is not None and data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def assert_exact(store: BatchStore, endpoint: Any, kit: Any, prompts: list[Prompt], kills: int) -> None:
    """Finish the batch, and find every image once: in the store, in the manifest, in the Parquet copy."""
    ended: list[Summary] = []
    result = generate(
        prompts,
        endpoint.target,
        store,
        Batch(concurrency=8),
        on_end=lambda manifest: ended.append(finish_batch(store, manifest)),
    )
    assert result.made + result.reused == len(prompts) and result.failed == 0
    assert (ended[0].whole, ended[0].failed) == (len(prompts), 0)
    ids = sorted(prompt.id for prompt in prompts)
    lines = lines_of(store)
    assert {line["status"] for line in lines} <= {"made", "adopted"}
    assert sorted(line["id"] for line in lines) == ids, "an image is recorded twice, or not at all"
    records = list(latest_records(store))
    assert [record.id for record in records] == ids
    for record in records:
        assert record.file is not None and record.sha256 is not None and record.size_bytes is not None
        assert store.holds(record.file, record.size_bytes, record.sha256)
        assert store.read(record.file) == kit.png(record.prompt, record.seed, 32)
    assert {entry.name for entry in store.entries()} == {record.file for record in records}
    table = store.local("manifest.parquet")
    assert table is not None and sorted(pyarrow.parquet.read_table(table)["id"].to_pylist()) == ids
    # Only what was in flight at a kill is asked for again.
    assert sum(endpoint.requests.values()) <= len(prompts) + kills * 8
    assert generate(prompts, endpoint.target, store, Batch()).reused == len(prompts)


def test_killed_at_20_random_instants_a_folder_has_every_image_once(
    tmp_path: Path, endpoint: Any, kit: Any
) -> None:
    rng, count, root = random.Random(20), 300, str(tmp_path / "out")
    prompts = [Prompt(f"p{i}", f"prompt {i}", i) for i in range(count)]
    endpoint.delay = 0.002
    with nursery(root, endpoint, count) as victims:
        codes = [kill_when_served(victims, endpoint, kit, rng.randint(0, 24)) for _ in range(10)]
        for _ in range(10):
            victims.start(rng.randint(1, 40))
            codes.append(victims.ended())
    assert codes == [-signal.SIGKILL] * 20
    assert 20 < len(list((tmp_path / "out" / "b" / "images").iterdir())) < count
    store = open_batch(root, "b")
    assert_exact(store, endpoint, kit, prompts, kills=20)
    assert not list((tmp_path / "out").rglob(".part-*"))


def test_killed_at_random_instants_an_object_store_has_every_image_once(
    objects_root: str, tmp_path: Path, endpoint: Any, kit: Any
) -> None:
    rng, count = random.Random(8), 60
    prompts = [Prompt(f"p{i}", f"prompt {i}", i) for i in range(count)]
    endpoint.delay = 0.002
    with nursery(objects_root, endpoint, count) as victims:
        codes = [kill_when_served(victims, endpoint, kit, rng.randint(0, 8)) for _ in range(4)]
        for _ in range(6):
            victims.start(rng.randint(1, 30))
            codes.append(victims.ended())
    assert codes == [-signal.SIGKILL] * 10
    store = open_batch(objects_root, "b")
    assert_exact(store, endpoint, kit, prompts, kills=10)
    left = {p.name for p in (tmp_path / "out" / "b").rglob("*") if p.is_file() and ".uploads" not in p.name}
    assert left == {p.name for p in (tmp_path / "out" / "b" / "images").iterdir() if ".up" not in p.name} | {
        *("manifest.jsonl", "manifest.parquet", "sheet.jpg")
    }
