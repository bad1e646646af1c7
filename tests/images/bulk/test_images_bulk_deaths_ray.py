"""On a real local Ray: an actor whose process dies at its work, each time anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raynest_pipeline.images.bulk.painters import DEATHS_PER_CHUNK

TIMEOUT = 400

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DRIVER = """
import sys
from raynest_pipeline.images.bulk import job
from raynest_pipeline.images.bulk.painters import Painters
from raynest_pipeline.images.bulk.plan import Plan
from raynest_pipeline.images.bulk.todo import packed
from raynest_pipeline.images.offer import Offer

class Mortal:
    "Dies at the row that says so; tells of each birth by a line in a file."
    def __init__(self, plan):
        with open(FILE, "a") as births:
            births.write("born\\n")
    def __call__(self, batch):
        import os
        from raynest_pipeline.images.bulk.keeper import table
        from raynest_pipeline.images.bulk.todo import unpacked
        for chunk in batch["chunk"].to_pylist():
            rows = unpacked(chunk)
            if rows[0]["id"] == "kills":
                os._exit(1)
            yield table(rows)

FILE = sys.argv[1]
plan = Plan(batch_id="b1", root="/nowhere", prompts_sha256="0")
painters = Painters(Offer(), Mortal, 1, 1, {"num_cpus": 0.1}, plan)
with job._connected():
    for answer in job._answers([packed([{"id": name}]) for name in ("a", "kills")], painters):
        print("came", answer["id"], flush=True)
print("over", flush=True)
"""


def test_a_chunk_that_kills_its_actor_ends_the_job(tmp_path: Path) -> None:
    births = tmp_path / "births"
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    own |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(births)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode != 0 and "over" not in done.stdout
    # Ray says that it died, or that it is unavailable, as it was told of the last death.
    assert "The actor" in done.stderr and "ray.exceptions.Actor" in done.stderr, done.stderr[-2000:]
    assert births.read_text().count("born") in (DEATHS_PER_CHUNK + 1, DEATHS_PER_CHUNK + 2)
