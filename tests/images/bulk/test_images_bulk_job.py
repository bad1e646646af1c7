"""The job's driver with painters of our own in place of Ray's: what it makes, holds, writes and says."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import BatchError, InputError, RefusedError, UnreachableError
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.bulk import job
from raynest_pipeline.images.bulk.keeper import Keeper, fatal
from raynest_pipeline.images.bulk.painters import Painters, offer_of
from raynest_pipeline.images.bulk.plan import Plan, heard
from raynest_pipeline.images.bulk.todo import Row, failure, unpacked
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.prompt_file import open_prompts
from raynest_pipeline.serving.contract import Painting

FACTS = {
    "model": "tiny",
    "revision": "r1",
    "native_size": 32,
    "default_steps": 10,
    "default_guidance": 7.5,
    "max_batch_size": 2,
}
Answer = Callable[[Row], Row]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Ten prompts, kept in the batch's folder as `run_batch` keeps them."""
    own = tmp_path / "b1" / "prompts.csv"
    own.parent.mkdir()
    own.write_text("\n".join(["id,prompt,seed", *[f"p{n},prompt {n},{n}" for n in range(10)]]) + "\n")
    return Plan(batch_id="b1", root=str(tmp_path), prompts_sha256=open_prompts(own).sha256)


@pytest.fixture
def good(plan: Plan, kit: Any) -> Answer:
    keeper = Keeper(plan)

    def answer(row: Row) -> Row:
        data = kit.png(row["prompt"], row["seed"], 32)
        made = Painting(data, "png", row["seed"], 32, 10, 7.5, "tiny", "r1", "cpu", 0.1, 1)
        return keeper.settle(row, made, 1, 5.0)

    return answer


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, plan: Plan, good: Answer) -> Any:
    """Ray without Ray: `cluster.answer` makes a worker's answer, `cluster.rows` what workers were given."""

    class Cluster:
        answer: Answer = staticmethod(good)
        rows: list[str] = []

    def answers(wave: list[bytes], painters: Painters) -> Iterator[Row]:
        for chunk in wave:
            rows = unpacked(chunk)
            Cluster.rows += [row["id"] for row in rows]
            yield from map(Cluster.answer, rows)

    Cluster.rows = []
    painters = Painters(offer_of(FACTS), object, 1, 4, {}, plan)
    monkeypatch.setattr(job, "_connected", nullcontext)
    monkeypatch.setattr(job, "_answers", answers)
    monkeypatch.setattr(job, "painters_for", lambda plan: painters)
    return Cluster


def records(plan: Plan) -> dict[str, Any]:
    return {r.id: r for r in read_manifest(Path(plan.root) / "b1" / "manifest.jsonl")}


def test_everything_is_made_once_and_the_second_job_finds_it(cluster: Any, plan: Plan) -> None:
    result = job.make(plan)
    assert (result.made, result.reused, result.failed, result.model) == (10, 0, 0, "tiny")
    assert result.p50_latency_ms == 5.0
    assert sorted(cluster.rows) == [f"p{n}" for n in range(10)]
    again = job.make(plan)
    assert (again.made, again.reused) == (0, 10)
    assert len(cluster.rows) == 10
    assert len((Path(plan.root) / "b1" / "manifest.jsonl").read_text().splitlines()) == 10


def test_after_a_death_in_between_exactly_the_rest_is_made(cluster: Any, plan: Plan, good: Answer) -> None:
    def dies(row: Row) -> Row:
        answer = good(row)
        if row["id"] == "p5":
            raise SystemExit(143)
        return answer

    cluster.answer = dies
    with pytest.raises(SystemExit):
        job.make(plan)
    before = records(plan)
    assert sorted(before) == ["p0", "p1", "p2", "p3", "p4"], "p5 is stored, and not on record"
    cluster.answer, cluster.rows[:] = good, []
    result = job.make(plan)
    assert (result.made, result.reused) == (4, 6)
    assert sorted(cluster.rows) == ["p6", "p7", "p8", "p9"]
    assert records(plan)["p5"].status == "adopted"


