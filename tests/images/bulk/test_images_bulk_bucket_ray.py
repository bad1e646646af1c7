"""A job on a real local Ray whose output is an object store: driver and workers meet only there."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.images.bulk.plan import Plan, heard
from raynest_pipeline.images.manifest import parse_line
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.images.quality import check_png

STORE = Path(__file__).parents[1] / "stores" / "directory_store.py"
PROMPTS = 6
TIMEOUT = 600

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which every Python process, Ray's workers too, knows `bucket://` as fsspec finds its drivers."""
    drivers = tmp_path / "drivers"
    about = drivers / "raynest_test_bucket-1.dist-info"
    about.mkdir(parents=True)
    (drivers / "raynest_test_bucket.py").write_text(STORE.read_text())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: raynest-test-bucket\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[fsspec.specs]\nbucket = raynest_test_bucket:DirectoryStore\n")
    own = {
        "PYTHONPATH": os.pathsep.join([str(drivers), *sys.path]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own


def run(plan: Plan, environment: dict[str, str]) -> dict[str, Any]:
    """The job's last word."""
    module = "raynest_pipeline.images.bulk.job"
    done = subprocess.run(
        [sys.executable, "-m", module, plan.to_json()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    said = [message for line in done.stdout.splitlines() if (message := heard(line)) is not None]
    assert said, done.stderr
    return said[-1]


def test_images_and_manifest_go_to_the_store_and_are_found_there(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    batch = tmp_path / "out" / "b1"
    batch.mkdir(parents=True)
    own = batch / "prompts.csv"
    own.write_text("\n".join(["id,prompt,seed", *[f"p{n},prompt {n},{n}" for n in range(PROMPTS)]]) + "\n")
    plan = Plan(
        batch_id="b1",
        root=f"bucket://{tmp_path}/out",
        prompts_sha256=open_prompts(own).sha256,
        mode="actors",
        steps=2,
        cpus=0.5,
        serving={"model": "tiny-untrained", "max_batch_size": 2},
    )
    first = run(plan, environment)
    assert (first["raynest"], first.get("made"), first.get("failed")) == ("result", PROMPTS, 0), first
    segments = sorted((batch / "manifest.d").glob("*.jsonl"))
    lines = [line for segment in segments for line in segment.read_bytes().splitlines(keepends=True)]
    records = [record for line in lines if (record := parse_line(line)) is not None]
    assert sorted(record.id for record in records) == [f"p{n}" for n in range(PROMPTS)]
    for record in records:
        assert check_png((batch / str(record.file)).read_bytes(), 64).width == 64
    assert not (batch / ".lease").exists(), "the batch is given back"

    (batch / str(records[0].file)).unlink()
    again = run(replace(plan, verify=True), environment)
    assert (again["made"], again["reused"], again["failed"]) == (1, PROMPTS - 1, 0)
