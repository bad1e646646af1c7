"""Mode `actors`: an actor in this process, with the built-in pipeline: real weights, only random ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from raynest_pipeline.errors import BatchError, NotReadyError, StorageError
from raynest_pipeline.images.bulk import by_actors
from raynest_pipeline.images.bulk.by_actors import GpuPainter, facts_of_model, open_engine, options_of
from raynest_pipeline.images.bulk.keeper import FATAL
from raynest_pipeline.images.bulk.plan import Plan, error_of
from raynest_pipeline.images.bulk.todo import Row, packed, unpacked
from raynest_pipeline.serving.contract import PaintingFailed
from raynest_pipeline.serving.engine import Engine
from raynest_pipeline.serving.untrained import UNTRAINED_LABEL, build_untrained_pipeline

FACTS = ("revision", "native_size", "default_steps", "default_guidance")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    serving = {"model": "tiny-untrained", "max_batch_size": 2, "cpu_threads": 1}
    return Plan("b1", str(tmp_path), "0" * 64, mode="actors", serving=serving)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build_untrained_pipeline().save_pretrained(path)
    return path


def rows(count: int, **changes: Any) -> list[Row]:
    values = {"negative_prompt": "", "size": 64, "steps": 1, "guidance": 1.0, "status": "made"}
    model = {"model": UNTRAINED_LABEL, "revision": "built-in"}
    return [
        {"id": f"p{n}", "prompt": f"prompt {n}", "seed": n, "file": f"images/p{n}.png"}
        | values
        | model
        | changes
        for n in range(count)
    ]


def make(painter: GpuPainter, some: list[Row]) -> dict[str, Row]:
    batch = pyarrow.table({"chunk": [packed(some)]})
    answers = [r for block in painter(batch) for data in block["answers"].to_pylist() for r in unpacked(data)]
    return {answer.get("id", FATAL): answer for answer in answers}


def test_a_chunk_is_painted_stored_and_answered(plan: Plan, tmp_path: Path) -> None:
    answers = make(GpuPainter(plan.to_json()), rows(5))
    assert {row["status"] for row in answers.values()} == {"made"}
    assert len(list((tmp_path / "b1" / "images").glob("*.png"))) == 5


def test_another_model_than_the_batch_s_ends_it(plan: Plan) -> None:
    answers = make(GpuPainter(plan.to_json()), rows(1, revision="other"))
    assert isinstance(error_of(answers[FATAL]), BatchError)


def test_an_actor_is_warm_before_its_first_image_as_a_replica_is(plan: Plan) -> None:
    warm = open_engine(plan)
    cold = open_engine(replace(plan, serving={**plan.serving, "warm_up": False}))
    try:
        assert (warm.warm, cold.warm) == (True, False)
        assert warm.work.images == 0, "the warm-up does not count"
    finally:
        warm.close()
        cold.close()


def test_its_options_come_from_the_node_s_environment_too(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYNEST_MODEL_CACHE", str(tmp_path))
    monkeypatch.setenv("RAYNEST_MODEL", "not this")
    options = options_of(plan)
    assert (options.cache_dir, options.model) == (str(tmp_path), "tiny-untrained")


def test_options_that_do_not_go_together_are_told(plan: Plan) -> None:
    with pytest.raises(NotReadyError, match="cannot be loaded") as caught:
        options_of(replace(plan, serving={"model": "m", "min_replicas": 2}))
    assert "min_replicas needs max_replicas" in caught.value.why


@pytest.mark.parametrize(
    "recommended",
    [None, {"steps": 12, "guidance": 0.0}, {"name": "own", "revision": "r7", "steps": "30"}],
)
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"default_steps": 3, "default_guidance": 2.5},
        {"scheduler": "euler"},
        {"max_steps": 10, "max_img_size": 32},
    ],
)
def test_facts_are_those_of_the_loaded_model(
    plan: Plan, folder: Path, recommended: dict[str, Any] | None, own: dict[str, Any]
) -> None:
    described = folder / "generation.json"
    described.unlink(missing_ok=True)
    if recommended is not None:
        described.write_text(json.dumps(recommended))
    here = replace(plan, serving={"model": str(folder), "max_batch_size": 3, "warm_up": False, **own})
    facts = facts_of_model(here.to_json())
    engine = open_engine(here)
    engine.close()
    loaded = {"model": engine.model.name} | {name: getattr(engine.model, name) for name in FACTS}
    assert facts == {**loaded, "max_batch_size": 3}


def test_facts_do_not_load_the_weights(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(options: Any) -> Any:
        raise AssertionError("the weights are the actors' to load")

    monkeypatch.setattr(by_actors, "load_model", loads)
    assert facts_of_model(replace(plan, serving={"model": str(folder)}).to_json())["native_size"] == 64


def test_facts_of_the_built_in_model(plan: Plan) -> None:
    facts = facts_of_model(plan.to_json())
    assert (facts["model"], facts["revision"], facts["native_size"]) == (UNTRAINED_LABEL, "built-in", 64)


def test_facts_of_a_model_that_is_not_there(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="cannot be loaded") as caught:
        facts_of_model(replace(plan, serving={"model": str(tmp_path / "none")}).to_json())
    assert "does not exist on this node" in caught.value.why


def broken_engine(plan: Plan) -> Engine:
    raise NotReadyError("The model cannot be loaded on the cluster.")


def no_warm_up(self: Engine, max_steps: int) -> None:
    raise PaintingFailed("out of memory for one image")


@pytest.mark.parametrize("breaks", [("open_engine", broken_engine), ("Engine.warm_up", no_warm_up)])
def test_an_actor_that_cannot_start_ends_the_batch_in_its_own_words(
    plan: Plan, breaks: tuple[str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{by_actors.__name__}.{breaks[0]}", breaks[1])
    error = error_of(make(GpuPainter(plan.to_json()), rows(2))[FATAL])
    assert isinstance(error, NotReadyError)
    assert "model cannot be loaded" in error.what


def test_a_store_that_the_node_does_not_reach_is_told_before_a_model_is_loaded(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_actors, "open_engine", lambda plan: pytest.fail("too late"))
    (tmp_path / "b1").write_text("a file in the way")
    assert isinstance(error_of(make(GpuPainter(plan.to_json()), rows(1))[FATAL]), StorageError)
