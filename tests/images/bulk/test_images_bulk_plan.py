"""What a job is told and what it tells, as JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest

from raynest_pipeline import errors
from raynest_pipeline.images.bulk.plan import Plan, error_of, heard, say, words_of

PLAN = Plan(
    batch_id="b1", root="oss://b/out", prompts_sha256="a" * 64, serving={"model": "m", "num_gpus": 1.0}
)


def test_a_plan_travels_whole() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_a_key_of_another_release_is_left_out() -> None:
    later = json.loads(PLAN.to_json()) | {"new_in_the_next_release": 1}
    assert Plan.from_json(json.dumps(later)) == PLAN


def test_its_text_does_not_depend_on_the_order_of_its_making() -> None:
    other = replace(PLAN, serving={"num_gpus": 1.0, "model": "m"})
    assert other.to_json() == PLAN.to_json()
    assert other.digest == PLAN.digest


@pytest.mark.parametrize(
    "change",
    [
        {"batch_id": "b2"},
        {"root": "oss://b/other"},
        {"mode": "actors"},
        {"prompts_sha256": "b" * 64},
        {"steps": 3},
        {"size": 64},
        {"guidance": 1.0},
        {"serving": {"model": "other"}},
        {"serving": {"model": "m", "num_gpus": 1.0, "scheduler": "ddim"}},
    ],
)
def test_what_makes_another_batch_changes_the_digest(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).digest != PLAN.digest


@pytest.mark.parametrize(
    "change",
    [
        {"lock_seconds": 9.0},
        {"attempts": 9},
        {"deadline_seconds": 1.0},
        {"actors": 9},
        {"verify": True},
        {"serving": {"model": "m", "num_gpus": 0.5, "replicas": 7, "max_batch_size": 1}},
    ],
)
def test_patience_and_numbers_do_not(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).digest == PLAN.digest


def test_the_settings_of_requests_are_those_of_the_http_engine() -> None:
    batch = replace(PLAN, size=64, steps=5, guidance=0.0).batch
    assert (batch.size, batch.steps, batch.guidance) == (64, 5, 0.0)


def test_what_is_said_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    say("progress", made=3, text="a\nb")
    before, line = capsys.readouterr().out.splitlines()
    assert before == "", "whoever left half a line has it ended"
    assert heard(line) == {"raynest": "progress", "made": 3, "text": "a\nb"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        '{"made":3}',
        '{"raynest":"progress","made"',
        '{"raynest":3}',
        '["raynest"]',
        ' {"raynest":"x"}',
    ],
)
def test_nobody_else_s_line_and_no_torn_one_is_heard(line: str) -> None:
    assert heard(line) is None


@pytest.mark.parametrize(
    "kind", [cls for cls in errors.RaynestError.__subclasses__() if cls is not errors.RemoteError]
)
def test_errors_keep_class_and_words(kind: type[errors.RaynestError]) -> None:
    there = error_of(json.loads(json.dumps(words_of(kind("what", why="why", fix="fix")))))
    assert type(there) is kind
    assert (there.what, there.why, there.fix) == ("what", "why", "fix")


def test_an_error_of_an_unknown_class_is_a_plain_one() -> None:
    assert type(error_of({"error": "FutureError", "what": "w"})) is errors.RaynestError
    assert type(error_of({})) is errors.RaynestError
