"""The whole way on the real local Ray, as a person goes it: interrupted, to the end, again, and down.

Everything runs in processes of its own, through the command line, in an empty folder.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raynest_pipeline.chain.profile import SANDBOX_DEFAULTS
from raynest_pipeline.images.sheet import MARGIN
from raynest_pipeline.sandbox import control, orphans
from raynest_pipeline.serving.tinymodel.judge import look
from raynest_pipeline.serving.tinymodel.scenes import DEFAULT_BACKGROUND, PALETTE, SHAPES, vocabulary

REPO = Path(__file__).parents[2]
PROMPTS = REPO / "examples" / "prompts.csv"
TIMEOUT = 600

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder; whatever a failing test leaves running in it is ended."""
    path = tmp_path_factory.mktemp("demo")
    yield path
    control.stop(path / ".raynest" / "sandbox")


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from raynest_pipeline.cli import main; main()", *args]


def environment() -> dict[str, str]:
    return {**os.environ, "RAYNEST_SANDBOX__TIME_SCALE": "0.5", "COLUMNS": "200"}


def raynest(folder: Path, *args: str, code: int = 0) -> str:
    """Run it to its end; its stdout."""
    done = subprocess.run(
        command(*args), cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == code, f"{args}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def status(folder: Path, *, code: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(raynest(folder, "status", "--json", code=code))
    return document


HEAL = """
import dagster as dg
from raynest_pipeline.dagster_home import prepare_dagster_home
from raynest_pipeline.settings import load_settings
prepare_dagster_home(load_settings())
from raynest_pipeline.definitions import defs
sensor, cursor = defs.resolve_sensor_def("cluster_health"), None
with dg.DagsterInstance.get() as instance:
    while True:
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, sensor_name="cluster_health",
            repository_def=defs.get_repository_def(), resources=defs.resources,
        ) as context:
            tick = sensor.evaluate_tick(context)
        cursor = tick.cursor
        for event in tick.asset_events:
            instance.report_runless_asset_event(event)
        for request in tick.run_requests:
            print("repair")
            done = defs.resolve_job_def("redeploy").execute_in_process(
                instance=instance, tags=request.tags, asset_selection=request.asset_selection,
            )
            print("success" if done.success else "failure")
        if not tick.run_requests:
            verdict = tick.skip_message.partition(":")[0]
            print(verdict)
            if verdict not in ("suspect", "waiting"):
                break
"""
"""What the daemon does with the sensor, until it has nothing more to say."""

CHECKS = """
import dagster as dg
from raynest_pipeline.dagster_home import prepare_dagster_home
from raynest_pipeline.settings import load_settings
prepare_dagster_home(load_settings())
key = dg.AssetCheckKey(dg.AssetKey("ray_service"), "healthy")
with dg.DagsterInstance.get() as instance:
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=50):
        event = record.event.dagster_event
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            print("passed" if event.asset_check_evaluation_data.passed else "failed")
"""
"""The history of ray_service's check, newest first, as the UI shows it."""


def raynest_python(folder: Path, script: str) -> str:
    """Run a script with raynest's settings in a process of its own; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def status_of_service(folder: Path) -> str:
    done = subprocess.run(
        command("status", "--json"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.stdout, done.stderr
    return str(json.loads(done.stdout)["links"][-1]["state"])


def purchases(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [p for p in control.purchases(folder / ".raynest" / "sandbox") if p["kind"] == kind]


def manifest(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    (path,) = (folder / ".raynest" / "images").glob("*/manifest.jsonl")
    return path.parent, [json.loads(line) for line in path.read_text().splitlines()]


def asked_for(prompt: str) -> tuple[str, list[tuple[str, str]]] | None:
    """Background, and each object's colour and shape, sorted; None for words that the model doesn't know."""
    words = prompt.replace("grey", "gray").split()
    if not set(words) <= set(vocabulary()):
        return None
    pairs = zip(words, words[1:], strict=False)
    things = [(color, shape) for color, shape in pairs if color in PALETTE and shape in SHAPES]
    background = words[words.index("background") - 1] if "background" in words else DEFAULT_BACKGROUND
    return background, sorted(things)


def painted(file: Path) -> tuple[str, list[tuple[str, str]]]:
    """The same of an image, as the judge sees it."""
    with Image.open(file) as image:
        sight = look(np.asarray(image.convert("RGB")))
    return sight.background, sorted((seen.color, seen.shape) for seen in sight.objects)


def captions(sheet: Image.Image, count: int) -> list[Image.Image]:
    """The prompts' lines below the pictures of a contact sheet: two lines of title, six pictures a row, and
    below each a line with its id and three for the prompt.
    """
    rows = -(-count // 6)
    cell = (sheet.width - MARGIN) // 6 - MARGIN
    line = (sheet.height - 2 * MARGIN - rows * (cell + MARGIN)) // (2 + 4 * rows)
    across, down = cell + MARGIN, cell + 4 * line + MARGIN
    left, top = MARGIN, 2 * MARGIN + 2 * line + cell + line + 4
    corners = [(left + n % 6 * across, top + n // 6 * down) for n in range(count)]
    return [sheet.crop((x, y, x + cell, y + 3 * line)) for x, y in corners]


def test_1_ctrl_c_in_the_middle_of_a_purchase_leaves_one_cluster_and_a_clear_word(folder: Path) -> None:
    process = subprocess.Popen(
        command("up"),
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "is being deployed" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "Interrupted" in rest
    assert len(purchases(folder, "cluster")) == 1


def test_2_demo_from_there_makes_every_image_and_buys_nothing_twice(folder: Path) -> None:
    out = raynest(folder, "demo", "--prompts", str(PROMPTS))
    assert len(purchases(folder, "cluster")) == 1
    assert len([p for p in purchases(folder, "eip") if not p["owner"]]) == 1
    wanted = len(PROMPTS.read_text().splitlines()) - 1
    batch, records = manifest(folder)
    assert f"{wanted} ({wanted} made)" in out
    assert len(records) == wanted >= 12
    for record in records:
        data = (batch / record["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record["sha256"]
        with Image.open(batch / record["file"]) as image:
            assert image.format == "PNG"
            assert image.size == (record["width"], record["height"])
            assert image.text["prompt"] == record["prompt"]
    with Image.open(batch / "sheet.jpg") as sheet:
        dark = [np.count_nonzero(np.asarray(part.convert("L")) < 150) for part in captions(sheet, wanted)]
    assert len(dark) == wanted and min(dark) > 200, "each picture has its prompt's words below it"
    pairs = [(asked_for(record["prompt"]), painted(batch / record["file"])) for record in records]
    judged = [(asked, shown) for asked, shown in pairs if asked is not None]
    assert len(judged) >= 12 and all(things for (_, things), _ in judged)
    backgrounds = sum(asked[0] == shown[0] for asked, shown in judged)
    colors = sum([c for c, _ in asked[1]] == [c for c, _ in shown[1]] for asked, shown in judged)
    assert min(backgrounds, colors) >= 0.75 * len(judged), judged


def test_3_everything_is_ready_and_kubectl_agrees(folder: Path) -> None:
    report = status(folder)
    assert report["ready"] is True
    assert [link["state"] for link in report["links"]] == ["ready"] * 4
    path = raynest(folder, "kubeconfig").strip()
    assert Path(path).stat().st_mode & 0o777 == 0o600
    if shutil.which("kubectl"):
        words = ["kubectl", "--kubeconfig", path, "get", "rayservice", "-n", "raynest", "-o", "json"]
        (service,) = json.loads(subprocess.check_output(words, timeout=60))["items"]
        conditions = {c["type"]: c["status"] for c in service["status"]["conditions"]}
        assert conditions["Ready"] == "True"


def test_4_a_second_demo_makes_nothing_again(folder: Path) -> None:
    before = manifest(folder)[1]
    out = raynest(folder, "demo", "--prompts", str(PROMPTS))
    assert f"0 made, {len(before)} reused" in out
    assert manifest(folder)[1] == before


def test_5_one_image_in_one_line_is_the_same_for_the_same_seed(folder: Path) -> None:
    raynest(folder, "imagine", "a red circle", "-o", "one.png", "--seed", "7")
    raynest(folder, "imagine", "a red circle", "-o", "two.png", "--seed", "7")
    with Image.open(folder / "one.png") as one, Image.open(folder / "two.png") as two:
        assert one.tobytes() == two.tobytes()
        assert len(set(one.convert("L").tobytes())) > 1


def test_6_a_bad_prompt_file_is_refused_before_anything_is_sent(folder: Path) -> None:
    (folder / "bad.csv").write_text("id,prompt\n../x,a cat\nok,\n")
    done = subprocess.run(
        command("generate", "--prompts", "bad.csv"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2
    assert "line 2, column id" in done.stderr
    assert "line 3, column prompt" in done.stderr


def test_7_the_sensor_alone_brings_a_failed_application_back(folder: Path) -> None:
    """The sensor's ticks and the run that it asks for, as the daemon would evaluate them."""
    raynest(folder, "sandbox", "fault", "deploy_failed", "message=the weights are gone")
    deadline = time.monotonic() + 120
    while status_of_service(folder) != "broken":
        assert time.monotonic() < deadline, "the fault never struck"
    said = raynest_python(folder, HEAL)
    verdicts = said.split()
    assert verdicts[-3:] == ["repair", "success", "healthy"], verdicts
    assert "suspect" in verdicts
    assert status(folder)["ready"] is True
    history = raynest_python(folder, CHECKS).split()
    assert history[0] == "passed" and "failed" in history, "the asset's health shows both"


def test_8_a_cluster_that_someone_has_runs_the_rest_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = raynest(folder, "kubeconfig").strip()
    monkeypatch.setenv("RAYNEST_HOME", str(folder / "other"))
    monkeypatch.setenv("RAYNEST_PROFILE", "kubeconfig")
    monkeypatch.setenv("RAYNEST_KUBECONFIG__PATH", theirs)
    for key, value in SANDBOX_DEFAULTS.items():
        monkeypatch.setenv(f"RAYNEST_RAY_SERVICE__{key.upper()}", str(value))
    report = json.loads(raynest(folder, "up", "--json"))
    assert [(link["name"], link["state"]) for link in report["links"]] == [("ray_service", "ready")]
    (folder / "one.txt").write_text("a green square\n")
    assert "made:    1" in raynest(folder, "generate", "--prompts", "one.txt", "--batch", "mine")
    assert list((folder / "other" / "images" / "mine" / "images").glob("*.png"))


def test_9_down_leaves_nothing_bought_and_no_process(folder: Path) -> None:
    processes = control.processes(folder / ".raynest" / "sandbox")
    info = control.status(folder / ".raynest" / "sandbox")
    assert info is not None
    out = raynest(folder, "down", "--yes")
    assert "Audit: nothing is left." in out
    assert [p for p in processes if orphans.is_alive(p["pid"], p["create_time"])] == []
    assert not orphans.is_alive(info.pid, info.create_time)
    assert len(processes) > 10, "a real Ray was there"
    report = json.loads(raynest(folder, "sandbox", "status", "--json", code=5))
    assert report == {"running": False}
    world = control.start(folder / ".raynest" / "sandbox")
    assert control.ledger(world.state_dir) == []
    assert not list((folder / ".raynest").glob("chains/**/kubeconfig.yaml"))
    # The images are the person's own: they stay.
    assert manifest(folder)[1]
