"""Mode `serve`: what a caller does with the replicas' answers. A handle that behaves as Serve's does."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from raynest_pipeline.errors import RaynestError, StorageError
from raynest_pipeline.images.bulk import by_serve
from raynest_pipeline.images.bulk.by_serve import PAINTER, ServeCaller
from raynest_pipeline.images.bulk.keeper import FATAL
from raynest_pipeline.images.bulk.painters import painters_for
from raynest_pipeline.images.bulk.plan import Plan, error_of
from raynest_pipeline.images.bulk.todo import Row, packed, unpacked
from raynest_pipeline.serving.contract import (
    ImageRequest,
    PainterBusy,
    PainterUnavailable,
    Painting,
    PaintingFailed,
)
from raynest_pipeline.waiting import Backoff, SystemClock

Outcome = Callable[[ImageRequest], Any]


class Hands(SystemClock):
    """A clock that only those move who wait."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Call:
    def __init__(self, outcome: Any, ready: float, clock: Hands) -> None:
        self.outcome = outcome
        self.cancelled = False
        self.ready = ready
        self.clock = clock

    def result(self, timeout_s: float) -> Any:
        waits = max(0.0, self.ready - self.clock.seconds)
        self.clock.sleep(min(waits, timeout_s))
        if waits > timeout_s:
            raise TimeoutError
        if isinstance(self.outcome, Exception) and getattr(self.outcome, "raised", False):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Painter:
    """A deployment handle. `script`: an outcome for each attempt at a prompt, the last one for the rest."""

    def __init__(self, good: Outcome, clock: Hands) -> None:
        self.good = good
        self.clock = clock
        self.takes = 0.0
        """Seconds for an image, one after the other."""
        self.free_at = 0.0
        self.script: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self.calls: list[Call] = []

    @property
    def paint(self) -> Any:
        return self

    def remote(self, request: ImageRequest) -> Call:
        self.asked.append(request.prompt)
        outcomes = self.script.get(request.prompt) or []
        outcome = outcomes.pop(0) if outcomes else self.good(request)
        self.free_at = max(self.free_at, self.clock.seconds) + self.takes
        self.calls.append(Call(outcome, self.free_at, self.clock))
        return self.calls[-1]


def raised(error: Exception) -> Exception:
    error.raised = True  # type: ignore[attr-defined]
    return error


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    clock = Hands()
    monkeypatch.setattr(by_serve, "SystemClock", lambda: clock)
    return clock


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch, kit: Any, hands: Hands) -> Painter:
    def good(request: ImageRequest) -> Painting:
        data = kit.png(request.prompt, request.seed, 32)
        return Painting(data, "png", request.seed, 32, 5, 7.5, "tiny", "r1", "cpu", 0.1, 1)

    made = Painter(good, hands)
    monkeypatch.setattr(serve, "get_deployment_handle", lambda name, app: made)
    monkeypatch.setattr(by_serve, "_BUSY", Backoff(first=0.0, most=0.0))
    return made


def rows(count: int) -> list[Row]:
    values = {
        "negative_prompt": "",
        "size": 32,
        "steps": 5,
        "guidance": 7.5,
        "model": "tiny",
        "revision": "r1",
    }
    return [
        {
            "id": f"p{n}",
            "prompt": f"prompt {n}",
            "seed": n,
            "file": f"images/p{n}.png",
            "status": "made",
            **values,
        }
        for n in range(count)
    ]


def make(tmp_path: Path, some: list[Row], **plan: Any) -> dict[str, Row]:
    caller = ServeCaller(Plan("b1", str(tmp_path), "0" * 64, **plan).to_json())
    batch = pyarrow.table({"chunk": [packed(some)]})
    found = [
        row for block in caller(batch) for data in block["answers"].to_pylist() for row in unpacked(data)
    ]
    return {row.get("id", FATAL): row for row in found}


def test_a_chunk_is_asked_for_at_once_and_stored(tmp_path: Path, painter: Painter) -> None:
    answers = make(tmp_path, rows(5))
    assert painter.asked == [f"prompt {n}" for n in range(5)]
    assert {row["status"] for row in answers.values()} == {"made"}
    assert len(list((tmp_path / "b1" / "images").glob("*.png"))) == 5
    assert not (tmp_path / "b1" / "manifest.jsonl").exists(), "that is the driver's alone"


def test_a_full_queue_uses_up_no_attempt(tmp_path: Path, painter: Painter) -> None:
    busy = [PainterBusy("the queue is full")] * 30
    painter.script = {"prompt 1": [*busy, raised(BackPressureError(1, 1))]}
    answers = make(tmp_path, rows(2), attempts=2)
    assert answers["p1"]["status"] == "made"
    assert answers["p1"]["attempts"] == 1
    assert painter.asked.count("prompt 1") == 32
    assert painter.asked.count("prompt 0") == 1


