"""benchmarks/serving.py goes on working: its figures from known numbers, and one tiny run, not timed."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raynest_pipeline.serving.untrained import build_untrained_pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; its neighbours are found as when it runs as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serving

    yield serving
    for name in ("serving", "serving_load", "demo"):
        sys.modules.pop(name, None)


def test_a_turn_s_figures(bench: Any) -> None:
    tally = bench.Tally(
        images=20, errors=2, wall_s=4.0, latencies_s=[n / 10 for n in range(21)], load=[90, 100], busy_s=3.8
    )
    assert tally.document() == {
        "images_per_s": 5.0,
        "p50_s": 1.0,
        "p95_s": 1.9,
        "device_percent": 95,
        "pipeline_busy_percent": 95,
        "images": 20,
        "errors": 2,
    }
    assert bench.Tally().document()["images_per_s"] == 0.0
    assert bench.Tally().document()["device_percent"] == "unknown"


@pytest.mark.parametrize(
    ("told", "percent"),
    [
        (["40", "[N/A]", "60"], 50.0),
        (["[N/A]", "[Not Supported]", ""], None),
    ],
)
def test_what_nvidia_smi_does_not_know_counts_for_nothing(
    bench: Any, told: list[str], percent: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, asked = list(told), threading.Event()

    def run(_query: list[str], **_more: Any) -> SimpleNamespace:
        answer = left.pop(0)
        if not left:
            asked.set()
        return SimpleNamespace(returncode=0, stdout=f"{answer}\n")

    monkeypatch.setattr("serving_load.subprocess.run", run)
    load = bench.Load("cuda")
    # Time passes at once, and nobody is asked more than there is to tell.
    load._over = SimpleNamespace(wait=lambda _seconds: not left, set=lambda: None)
    with load:
        assert asked.wait(40)
    assert load.percent == percent


def tallies(bench: Any, stock: float, alone: float, ours: float, post: float) -> dict[tuple[str, int], Any]:
    speeds = {bench.STOCK: stock, bench.ALONE: alone, bench.OURS: ours, bench.POST: post}
    return {(way, 16): bench.Tally(images=int(speed * 10), wall_s=10.0) for way, speed in speeds.items()}


def test_the_verdict_compares_with_the_better_stock_and_the_best_batch(bench: Any) -> None:
    bare = SimpleNamespace(images_per_s={1: [2.0], 8: [7.0, 9.0]})
    verdict = bench.judge(bare, tallies(bench, 1.0, 2.0, 6.4, 7.6), "cpu")
    assert (verdict["ratio"], verdict["ratio_wanted"], verdict["ratio_at"]) == (3.2, 3.0, 16)
    assert (verdict["of_bare"], verdict["of_bare_wanted"]) == (0.95, 0.95)
    assert bench.judge(bare, tallies(bench, 1.0, 2.0, 6.4, 7.6), "cuda")["ratio_wanted"] == 2.5
    assert bench.judge(bare, tallies(bench, 0.0, 0.0, 6.4, 7.6), "cpu")["ratio"] == 0.0
    alone = bench.judge(bare, {(bench.POST, 64): bench.Tally(images=76, wall_s=10.0)}, "cpu")
    assert alone["of_bare"] == 0.95 and "ratio" not in alone, "nothing of the stock application was measured"


def test_a_share_comes_with_what_chance_makes_of_it(bench: Any) -> None:
    bare = SimpleNamespace(images_per_s={16: [7.0, 9.0]})
    ours = bench.Tally(images=160, wall_s=20.0, turns=[8.0, 8.0])
    verdict = bench.judge(bare, {(bench.OURS, 64): ours}, "cpu")
    # The bare pipeline's mean is 8, and the standard error of two turns, one off it either way, is 1.
    assert (verdict["of_bare"], verdict["of_bare_error"]) == (1.0, 0.125)
    assert "100.0% of the bare pipeline's best, with a standard error of 12.5%" in bench.verdict(verdict)
    assert bench.spread([5.0]) == 0.0


def test_the_ways_are_those_that_can_be_judged(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.parse(["--ways", "post"]).ways == ["post"]
    with pytest.raises(SystemExit):
        bench.parse(["--ways", "stock"])
    assert "ours or post" in capsys.readouterr().err


def test_the_ceiling_is_measured_warm_as_the_endpoint_is(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    build_untrained_pipeline().save_pretrained(tmp_path)
    bare = bench.Bare({"model": str(tmp_path), "default_steps": 1, "cpu_threads": 1}, 32)
    calls: list[bool] = []
    timed = [False]
    monkeypatch.setattr(bare, "_call", lambda batch: calls.append(timed[0]))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: timed.__setitem__(0, True) or 1.0 * len(calls))
    for _ in range(2):
        timed[0] = False
        bare.turn(2, 6)
    # One call before the clock is first looked at, and only in the first turn.
    assert calls == [False] + [True] * 6
    assert bare.document() == {"2": 2.0}


@pytest.mark.parametrize(
    ("words", "size", "steps"),
    [
        ([], 96, 16),
        (["--model", "full"], 512, 50),
        (["--model", "full", "--steps", "20", "--size", "768"], 768, 20),
    ],
)
def test_size_and_steps_follow_the_model(bench: Any, words: list[str], size: int, steps: int) -> None:
    arguments = bench.parse(words)
    assert (arguments.size, arguments.steps) == (size, steps)
    assert arguments.concurrency == [1, 4, 16, 64]


def test_the_full_model_has_stable_diffusion_s_size(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built without memory for its weights: only the number of parameters is looked at."""
    import torch
    from diffusers import StableDiffusionPipeline

    seen: dict[str, int] = {}

    def count(pipeline: Any, _folder: Path) -> None:
        for part in ("unet", "vae", "text_encoder"):
            seen[part] = sum(weight.numel() for weight in getattr(pipeline, part).parameters())

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", count)
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda pipeline, _dtype: pipeline)
    with torch.device("meta"):
        bench.full_model(tmp_path)
    assert seen == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


@pytest.mark.ray
def test_a_tiny_run_measures_all_contestants(tmp_path: Path) -> None:
    model, figures = tmp_path / "model", tmp_path / "figures.json"
    build_untrained_pipeline().save_pretrained(model)
    counts = ["--images", "2", "--rounds", "1", "--concurrency", "1", "2", "--bare", "1", "2", "--batch", "2"]
    words = ["--size", "32", "--steps", "1", *counts]
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "serving.py"),
            "--model",
            str(model),
            *words,
            "--json",
            str(figures),
        ],
        capture_output=True,
        text=True,
        timeout=550,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads(figures.read_text(encoding="utf-8"))
    assert set(document["bare"]) == {"1", "2"}
    rows = {(row["way"], row["concurrency"]): row for row in document["rows"]}
    ways = ("stock", "stock, one at a time", "ours", "ours, POST")
    assert set(rows) == {(way, concurrency) for way in ways for concurrency in (1, 2)}
    for (way, concurrency), row in rows.items():
        assert row["images"] + row["errors"] == 2, (way, concurrency)
        if way != "stock":
            # The stock application's calls share one pipeline, whose solver then loses count of its steps.
            assert row["errors"] == 0, (way, concurrency)
        assert (row["pipeline_busy_percent"] > 0) is way.startswith("ours")
    assert "| 2 | ours, POST |" in done.stdout
    assert "of the bare pipeline's best" in done.stdout
