"""The batches as an asset over a real loopback endpoint, their checks, and the batch of every day."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from chain_world import World

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.defs.images import assets
from raynest_pipeline.defs.images.checks import Pace, earlier_paces, pace_check, pace_of
from raynest_pipeline.defs.images.metadata import figures
from raynest_pipeline.defs.progress import listening
from raynest_pipeline.errors import UnreachableError
from raynest_pipeline.images.batch import Outcome
from raynest_pipeline.images.result import BatchResult, Progress
from raynest_pipeline.settings import Gallery

Run = Callable[..., dg.ExecuteInProcessResult]
PROMPTS = "id,prompt\na,a red apple\nb,a blue star\nc,a green tree\n"
ALL = ("a red apple", "a blue star", "a green tree")


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
            "no_near_duplicates": True,
            "same_seed": True,
            "pace": True,
        }
        assert any(isinstance(event, Progress) for event in told)
        assert any(isinstance(event, Outcome) for event in told)

    def test_the_contact_sheet_comes_first_and_is_small(self, batch: Run) -> None:
        found = metadata(batch())
        assert min(found) == "a_contact_sheet"
        page = "http://127.0.0.1:3001/b1/index.html"
        assert found["a_contact_sheet"] == (
            f"[![contact sheet of b1](http://127.0.0.1:3001/b1/gallery/sheet.jpg)]({page})"
        ), "short enough for the UI to show it inline"
        assert found["gallery"] == page
        assert found["sheet_offline"].startswith("![")
        assert len(found["sheet_offline"]) <= 64 * 1024
        sheet = Path(found["folder_path"]) / "gallery" / "sheet.jpg"
        assert sheet.read_bytes().startswith(b"\xff\xd8")

    def test_without_a_gallery_the_sheet_itself_is_in_the_record(self, batch: Run, up: Chain) -> None:
        unserved = up.settings.model_copy(update={"gallery": Gallery(port=0)})
        object.__setattr__(up, "settings", unserved)
        found = metadata(batch())
        assert found["a_contact_sheet"].startswith("![contact sheet of b1](data:image/jpeg;base64,")
        assert "gallery" not in found and "sheet_offline" not in found

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
        result = batch(out=str(tmp_path / "out"))
        found = metadata(result)
        assert found["folder_path"] == str(tmp_path / "out" / "b1")
        assert "gallery" not in found, "nobody serves that folder"
        assert found["a_contact_sheet"].startswith("![contact sheet of b1](data:image/jpeg;base64,")
        (event,) = result.asset_materializations_for_node("gallery")
        assert set(event.metadata) == {"page_path", "images", "failed"}
        assert Path(str(event.metadata["page_path"].value)).is_file()

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


def test_no_prompt_of_the_file_is_lost_in_the_manifest(batch: Run) -> None:
    found = metadata(batch())
    lines = Path(found["manifest_path"]).read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} >= {"a", "b", "c"}


class TestChecks:
    def test_the_same_image_under_other_seeds_is_a_warning(self, batch: Run, endpoint: Any) -> None:
        picture = png("the same for all")
        for prompt in ("a red apple", "a blue star"):
            endpoint.by_prompt[prompt] = answering(picture)
        result = batch()
        assert result.success
        check = checks(result)["no_near_duplicates"]
        assert not check.passed and check.severity is dg.AssetCheckSeverity.WARN
        assert check.metadata["ids"].value == "a = b"

    def test_an_endpoint_that_does_not_repeat_itself_is_found_out(self, batch: Run, endpoint: Any) -> None:
        asked = never_the_same(endpoint)
        result = batch()
        assert len(asked) == 4, "three for the batch, one for the check"
        check = checks(result)["same_seed"]
        assert result.success and not check.passed
        assert check.severity is dg.AssetCheckSeverity.ERROR and check.metadata["difference"].value > 2
        assert "the endpoint promises at most 2" in check.description
        assert "not_promised" not in check.metadata

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            ({"device": "cuda:0 (NVIDIA A10)", "dtype": "bfloat16"}, "bfloat16 on cuda:0 (NVIDIA A10)"),
            ({"model": None}, "it has no /health"),
        ],
        ids=["gpu", "stock"],
    )
    def test_where_nothing_is_promised_another_image_is_a_warning(
        self, batch: Run, endpoint: Any, facts: dict[str, Any], reason: str
    ) -> None:
        never_the_same(endpoint)
        for name, value in facts.items():
            setattr(endpoint, name, value)
        result = batch()
        check = checks(result)["same_seed"]
        assert result.success and not check.passed and check.severity is dg.AssetCheckSeverity.WARN
        difference = check.metadata["difference"].value
        assert difference > 2 and f"differs by {difference} of 255" in check.description
        assert reason in check.description and reason in check.metadata["not_promised"].value

    def test_where_nothing_is_promised_the_same_image_passes(self, batch: Run, endpoint: Any) -> None:
        endpoint.device, endpoint.dtype = "cuda:0", "float16"
        check = checks(batch())["same_seed"]
        assert check.passed and check.metadata["difference"].value == 0 and check.description is None

    def test_an_endpoint_that_is_gone_by_then_is_only_a_warning(self, batch: Run, endpoint: Any) -> None:
        from aiohttp import web

        asked: list[str] = []

        async def once(*_: Any) -> Any:
            asked.append("a")
            if len(asked) > 3:
                return web.json_response({"detail": "not this one any more"}, status=422)
            return await answering(png(f"picture {len(asked)}"))(*_)

        endpoint.by_prompt = dict.fromkeys(ALL, once)
        result = batch()
        check = checks(result)["same_seed"]
        assert result.success and not check.passed
        assert check.severity is dg.AssetCheckSeverity.WARN and "422" in check.metadata["not_compared"].value

    def test_nothing_is_asked_again_where_nothing_was_made(self, batch: Run) -> None:
        batch()
        check = checks(batch())["same_seed"]
        assert check.passed and check.metadata["not_compared"].value == "no image was made in this run"

    def test_the_image_asked_for_again_is_of_this_run_and_its_model(
        self, batch: Run, endpoint: Any, tmp_path: Path
    ) -> None:
        batch()
        (tmp_path / "prompts.csv").write_text(PROMPTS + "z,a black cross\n")
        check = checks(batch())["same_seed"]
        assert check.passed and check.metadata["id"].value == "z"

    def test_images_of_earlier_prompts_do_not_stand_in_for_missing_ones(
        self, batch: Run, endpoint: Any, tmp_path: Path, up: Chain
    ) -> None:
        from aiohttp import web

        async def refuse(*_: Any) -> web.StreamResponse:
            return web.json_response({"detail": "not this one"}, status=422)

        batch()
        lenient = up.settings.batch.model_copy(update={"max_failed_share": 1.0})
        object.__setattr__(up, "settings", up.settings.model_copy(update={"batch": lenient}))
        endpoint.by_prompt["a black cross"] = refuse
        (tmp_path / "prompts.csv").write_text("id,prompt\ny,a black cross\nz,a brown circle\n")
        result = batch()
        check = checks(result)["complete"]
        assert result.success and not check.passed and check.metadata["missing"].value == 1

    def test_a_batch_of_failures_only_has_a_sheet_a_page_and_a_check_that_says_so(
        self, batch: Run, endpoint: Any, up: Chain
    ) -> None:
        from aiohttp import web

        async def refuse(*_: Any) -> web.StreamResponse:
            return web.json_response({"detail": "not this one"}, status=422)

        lenient = up.settings.batch.model_copy(update={"max_failed_share": 1.0})
        object.__setattr__(up, "settings", up.settings.model_copy(update={"batch": lenient}))
        endpoint.by_prompt = dict.fromkeys(ALL, refuse)
        result = batch()
        found = metadata(result)
        assert result.success and (found["made"], found["failed"]) == (0, 3)
        assert Path(found["sheet_path"]).is_file() and "slowest" not in found
        failed = {name for name, check in checks(result).items() if not check.passed}
        assert failed == {"complete"}
        (event,) = result.asset_materializations_for_node("gallery")
        assert '"failed":3' in Path(str(event.metadata["page_path"].value)).read_text()


class TestSeveralBatches:
    @pytest.fixture
    def backfill(self, batch: Run, run: Run, instance: dg.DagsterInstance, up: Chain) -> Run:
        """One run over b1 and b2, which have prompts of their own."""
        for key in ("b1", "b2"):
            folder = up.settings.output_dir / key
            folder.mkdir(parents=True)
            (folder / "prompts.csv").write_text(f"id,prompt\na,a red apple of {key}\n")
        instance.add_dynamic_partitions("batches", ["b2"])
        tags = {"dagster/asset_partition_range_start": "b1", "dagster/asset_partition_range_end": "b2"}

        def execute(**config: Any) -> dg.ExecuteInProcessResult:
            return run("generate_batch", tags=tags, run_config={"ops": {"batch_images": {"config": config}}})

        return execute

    def materialized(self, instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=10).records
        return {record.partition_key: record.asset_materialization.metadata for record in records}

    @pytest.fixture
    def definitions(self) -> dg.Definitions:
        from raynest_pipeline.definitions import build_definitions
        from raynest_pipeline.settings import Settings

        return build_definitions(Settings(profile="alibaba", batch={"batches_per_run": 0}))

    def test_in_one_run_each_has_its_own_record(self, backfill: Run, instance: dg.DagsterInstance) -> None:
        result = backfill()
        assert result.success
        found = self.materialized(instance, "batch_images")
        assert {key: values["folder_path"].value.rsplit("/", 1)[1] for key, values in found.items()} == {
            "b1": "b1",
            "b2": "b2",
        }
        assert {key: values["made"].value for key, values in found.items()} == {"b1": 1, "b2": 1}
        pages = self.materialized(instance, "gallery")
        assert all(Path(pages[key]["page_path"].value).is_file() for key in ("b1", "b2"))
        assert all(check.passed for check in checks(result).values())

    def test_one_that_fails_does_not_keep_the_others(
        self, backfill: Run, instance: dg.DagsterInstance, endpoint: Any
    ) -> None:
        from aiohttp import web

        async def refuse(*_: Any) -> web.StreamResponse:
            return web.json_response({"detail": "not this one"}, status=422)

        endpoint.by_prompt["a red apple of b1"] = refuse
        result = backfill()
        assert not result.success and "1 of 1 images failed" in what(result)
        assert set(self.materialized(instance, "batch_images")) == {"b2"}

    def test_every_failure_is_told(self, backfill: Run, instance: dg.DagsterInstance, up: Chain) -> None:
        for key in ("b1", "b2"):
            (up.settings.output_dir / key / "prompts.csv").write_text("id,prompt\na,\n")
        result = backfill()
        assert not result.success
        told = [entry.user_message for entry in instance.all_logs(result.run_id)]
        assert all(any(line.startswith(f"{key}: The prompt file") for line in told) for key in ("b1", "b2"))

    def test_an_endpoint_that_is_gone_is_not_waited_for_by_each(
        self, backfill: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[str] = []

        def gone(*args: Any) -> Any:
            tried.append(args[-1])
            raise UnreachableError("The endpoint has not answered for 60 s.")

        monkeypatch.setattr(assets, "_finish", gone)
        assert "has not answered" in what(backfill())
        assert tried == ["b1"]

    @pytest.mark.parametrize("error", [RuntimeError, dg.DagsterExecutionInterruptedError])
    def test_what_is_finished_is_on_record_whatever_ends_the_run(
        self, backfill: Run, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, error: Any
    ) -> None:
        real = assets._finish

        def ended(*args: Any) -> Any:
            if args[-1] == "b2":
                raise error()
            return real(*args)

        monkeypatch.setattr(assets, "_finish", ended)
        with contextlib.suppress(dg.DagsterExecutionInterruptedError):
            backfill()
        assert set(self.materialized(instance, "batch_images")) == {"b1"}

    def test_one_file_cannot_be_several_batches(self, backfill: Run, tmp_path: Path) -> None:
        assert "cannot be 2 batches" in what(backfill(prompts=str(tmp_path / "prompts.csv")))


class TestRecord:
    def test_the_run_knows_its_batch_and_process(self, batch: Run, instance: dg.DagsterInstance) -> None:
        run = instance.get_run_by_id(batch().run_id)
        assert run is not None and run.tags["raynest/batch"] == "b1"
        assert "raynest/pid" in run.tags, "or nobody would notice when it is killed"

    def test_what_it_cost(self, batch: Run, up: Chain) -> None:
        priced = up.settings.model_copy(
            update={"batch": up.settings.batch.model_copy(update={"price_per_hour": Decimal("3600")})}
        )
        object.__setattr__(up, "settings", priced)
        found = metadata(batch())
        assert found["cost_per_image"] == pytest.approx(found["cost"] / 3, abs=0.001)
        assert found["cost"] == pytest.approx(found["seconds"], abs=0.02), "one unit a second"

    def test_the_slowest_are_listed(self, batch: Run) -> None:
        rows = [record.data for record in metadata(batch())["slowest"].records]
        times = [row["latency_ms"] for row in rows]
        assert len(rows) == 3 and times == sorted(times, reverse=True)

    def test_the_page_of_the_batch(self, batch: Run) -> None:
        result = batch()
        (event,) = result.asset_materializations_for_node("gallery")
        page = Path(str(event.metadata["page_path"].value))
        text = page.read_text()
        assert '"finished":3' in text and '"images/s"' in text
        assert (page.parent.parent / "index.html").is_file()
        assert (page.parent / "gallery" / "data-00000.js").read_text().count('"prompt"') == 3


class TestPace:
    def of(self, rate: float, earlier: list[float], share: float = 0.5, made: int = 10) -> Any:
        paces = [Pace(value, 10, "shapes") for value in earlier]
        return pace_check(Pace(rate, made, "shapes"), paces, share)

    def test_slower_than_the_share_of_the_median_is_a_warning(self) -> None:
        check = self.of(4.9, [10, 10, 1, 10, 30])
        assert not check.passed and check.severity is dg.AssetCheckSeverity.WARN
        assert self.of(5.0, [10, 10, 1, 10, 30]).passed

    def test_only_the_last_five_count(self) -> None:
        assert self.of(1.0, [1] * 5 + [1000] * 5).passed

    def test_the_first_batch_has_nothing_to_be_held_against(self) -> None:
        assert self.of(0.001, []).passed

    def test_a_run_that_found_most_of_a_batch_there_says_nothing(self) -> None:
        resumed = Pace(1, 10, "shapes", images=1000)
        assert pace_check(resumed, [Pace(100, 10, "shapes", images=10)], 0.5).passed
        assert pace_check(Pace(40, 10, "shapes", images=10), [resumed] * 5, 0.5).metadata[
            "compared_with"
        ] == dg.MetadataValue.int(0)
        assert not pace_check(Pace(1, 10, "shapes", images=20), [Pace(100, 10, "shapes")], 0.5).passed

    def test_an_endpoint_that_does_not_name_its_model_is_held_against_itself(
        self, instance: dg.DagsterInstance
    ) -> None:
        result = BatchResult(10, 0, 0, 1.0, None, None)
        record = dg.AssetMaterialization("batch_images", metadata=figures(result, 10, None))
        instance.report_runless_asset_event(record)
        earlier = earlier_paces(instance, dg.AssetKey("batch_images"))
        assert not pace_check(pace_of(BatchResult(10, 0, 0, 100.0, None, None)), earlier, 0.5).passed

    def test_another_model_or_a_handful_of_images_says_nothing(self) -> None:
        other = [Pace(100, 10, "other"), Pace(100, 3, "shapes")]
        assert pace_check(Pace(1, 10, "shapes"), other, 0.5).passed
        assert self.of(1, [100], made=3).passed


def png(text: str) -> bytes:
    """A picture that is all its own."""
    import hashlib
    import io

    from PIL import Image

    cells = Image.frombytes("RGB", (4, 4), hashlib.sha512(text.encode()).digest()[:48])
    buffer = io.BytesIO()
    cells.resize((32, 32), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def never_the_same(endpoint: Any) -> list[str]:
    """Let the endpoint paint another picture for each request; the requests, as they come."""
    asked: list[str] = []

    async def another(*_: Any) -> Any:
        asked.append("a")
        return await answering(png(f"picture {len(asked)}"))(*_)

    endpoint.by_prompt = dict.fromkeys(ALL, another)
    return asked


def answering(picture: bytes) -> Any:
    from aiohttp import web

    async def answer(*_: Any) -> web.StreamResponse:
        return web.Response(body=picture, content_type="image/png")

    return answer
