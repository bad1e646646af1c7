"""The links as assets, and the jobs on them: what they record, and how they fail."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest
from chain_clock import no_balance, throttled
from chain_kube import FakeKube, status_of
from chain_world import World

from raynest_pipeline.alibaba.egress import Egress
from raynest_pipeline.chain.chain import Chain, Teardown
from raynest_pipeline.chain.link import Change, Observation, Step
from raynest_pipeline.defs.chain.assets import egress_result
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.metadata import metadata_of
from raynest_pipeline.defs.progress import listening, log_steps, tell
from raynest_pipeline.errors import NotReadyError, RaynestError, RefusedError, RemoteError, Verdict

LINKS = ["cluster", "public_ip", "kubeconfig", "ray_service"]
Run = Callable[..., dg.ExecuteInProcessResult]


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in event.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> Any:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


class TestProvision:
    def test_from_nothing_to_served(self, run: Run, chain: Chain, world: World) -> None:
        result = run("provision")
        assert result.success
        assert all(seen.ready for seen in chain.observe())
        checks = {
            (c.asset_key.to_user_string(), c.check_name): c for c in result.get_asset_check_evaluations()
        }
        assert set(checks) == {(link, "healthy") for link in LINKS} | {("public_ip", "worker_egress")}
        assert all(check.passed for check in checks.values())
        assert len(world.bought) == 2

    def test_what_a_person_looks_for_is_in_the_metadata(self, run: Run, world: World) -> None:
        result = run("provision")
        preflight = metadata(result, "preflight")
        assert preflight["price_per_hour"] == 19.09 and preflight["price_currency"] == "CNY"
        assert preflight["identity"] == "pass: RAMUser ada of account 1234"
        assert preflight["zone_id"] == "ap-southeast-1b"
        cluster = metadata(result, "cluster")
        assert cluster["instance_id"] == world.bought[0]
        assert cluster["price_per_hour"] == 19.09
        assert {"cluster_id", "region", "worker_type", "ray_dashboard", "namespace", "seconds"} <= set(
            cluster
        )
        assert metadata(result, "public_ip")["api_server"] == "https://47.1.0.1:6443"
        assert metadata(result, "kubeconfig")["path"].endswith("raynest/kubeconfig.yaml")
        service = metadata(result, "ray_service")
        assert service["first_image_bytes"] > 0 and service["ray_version"] == "2.60.0"

    def test_no_secret_is_anywhere_in_the_events(self, run: Run, world: World, chain: Chain) -> None:
        result = run("provision")
        text = repr(result.all_events)
        assert world.kubeconfig_token not in text
        (password,) = world.passwords
        assert len(password) > 8 and password not in text

    def test_again_nothing_is_bought_and_it_succeeds(self, run: Run, world: World) -> None:
        run("provision")
        world.stock, world.estimate, world.workers_price = [], None, None
        assert run("provision").success, "what is sold out now does not concern a cluster that is up"
        assert len(world.bought) == 2

    def test_a_refusal_buys_nothing_and_stops_there(self, run: Run, world: World) -> None:
        world.stock = []
        result = run("provision")
        assert not result.success and world.bought == []
        details = failure(result)
        assert details.user_failure_data.metadata["what"].value.startswith("Nothing was bought")
        assert "region_id" in details.user_failure_data.metadata["what to do"].value
        assert [e.step_key for e in result.all_events if e.is_step_failure] == ["preflight"]

    def test_a_worker_without_a_way_out_is_a_warning(self, run: Run, world: World) -> None:
        world.egress = Egress(False, "vpc-1 has no NAT gateway")
        result = run("provision")
        assert result.success
        (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == "worker_egress"]
        assert not check.passed and check.severity is dg.AssetCheckSeverity.WARN

    def test_redeploy_makes_what_is_broken_ready(self, run: Run, chain: Chain, kube: FakeKube) -> None:
        run("provision")
        key = ("RayService", "raynest", "stable-diffusion")
        kube.objects[key]["status"] = status_of("DEPLOY_FAILED", message="boom")
        result = run("redeploy", asset_selection=[dg.AssetKey("ray_service")])
        assert result.success
        assert [e.asset_key.to_user_string() for e in result.get_asset_materialization_events()] == [
            "ray_service"
        ]
        assert all(seen.ready for seen in chain.observe())

    def test_steps_are_logged_once_and_told_to_listeners(self, run: Run) -> None:
        told: list[Any] = []
        with listening(told.append):
            run("provision")
        links = [event.link for event in told if isinstance(event, Observation)]
        assert links == ["preflight", *LINKS]
        assert all(
            isinstance(event.facts["seconds"], float) for event in told if isinstance(event, Observation)
        )
        assert any(isinstance(event, Step) and "binding" in event.message for event in told)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "retries"),
        [
            (RefusedError("a", why="b", fix="c"), False),
            (NotReadyError("a", why="b", fix="c"), False),
            (throttled(), True),
            (RemoteError("a", verdict=Verdict.UNKNOWN, why="b", fix="c"), True),
            (no_balance(), False),
            (RemoteError("a", verdict=Verdict.GONE), False),
        ],
    )
    def test_only_what_may_succeed_unchanged_is_retried(self, error: RaynestError, retries: bool) -> None:
        with pytest.raises(dg.Failure) as caught, as_failure():
            raise error
        assert caught.value.allow_retries is retries
        assert caught.value.__cause__ is error
        assert caught.value.description == str(error)
        told = {key: value.value for key, value in caught.value.metadata.items()}
        wanted = {"what": error.what, "why": error.why, "what to do": error.fix}
        assert told == {key: text for key, text in wanted.items() if text}

    def test_other_errors_are_not_dressed_up(self) -> None:
        with pytest.raises(KeyError), as_failure():
            raise KeyError("a bug")

    def test_a_failed_purchase_reaches_the_run_with_its_words(self, run: Run, world: World) -> None:
        world.faults["create_instance"] = [no_balance()]
        result = run("provision")
        data = failure(result).user_failure_data
        assert "InsufficientBalance" in data.metadata["why"].value

    def test_listeners_hear_the_error(self, run: Run, world: World) -> None:
        world.stock = []
        told: list[Any] = []
        with listening(told.append):
            run("provision")
        assert [type(event) for event in told] == [RefusedError]


class TestPlanAndTeardown:
    def test_a_plan_changes_nothing_and_is_a_table(self, run: Run, world: World, chain: Chain) -> None:
        told: list[Any] = []
        with listening(told.append):
            result = run("plan")
        assert result.success and world.bought == [] and not chain.wanted
        (changes,) = [event for event in told if isinstance(event, list)]
        assert all(isinstance(change, Change) for change in changes)
        (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
        table = output.step_output_data.metadata["plan"]
        assert [record.data["action"] for record in table.records] == [change.action for change in changes]

    def test_a_plan_runs_while_another_run_changes_the_chain(self, run: Run, chain: Chain) -> None:
        with chain.writing():
            assert run("plan").success

    def test_teardown_removes_everything(self, run: Run, world: World, chain: Chain) -> None:
        run("provision")
        told: list[Any] = []
        with listening(told.append):
            result = run("teardown")
        assert result.success and world.alive() == [] and not chain.wanted
        (done,) = [event for event in told if isinstance(event, Teardown)]
        assert done.left == ()

    def test_what_is_left_fails_the_run_and_is_named(
        self, run: Run, chain: Chain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Chain, "audit", lambda _: ("EIP 47.1.0.9 (eip-9, Available)",))
        result = run("teardown")
        assert not result.success
        assert "eip-9" in failure(result).user_failure_data.metadata["what"].value


class TestMetadata:
    def test_each_fact_has_its_kind(self) -> None:
        found = metadata_of(
            {
                "flag": True,
                "count": 3,
                "share": 1 / 3,
                "price": Decimal("19.0912345"),
                "took": timedelta(seconds=90),
                "names": ("a", "b"),
                "kubeconfig_path": "/home/x",
                "dashboard": "http://1.2.3.4",
                "text": "plain",
                "nothing": None,
                "empty": "",
            }
        )
        assert {key: type(value).__name__ for key, value in found.items()} == {
            "flag": "BoolMetadataValue",
            "count": "IntMetadataValue",
            "share": "FloatMetadataValue",
            "price": "FloatMetadataValue",
            "took": "FloatMetadataValue",
            "names": "TextMetadataValue",
            "kubeconfig_path": "PathMetadataValue",
            "dashboard": "UrlMetadataValue",
            "text": "TextMetadataValue",
        }
        assert found["share"].value == 0.3333 and found["price"].value == 19.0912

    @pytest.mark.parametrize(
        ("value", "passed"), [("yes", True), ("no: nothing", False), ("unknown: denied", True), (None, True)]
    )
    def test_egress_as_a_check(self, value: str | None, passed: bool) -> None:
        facts: dict[str, object] = {"worker_egress": dg.MetadataValue.text(value)} if value else {}
        result = egress_result(facts)
        assert result.passed is passed and result.severity is dg.AssetCheckSeverity.WARN


class TestProgress:
    def test_a_message_is_logged_once_in_a_row(self) -> None:
        lines: list[str] = []

        class Log:
            def info(self, line: str) -> None:
                lines.append(line)

        on_step = log_steps(Log())
        for message in ("a", "a", "b", "a"):
            on_step(Step("cluster", message))
        assert lines == ["cluster: a", "cluster: b", "cluster: a"]

    def test_a_listener_hears_only_inside_its_context(self) -> None:
        heard: list[str] = []
        with pytest.raises(KeyError), listening(heard.append):
            tell("in")
            raise KeyError
        tell("out")
        assert heard == ["in"]
