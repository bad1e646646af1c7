"""kill -9 at random instants, then resume: the union is exact."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.quality import check_png
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch

COUNT = 120
ENGINE = """
import sys
from pathlib import Path
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
root, url, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
prompts = [Prompt(f"p{i}", f"prompt {i}", i) for i in range(count)]
generate(prompts, HttpTarget.plain(url), BatchFolder(root, "b"), Batch(concurrency=4))
"""


def killed_after(instant: int, root: Path, endpoint: Any, kit: Any) -> None:
    """Run the engine in a process of its own and kill it once `instant` more images have been served."""
    until = endpoint.served + instant
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(root), endpoint.target.base_url, str(COUNT)],
        stderr=subprocess.PIPE,
    )
    try:
        kit.eventually(lambda: endpoint.served >= until or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    finally:
        _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_instants_the_union_is_exact(
    tmp_path: Path, endpoint: Any, kit: Any, seed: int
) -> None:
    rng = random.Random(seed)
    endpoint.delay = 0.003
    for _ in range(4):
        killed_after(rng.randint(0, 30), tmp_path, endpoint, kit)
    store = BatchFolder(tmp_path, "b")
    prompts = [Prompt(f"p{i}", f"prompt {i}", i) for i in range(COUNT)]
    result = generate(prompts, endpoint.target, store, Batch(concurrency=4))
    assert result.made + result.reused == COUNT and result.failed == 0
    assert result.reused > 0

    records = read_manifest(store.manifest_path)
    assert {r.id for r in records} == {p.id for p in prompts} and len(records) == COUNT
    settled = [json.loads(line)["id"] for line in store.manifest_path.read_text().splitlines()]
    assert sorted(settled) == sorted(p.id for p in prompts), "an image was recorded twice"
    for record in records:
        assert record.file is not None and record.sha256 is not None and record.size_bytes is not None
        assert store.holds(record.file, record.size_bytes, record.sha256)
        data = store.read(record.file)
        assert data == kit.png(record.prompt, record.seed, 32)
        assert data is not None and check_png(data, 32).width == 32
    files = {p.name for p in (store.path / "images").iterdir()}
    assert files == {str(r.file).removeprefix("images/") for r in records}
    # Only what was in flight at a kill was asked for twice: at most the concurrency, each time.
    assert sum(endpoint.requests.values()) <= COUNT + 4 * 4
    assert generate(prompts, endpoint.target, store, Batch()).reused == COUNT


def test_a_torn_manifest_and_a_half_written_file_are_put_right(
    tmp_path: Path, endpoint: Any, kit: Any
) -> None:
    store, prompts = BatchFolder(tmp_path, "b"), kit.prompts(6)
    generate(prompts, endpoint.target, store, Batch())
    text = store.manifest_path.read_bytes()
    store.manifest_path.write_bytes(text[:-40])
    (store.path / "images" / ".part-p0.png").write_bytes(b"\x89PNG")
    result = generate(prompts, endpoint.target, store, Batch())
    assert (result.made, result.reused) == (0, 6)
    assert sum(endpoint.requests.values()) == 6
    assert len(read_manifest(store.manifest_path)) == 6
    assert len(list((store.path / "images").iterdir())) == 6
