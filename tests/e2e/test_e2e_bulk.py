"""`--engine ray` on the real local Ray: the images of the HTTP engine, and each finishes the other's half."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raynest_pipeline.sandbox import control

TIMEOUT = 900
TOLERANCE = 2
"""Of a colour value (0 to 255): the serving tolerance for one seed in different batches, in float32
on the CPU."""
PROMPTS = ["red circle", "blue square", "green triangle", "yellow star", "black cross", "white ring"]

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a running chain, and the prompts as a whole and by half."""
    path = tmp_path_factory.mktemp("bulk")
    rows = [f"p{n},a {prompt},{n}" for n, prompt in enumerate(PROMPTS)]
    for name, some in (("all", rows), ("half", rows[:3])):
        (path / f"{name}.csv").write_text("\n".join(["id,prompt,seed", *some]) + "\n")
    many = [f"m{n},a {PROMPTS[n % 6]},{n}" for n in range(400)]
    (path / "many.csv").write_text("\n".join(["id,prompt,seed", *many]) + "\n")
    try:
        raynest(path, "up")
        yield path
    finally:
        control.stop(path / ".raynest" / "sandbox")


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from raynest_pipeline.cli import main; main()", *args]


def environment(**more: str) -> dict[str, str]:
    own = {
        "RAYNEST_SANDBOX__TIME_SCALE": "0.2",
        "RAYNEST_RAY_SERVICE__MODEL": "tiny-untrained",
        "RAYNEST_BATCH__STEPS": "2",
        "RAYNEST_BATCH__CHECK_SAME_SEED": "false",
        "COLUMNS": "200",
    }
    return {**os.environ, **own, **more}


def raynest(folder: Path, *args: str, code: int = 0, **variables: str) -> str:
    """Run it to its end; its stdout."""
    done = subprocess.run(
        command(*args),
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == code, f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def generate(folder: Path, prompts: str, batch: str, engine: str, **variables: str) -> dict[str, Any]:
    words = ["generate", "--prompts", f"{prompts}.csv", "--batch", batch, "--engine", engine, "--json"]
    document: dict[str, Any] = json.loads(raynest(folder, *words, **variables))
    return document


def records(folder: Path, batch: str) -> dict[str, dict[str, Any]]:
    lines = (folder / ".raynest" / "images" / batch / "manifest.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == len({record["id"] for record in found}), "each image once"
    return {record["id"]: record for record in found}


def pixels(folder: Path, batch: str, record: dict[str, Any]) -> Any:
    with Image.open(folder / ".raynest" / "images" / batch / record["file"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def assert_same(folder: Path, batch: str, other: str) -> None:
    ours, theirs = records(folder, batch), records(folder, other)
    assert ours.keys() == theirs.keys()
    for name, record in ours.items():
        assert (record["key"], record["file"]) == (theirs[name]["key"], theirs[name]["file"])
        apart = pixels(folder, batch, record) - pixels(folder, other, theirs[name])
        assert np.abs(apart).max() <= TOLERANCE, name


def test_1_the_ray_engine_makes_what_the_http_engine_makes(folder: Path) -> None:
    by_http = generate(folder, "all", "http", "http")
    assert (by_http["made"], by_http["failed"]) == (6, 0)
    # Another output folder: under one root the other batch's images would simply be taken over.
    by_ray = generate(folder, "half", "ray", "ray", RAYNEST_OUTPUT=str(folder / "apart"))
    assert (by_ray["made"], by_ray["reused"], by_ray["failed"]) == (3, 0, 0)
    assert by_ray["model"] == by_http["model"]


def test_2_the_http_engine_finishes_what_the_ray_engine_began(folder: Path) -> None:
    rest = generate(folder, "all", "ray", "http", RAYNEST_OUTPUT=str(folder / "apart"))
    assert (rest["made"], rest["reused"]) == (3, 3)
    (folder / "apart" / "ray").rename(folder / ".raynest" / "images" / "ray")
    assert_same(folder, "ray", "http")


def test_3_actors_finish_what_the_http_engine_began(folder: Path) -> None:
    variables = {"RAYNEST_OUTPUT": str(folder / "apart2"), "RAYNEST_BATCH__RAY_MODE": "actors"}
    assert generate(folder, "half", "actors", "http", **variables)["made"] == 3
    rest = generate(folder, "all", "actors", "ray", **variables)
    assert (rest["made"], rest["reused"]) == (3, 3)
    (folder / "apart2" / "actors").rename(folder / ".raynest" / "images" / "actors")
    assert_same(folder, "actors", "http")


def test_4_nothing_is_made_twice(folder: Path) -> None:
    again = generate(folder, "all", "ray", "ray")
    assert (again["made"], again["reused"]) == (0, 6)


def test_5_ctrl_c_stops_the_job_and_leaves_a_batch_that_goes_on(folder: Path) -> None:
    words = ["generate", "--prompts", "many.csv", "--batch", "many", "--engine", "ray"]
    process = subprocess.Popen(
        command(*words),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        # Images are there, so the job is in the middle of its work.
        if " of 400 images" in line and not line.startswith("images: 0 "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 130, rest
    there = records(folder, "many")
    assert 0 < len(there) < 400, "stopped in the middle"
    # The batch is free again, and the manifest knows what there is.
    (folder / "few.csv").write_text("\n".join((folder / "many.csv").read_text().splitlines()[:5]) + "\n")
    result = generate(folder, "few", "many", "http")
    kept = len(there.keys() & {"m0", "m1", "m2", "m3"})
    assert (result["made"], result["reused"]) == (4 - kept, kept)


def test_6_the_doctor_asks_a_worker_for_its_gpu(folder: Path) -> None:
    findings = json.loads(raynest(folder, "doctor", "--cluster", "--json"))
    (gpu,) = [finding for finding in findings if finding["what"] == "cluster's GPU"]
    assert gpu["ok"] is None, "the sandbox's GPU is one that Ray only counts with"
    assert "1 GPU" in gpu["found"] and "sees no CUDA device" in gpu["found"]