def test_a_failure_is_tried_again_and_then_recorded(tmp_path: Path, painter: Painter) -> None:
    painter.script = {
        "prompt 0": [PaintingFailed("out of memory")],
        "prompt 1": [PaintingFailed("poison")] * 9,
    }
    answers = make(tmp_path, rows(3), attempts=3)
    assert (answers["p0"]["status"], answers["p0"]["attempts"]) == ("made", 2)
    assert (answers["p1"]["status"], answers["p1"]["error"], answers["p1"]["attempts"]) == (
        "failed",
        "poison",
        3,
    )
    assert answers["p2"]["status"] == "made"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), r"no image after 900 s \(batch.deadline_seconds\)"),
        (RayActorError(), "ActorDiedError|RayActorError"),
    ],
)
def test_rays_own_errors_are_failed_attempts(
    tmp_path: Path, painter: Painter, error: Exception, words: str
) -> None:
    import re

    painter.script = {"prompt 0": [raised(error)] * 9}
    answers = make(tmp_path, rows(1), attempts=2)
    assert (answers["p0"]["status"], answers["p0"]["fruitless"]) == ("failed", True)
    assert re.search(words, answers["p0"]["error"])


def test_a_slow_image_is_waited_for_and_never_asked_for_twice(
    tmp_path: Path, painter: Painter, hands: Hands
) -> None:
    """One replica, 200 s an image: each is painted once, whatever the others' time."""
    painter.takes = 200.0
    answers = make(tmp_path, rows(4), attempts=4, deadline_seconds=900.0)
    assert {row["status"] for row in answers.values()} == {"made"}
    assert painter.asked == [f"prompt {n}" for n in range(4)]
    assert hands.seconds == 800.0


def test_beyond_its_deadline_it_is_taken_out_of_the_queue_and_failed(
    tmp_path: Path, painter: Painter, hands: Hands
) -> None:
    painter.takes = 200.0
    answers = make(tmp_path, rows(4), attempts=4, deadline_seconds=500.0)
    assert [answers[f"p{n}"]["status"] for n in range(4)] == ["made", "made", "failed", "failed"]
    assert [call.cancelled for call in painter.calls] == [False, False, True, True]
    assert len(painter.asked) == 4
    assert hands.seconds == 500.0, "all of a chunk have the same deadline, not one after the other"


def test_a_replica_that_is_being_replaced_uses_up_no_attempt(tmp_path: Path, painter: Painter) -> None:
    away = [PainterUnavailable("the device failed: CUDA error")] * 30
    painter.script = {"prompt 0": away}
    answers = make(tmp_path, rows(1), attempts=2)
    assert (answers["p0"]["status"], answers["p0"]["attempts"]) == ("made", 1)


def test_one_that_never_comes_back_ends_with_the_deadline(
    tmp_path: Path, painter: Painter, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_serve, "_BUSY", Backoff(first=10.0, most=10.0, jitter=0.0))
    painter.script = {"prompt 0": [PainterUnavailable("the device failed: CUDA error")] * 1000}
    answers = make(tmp_path, rows(1), attempts=2, deadline_seconds=900.0)
    assert (answers["p0"]["status"], answers["p0"]["fruitless"]) == ("failed", True)
    assert "CUDA error" in answers["p0"]["error"]
    assert hands.seconds == 900.0


def test_a_store_that_this_node_does_not_reach_is_told_in_its_own_words(
    tmp_path: Path, painter: Painter
) -> None:
    (tmp_path / "b1").write_text("a file in the way")
    error = error_of(make(tmp_path, rows(1))[FATAL])
    assert isinstance(error, StorageError)
    assert painter.asked == []


def test_a_deadline_that_passed_in_the_queue_is_a_failed_attempt(tmp_path: Path, painter: Painter) -> None:
    painter.script = {"prompt 0": [TimeoutError("the deadline passed")]}
    assert make(tmp_path, rows(1), attempts=2)["p0"]["attempts"] == 2


def test_an_error_of_the_whole_batch_comes_back_as_such(tmp_path: Path, painter: Painter, kit: Any) -> None:
    painter.good = lambda request: Painting(
        kit.png("x", 1, 32), "png", 1, 32, 5, 7.5, "other model", "r1", "cpu", 0.1, 1
    )
    answers = make(tmp_path, rows(2))
    error = error_of(answers[FATAL])
    assert isinstance(error, RaynestError)
    assert "model changed during the batch" in error.what


@pytest.mark.parametrize(
    ("serving", "limits", "images"),
    [
        ({"replicas": 1}, True, 4),
        ({"min_replicas": 1, "max_replicas": 5}, True, 20),
        ({"min_replicas": 1, "max_replicas": 2}, True, 12),
        # With a manifest of one's own the settings say nothing about the replicas.
        ({"max_replicas": 5}, False, 12),
    ],
)
def test_enough_is_asked_at_once_for_as_many_replicas_as_there_may_be(
    serving: dict[str, Any], limits: bool, images: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = 1 if "replicas" in serving else 3
    plan = Plan("b1", str(tmp_path), "0" * 64, mode="serve", serving=serving, limits=limits)
    told = {"model": "m", "revision": "r", "native_size": 32, "default_steps": 2, "default_guidance": 7.5}
    facts = SimpleNamespace(**told, max_batch_size=4)
    answer = SimpleNamespace(result=lambda timeout_s: facts)
    handle = SimpleNamespace(facts=SimpleNamespace(remote=lambda: answer))
    deployment = SimpleNamespace(replica_states={"RUNNING": there})
    application = SimpleNamespace(deployments={PAINTER: deployment})
    monkeypatch.setattr(
        serve, "status", lambda: SimpleNamespace(applications={plan.application: application})
    )
    monkeypatch.setattr(serve, "get_deployment_handle", lambda name, app: handle)
    assert painters_for(plan).chunk == images