def test_ray_is_given_so_many_chunks_at_a_time_and_no_more(
    cluster: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves: list[int] = []
    answers = job._answers

    def counted(wave: list[bytes], painters: Painters) -> Iterator[Row]:
        waves.append(len(wave))
        return answers(wave, painters)

    monkeypatch.setattr(job, "_answers", counted)
    monkeypatch.setattr(job, "WAVE_CHUNKS", 2)
    assert job.make(plan).made == 10
    assert waves == [2, 1], "chunks of 4"


def test_a_damaged_image_is_found_when_all_are_to_be_verified(cluster: Any, plan: Plan) -> None:
    job.make(plan)
    image = Path(plan.root) / "b1" / str(records(plan)["p3"].file)
    before = image.stat()
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert job.make(plan).reused == 10, "size and time are those on record"
    result = job.make(replace(plan, verify=True))
    assert (result.made, result.reused) == (1, 9)


def test_failures_are_on_record_and_tried_again(cluster: Any, plan: Plan, good: Answer) -> None:
    cluster.answer = lambda row: (
        failure(row, "poison", 4, fruitless=False) if row["id"] == "p3" else good(row)
    )
    result = job.make(plan)
    assert (result.made, result.failed) == (9, 1)
    assert [(f.id, f.reason, f.attempts) for f in result.failures] == [("p3", "poison", 4)]
    assert records(plan)["p3"].file is None
    cluster.answer = good
    assert job.make(plan).made == 1


def test_what_the_service_would_refuse_is_not_painted(cluster: Any, plan: Plan) -> None:
    own = Path(plan.root) / "b1" / "prompts.csv"
    rows = ["id,prompt,size,steps,guidance", "fits,a,64,5,7", "wide,b,4096,5,7", "long,c,64,999,7"]
    own.write_text("\n".join([*rows, f"words,{'d' * 3000},64,5,7", "strict,e,64,5,99"]) + "\n")
    small = replace(plan, prompts_sha256=open_prompts(own).sha256, serving={"max_img_size": 512})
    cluster.answer = lambda row: {**row, "attempts": 1}
    result = job.make(small)
    assert (cluster.rows, result.made, result.failed) == (["fits"], 1, 4)
    reasons = {failure.id: failure.reason for failure in result.failures}
    assert "img_size: Input should be less than or equal to 512" in reasons["wide"]
    assert (
        "steps: " in reasons["long"] and "prompt: " in reasons["words"] and "guidance: " in reasons["strict"]
    )
    assert records(plan)["wide"].attempts == 0


def test_limits_of_a_service_of_the_user_s_own_are_not_guessed(cluster: Any, plan: Plan) -> None:
    unknown = replace(plan, steps=999, limits=False)
    cluster.answer = lambda row: {**row, "attempts": 1}
    assert job.make(unknown).made == 10
    assert job.make(replace(unknown, steps=998, limits=True)).failed == 10


def test_painters_that_make_nothing_are_given_up(
    cluster: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "HOPELESS_IMAGES", 2)
    cluster.answer = lambda row: failure(row, "no device", 4, fruitless=True)
    with pytest.raises(UnreachableError, match="8 in a row failed"):
        job.make(plan)


def test_a_worker_s_fatal_answer_is_raised_as_itself(cluster: Any, plan: Plan) -> None:
    cluster.answer = lambda row: fatal(BatchError("The model changed.", fix="Run again."))
    with pytest.raises(BatchError, match="The model changed"):
        job.make(plan)


def test_other_prompts_than_those_sent_for_are_refused(cluster: Any, plan: Plan) -> None:
    with pytest.raises(InputError, match="other prompts"):
        job.make(replace(plan, prompts_sha256="f" * 64))
    shutil.rmtree(Path(plan.root) / "b1")
    with pytest.raises(InputError, match="has no prompts") as caught:
        job.make(plan)
    assert "batch.ray_output" in caught.value.fix


def test_a_batch_that_somebody_holds_is_left_alone(cluster: Any, plan: Plan) -> None:
    with open_batch(plan.root, "b1").exclusive(), pytest.raises(RefusedError, match="already being made"):
        job.make(plan)
    assert cluster.rows == []


def test_a_job_that_follows_a_lost_one_waits_for_its_hold(cluster: Any, plan: Plan) -> None:
    held = open_batch(plan.root, "b1").exclusive()
    held.__enter__()
    timer = threading.Timer(1.0, lambda: held.__exit__(None, None, None))
    timer.start()
    assert job.make(replace(plan, lock_seconds=120.0)).made == 10
    timer.join()


# -- what it says ----------------------------------------------------------------------------------


def messages(out: str) -> list[dict[str, Any]]:
    return [message for line in out.splitlines() if (message := heard(line)) is not None]


def test_the_last_word_is_the_result(cluster: Any, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([plan.to_json()]) == 0
    said = messages(capsys.readouterr().out)
    assert (said[0]["raynest"], said[0]["total"]) == ("progress", 10)
    assert (said[-1]["raynest"], said[-1]["made"], said[-1]["failures"]) == ("result", 10, [])


def test_or_an_error_with_its_class(plan: Plan, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([replace(plan, prompts_sha256="f" * 64).to_json()]) == 1
    (said,) = messages(capsys.readouterr().out)
    assert (said["raynest"], said["error"]) == ("error", "InputError")


def test_or_what_the_image_lacks(
    plan: Plan, cluster: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"pandas", "torch", "ossfs"}
    real = job.importlib.util.find_spec
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    assert job.main([plan.to_json()]) == job.EXIT_NEEDS
    assert job.main([replace(plan, mode="actors", root="oss://b/out").to_json()]) == job.EXIT_NEEDS
    said = messages(capsys.readouterr().out)
    assert [m["modules"] for m in said] == [["pandas"], ["pandas", "torch", "ossfs"]]


def test_the_driver_of_the_model_s_store_is_looked_for_where_the_model_is_loaded(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None if name.endswith("fs") else name)
    stored = replace(plan, serving={"model": "oss://bucket/sd"})
    assert job.missing_modules(stored) == []
    assert job.missing_modules(replace(stored, mode="actors")) == ["ossfs"]
    assert job.missing_modules(replace(stored, mode="actors", root="oss://b/out")) == ["ossfs"]
    assert job.missing_modules(replace(stored, root="s3://b/out")) == ["s3fs"]


def test_a_stopped_driver_lets_go_in_good_order(tmp_path: Path) -> None:
    """SIGTERM, as Ray sends it, to a driver in a process of its own."""
    script = """
import signal, sys, threading
from raynest_pipeline.images.bulk import job
signal.signal(signal.SIGTERM, job._stop)
try:
    print("ready", flush=True)
    threading.Event().wait(120)
finally:
    print("let go", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "let go\n"
    assert process.wait(60) == job.EXIT_STOPPED
