"""The batches as an asset over a real loopback endpoint, their checks, and the batch of every day."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from chain_world import World

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.defs.images.partitions import BATCHES
from raynest_pipeline.defs.progress import listening
from raynest_pipeline.images.batch import Outcome
from raynest_pipeline.images.result import Progress

Run = Callable[..., dg.ExecuteInProcessResult]
PROMPTS = "id,prompt\na,a red apple\nb,a blue star\nc,a green tree\n"


@pytest.fixture
def endpoint() -> Iterator[Any]:
    """The endpoint of tests/images, which is not importable by name."""
    path = Path(__file__).parents[1] / "images" / "conftest.py"
    spec = importlib.util.spec_from_file_location("images_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fake = module.FakeEndpoint()
    fake.start()
    yield fake
    fake.close()


@pytest.fixture
def batch(
    endpoint: Any,
    up: Chain,
    run: Run,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a batch of PROMPTS (or of `prompts`) against the endpoint."""
    explicit = up.settings.endpoint.model_copy(update={"url": f"http://127.0.0.1:{endpoint.port}"})
    monkeypatch.setattr(up.endpoints, "_settings", explicit)
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    instance.add_dynamic_partitions("batches", ["b1"])

    def execute(**config: Any) -> dg.ExecuteInProcessResult:
        given = {"prompts": str(tmp_path / "prompts.csv"), **config}
        ops = {"batch_images": {"config": {k: v for k, v in given.items() if v is not None}}}
        return run("generate_batch", partition_key="b1", run_config={"ops": ops})

    return execute


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("batch_images")
    return {key: value.value for key, value in event.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def what(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.metadata["what"].value)


class TestBatch:
    def test_images_manifest_sheet_and_checks(self, batch: Run, up: Chain) -> None:
        told: list[Any] = []
        with listening(told.append):
            result = batch()
        assert result.success
        found = metadata(result)
        assert (found["images"], found["made"], found["reused"], found["failed"]) == (3, 3, 0, 0)
        folder = Path(found["folder_path"])
        assert folder == up.settings.output_dir / "b1"
        assert len(list((folder / "images").glob("*.png"))) == 3
        assert Path(found["sheet_path"]).is_file() and Path(found["manifest_path"]).is_file()
        assert {name: check.passed for name, check in checks(result).items()} == {
            "complete": True,
            "valid": True,
        }
        assert any(isinstance(event, Progress) for event in told)
        assert any(isinstance(event, Outcome) for event in told)

    def test_the_contact_sheet_comes_first_and_is_small(self, batch: Run) -> None:
        found = metadata(batch())
        assert min(found) == "a_contact_sheet"
        assert found["a_contact_sheet"].startswith("![")
        assert len(found["a_contact_sheet"]) <= 64 * 1024

    def test_again_nothing_is_made(self, batch: Run, endpoint: Any) -> None:
        batch()
        served = endpoint.served
        found = metadata(batch())
        assert (found["made"], found["reused"]) == (0, 3)
        assert endpoint.served == served

    def test_without_a_file_the_batchs_own_copy_is_used(self, batch: Run, tmp_path: Path) -> None:
        batch()
        (tmp_path / "prompts.csv").unlink()
        assert metadata(batch(prompts=None))["reused"] == 3

    def test_another_folder(self, batch: Run, tmp_path: Path) -> None:
        assert metadata(batch(out=str(tmp_path / "out")))["folder_path"] == str(tmp_path / "out" / "b1")

    def test_a_damaged_image_is_made_again(self, batch: Run) -> None:
        folder = Path(metadata(batch())["folder_path"])
        image = next((folder / "images").glob("*.png"))
        image.write_bytes(image.read_bytes()[:-10])
        result = batch()
        assert metadata(result)["made"] == 1
        assert checks(result)["valid"].passed

    def test_bad_prompts_fail_before_anything_is_contacted(
        self, batch: Run, endpoint: Any, world: World, tmp_path: Path
    ) -> None:
        (tmp_path / "prompts.csv").write_text("id,prompt\na,\n")
        world.calls.clear()
        result = batch()
        assert not result.success
        assert "prompts.csv" in what(result)
        assert endpoint.requests.total() == 0 and world.calls == []

    def test_a_missing_file_is_named(self, batch: Run, tmp_path: Path) -> None:
        result = batch(prompts=str(tmp_path / "nope.csv"))
        assert "nope.csv does not exist" in what(result)

    def test_images_that_fail_fail_the_batch_and_are_named(self, batch: Run, endpoint: Any) -> None:
        from aiohttp import web

        async def refuse(*_: Any) -> web.StreamResponse:
            return web.json_response({"detail": "not this one"}, status=422)

        endpoint.by_prompt["a blue star"] = refuse
        result = batch()
        assert not result.success
        assert "1 of 3 images failed" in what(result)
        endpoint.by_prompt.clear()
        assert metadata(batch())["reused"] == 2, "the finished ones are kept"

    def test_without_a_chain_it_says_what_to_do(self, batch: Run, up: Chain) -> None:
        up.kubeconfig_path.unlink()
        assert "no kubeconfig" in what(batch())


class TestDailySchedule:
    def tick(self, instance: dg.DagsterInstance, definitions: dg.Definitions) -> Any:
        context = dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 3, 9, 6, tzinfo=UTC),
            repository_def=definitions.get_repository_def(),
        )
        return definitions.resolve_schedule_def("daily_batch").evaluate_tick(context)

    def test_a_tick_is_one_run_of_the_days_own_batch(self, definitions: dg.Definitions) -> None:
        with dg.DagsterInstance.local_temp() as instance:
            for _ in range(2):
                (request,) = self.tick(instance, definitions).run_requests
                assert request.run_key == request.partition_key == "daily-2026-03-09"
                assert instance.get_dynamic_partitions(str(BATCHES.name)) == ["daily-2026-03-09"]


def test_no_prompt_of_the_file_is_lost_in_the_manifest(batch: Run) -> None:
    found = metadata(batch())
    lines = Path(found["manifest_path"]).read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} >= {"a", "b", "c"}
