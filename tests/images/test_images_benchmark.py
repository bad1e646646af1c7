"""The benchmark runs, counts right, and says what it measured. How fast it all is, is not tested."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "batch.py"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARK.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def bench(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments, "--folder", str(tmp_path), "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    # 1: a target was missed, which says nothing on a busy machine.
    assert done.returncode in (0, 1) and figures.exists(), done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "it leaves nothing behind"
    return json.loads(figures.read_text()), done.stdout


def test_side_by_side(tmp_path: Path) -> None:
    stub = ["--seconds", "0.02", "--pixels", "48", "--images", "96"]
    figures, text = bench(tmp_path, *stub, "--contenders", "script", "pool", "raynest")
    assert {run["name"]: run["images"] for run in figures["runs"]} == {
        "script": 12,
        "pool": 96,
        "raynest": 96,
    }
    for run in figures["runs"]:
        assert run["seconds"] > 0 and run["cpu_seconds"] > 0 and run["rss_bytes"] > 1e7
    # 8 images in 20 ms, at the most.
    assert 0 < figures["capacity"] <= 400
    assert "| raynest | 96 |" in text and "of processor time an image" in text


def test_a_finished_batch_again(tmp_path: Path) -> None:
    figures, text = bench(tmp_path, "--resume", "120")
    assert figures["first"]["images"] == figures["second"]["images"] == 120
    assert "run again, with nothing to do" in text


def test_a_huge_batch_beside_a_small_one(tmp_path: Path) -> None:
    figures, text = bench(tmp_path, "--prompts", "150", "--processes", "2")
    assert (figures["few"]["images"], figures["many"]["images"]) == (150, 150)
    assert "difference:" in text


def test_the_stub_serves_pictures_of_the_size_that_is_claimed() -> None:
    endpoint = load("endpoint")
    for seed in (0, 7):
        assert 420_000 < len(endpoint.picture(512, seed)) < 580_000
    assert endpoint.picture(16, 1) != endpoint.picture(16, 2)


@pytest.mark.parametrize(("cpu", "share", "good"), [(1.0, 0.98, True), (4.0, 0.98, False), (1.0, 0.9, False)])
def test_a_missed_target_is_told(cpu: float, share: float, good: bool, capsys: Any) -> None:
    batch = load("batch")
    ours = batch.Run("raynest", 1000, 1000 / (100 * share), cpu, 8e7)
    peer = batch.Run("pool", 1000, 1000 / 85.0, 3.0, 5e7)
    assert batch._judge(ours, [peer], capacity=100.0) is good
    assert ("MISSED" in capsys.readouterr().out) is not good
    assert "98.0%" in batch.table([batch.Run("raynest", 1000, 1000 / 98, cpu, 8e7)], 100.0)
