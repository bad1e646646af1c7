"""The cluster_health sensor over a chain in memory: what it records, asks for, and leaves alone."""

import json
import time
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from chain_kube import FakeKube, status_of, unreachable
from chain_world import World
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.link import Observation, State
from raynest_pipeline.chain.repair import History
from raynest_pipeline.dagster_home import pid_tag
from raynest_pipeline.defs.chain.sensors import IN_FLIGHT, build_cluster_health_sensor, evaluations
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import AccessError, NotReadyError

LINKS = ["cluster", "public_ip", "kubeconfig", "ray_service"]
Tick = Callable[..., dg.SensorResult]


@pytest.fixture
def tick(opened: list[dict[str, Any]], chain: Chain, instance: dg.DagsterInstance) -> Tick:
    """One tick of the sensor; `history` is what the last one left."""

    def evaluate(history: History | None = None, cursor: str | None = None) -> dg.SensorResult:
        text = json.dumps(history.dump()) if history else cursor
        context = dg.build_sensor_context(
            instance=instance, cursor=text, resources={"raynest": RaynestResource()}
        )
        result = build_cluster_health_sensor(chain.settings)(context)
        assert isinstance(result, dg.SensorResult)
        return result

    return evaluate


@pytest.fixture
def broken(up: Chain, kube: FakeKube) -> Chain:
    """Up, but its application has failed."""
    kube.objects["RayService", "raynest", "stable-diffusion"]["status"] = status_of(
        "DEPLOY_FAILED", message="CUDA out of memory"
    )
    return up


def suspect(**more: Any) -> History:
    return History(incident="77", bad=1, **more)


def events(result: dg.SensorResult) -> dict[str, Any]:
    return {event.asset_key.to_user_string(): event for event in result.asset_events}


def history_of(result: dg.SensorResult) -> History:
    assert result.cursor is not None
    return History.load(json.loads(result.cursor))


class TestHealthy:
    def test_every_link_has_its_check_and_no_run_is_asked_for(self, up: Chain, tick: Tick) -> None:
        result = tick()
        assert result.run_requests == []
        assert list(events(result)) == LINKS
        for event in events(result).values():
            assert isinstance(event, dg.AssetCheckEvaluation)
            assert event.passed and event.check_name == "healthy"
            assert event.description == "ready"
            assert event.metadata["state"].value == "ready"
            assert "seen_at" in event.metadata
        assert "every link is ready" in str(result.skip_reason)

    def test_an_incident_is_over(self, up: Chain, tick: Tick) -> None:
        ready_long = suspect(attempt=2, ready_since=time.time() - 4000)
        assert history_of(tick(ready_long)) == History()

    def test_no_secret_is_recorded(self, up: Chain, tick: Tick, world: World) -> None:
        assert world.kubeconfig_token not in repr(tick())

    def test_it_waits_for_nothing(self, up: Chain, tick: Tick, world: World) -> None:
        before = world.clock.seconds
        tick()
        assert world.clock.seconds == before


class TestBroken:
    def test_the_first_bad_tick_is_recorded_and_waited_out(self, broken: Chain, tick: Tick) -> None:
        result = tick()
        assert result.run_requests == []
        event = events(result)["ray_service"]
        assert not event.passed and event.severity is dg.AssetCheckSeverity.ERROR
        assert "CUDA out of memory" in event.description
        assert event.metadata["state"].value == "broken"
        assert [key for key, item in events(result).items() if item.passed] == LINKS[:3]
        assert "1 of 2" in str(result.skip_reason)
        assert history_of(result).bad == 1

    def test_the_second_asks_for_one_redeploy(self, broken: Chain, tick: Tick) -> None:
        result = tick(history_of(tick()))
        (request,) = result.run_requests or []
        assert request.asset_selection == [dg.AssetKey("ray_service")]
        assert request.tags["raynest/changes"] == "chain"
        assert request.tags["raynest/broken"] == "ray_service"
        assert request.tags["raynest/attempt"] == "1"
        assert request.run_key == f"redeploy:{request.tags['raynest/incident']}:1"
        assert result.skip_reason is None
        assert len(result.asset_events) == 4, "the repair does not hide the state"

    def test_from_the_first_broken_link_to_the_end(self, broken: Chain, tick: Tick) -> None:
        broken.kubeconfig_path.unlink()
        (request,) = tick(suspect()).run_requests or []
        assert request.asset_selection == [dg.AssetKey("kubeconfig"), dg.AssetKey("ray_service")]

    def test_the_request_is_one_that_the_redeploy_job_takes(
        self, broken: Chain, tick: Tick, definitions: dg.Definitions
    ) -> None:
        (request,) = tick(suspect()).run_requests or []
        selected = set(definitions.resolve_job_def("redeploy").asset_layer.selected_asset_keys)
        assert set(request.asset_selection or []) <= selected
        assert definitions.resolve_sensor_def("cluster_health").job_name == "redeploy"

    def test_after_a_repair_comes_the_cool_down(self, broken: Chain, tick: Tick) -> None:
        repaired = history_of(tick(suspect()))
        once = history_of(tick(repaired))
        result = tick(once)
        assert result.run_requests == [] and "cooling down" in str(result.skip_reason)

    def test_no_second_attempt_shares_a_run_key(self, broken: Chain, tick: Tick) -> None:
        first = (tick(suspect()).run_requests or [])[0]
        later = (tick(suspect(attempt=1, attempted_at=time.time() - 1000)).run_requests or [])[0]
        assert first.run_key != later.run_key

    def test_the_limit_of_attempts_is_kept(self, broken: Chain, tick: Tick) -> None:
        result = tick(suspect(attempt=3, attempted_at=time.time() - 10_000))
        assert result.run_requests == [] and "a person must look" in str(result.skip_reason)

    @pytest.mark.parametrize("cursor", [None, "", "{", "null", "[]", '{"v": 99}', '{"v": 1, "bad": "x"}'])
    def test_any_cursor_is_taken(self, broken: Chain, tick: Tick, cursor: str | None) -> None:
        assert history_of(tick(cursor=cursor)).bad == 1


class TestRunsInFlight:
    @pytest.mark.parametrize("status", IN_FLIGHT)
    def test_none_is_started_while_one_is_at_work(
        self, broken: Chain, tick: Tick, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
    ) -> None:
        instance.add_run(_run(status, {"raynest/changes": "chain"}))
        result = tick(suspect())
        assert result.run_requests == [] and "a run is at work" in str(result.skip_reason)
        assert history_of(result).bad == 0

    @pytest.mark.parametrize(
        ("status", "tags"),
        [
            (dg.DagsterRunStatus.SUCCESS, {"raynest/changes": "chain"}),
            (dg.DagsterRunStatus.FAILURE, {"raynest/changes": "chain"}),
            (dg.DagsterRunStatus.CANCELED, {"raynest/changes": "chain"}),
            (dg.DagsterRunStatus.STARTED, {}),
        ],
    )
    def test_finished_and_other_runs_do_not_count(
        self,
        broken: Chain,
        tick: Tick,
        instance: dg.DagsterInstance,
        status: dg.DagsterRunStatus,
        tags: dict[str, str],
    ) -> None:
        instance.add_run(_run(status, tags))
        assert len(tick(suspect()).run_requests or []) == 1

    def test_a_run_whose_process_was_killed_does_not_count(
        self, broken: Chain, tick: Tick, instance: dg.DagsterInstance
    ) -> None:
        import subprocess

        ended = subprocess.Popen(["true"])
        tags = {"raynest/changes": "chain", **pid_tag(ended.pid)}
        ended.wait()
        run = instance.add_run(_run(dg.DagsterRunStatus.STARTED, tags))
        assert len(tick(suspect()).run_requests or []) == 1
        # It is on record as ended, too: else Dagster's own queue would hold its place for ever.
        found = instance.get_run_by_id(run.run_id)
        assert found is not None and found.status is dg.DagsterRunStatus.FAILURE


class TestUnknownAndUnwanted:
    def test_unknown_is_a_warning_and_no_reason_to_repair(
        self, up: Chain, tick: Tick, kube: FakeKube
    ) -> None:
        kube.fail["get"] = [unreachable(), unreachable()]
        result = tick(suspect())
        event = events(result)["ray_service"]
        assert not event.passed and event.severity is dg.AssetCheckSeverity.WARN
        assert result.run_requests == []
        assert history_of(result).bad == 0

    def test_a_chain_that_nobody_wants_is_left_alone_and_not_recorded(
        self, chain: Chain, tick: Tick, opened: list[dict[str, Any]]
    ) -> None:
        result = tick(suspect())
        assert result.run_requests == [] and result.asset_events == []
        assert "nobody asked for it" in str(result.skip_reason)
        assert opened[0]["start_sandbox"] is False

    def test_a_wanted_one_may_start_its_sandbox_within_the_ticks_budget(
        self, up: Chain, tick: Tick, opened: list[dict[str, Any]]
    ) -> None:
        tick()
        assert opened[0]["start_sandbox"] is True
        assert opened[0]["patience_seconds"] <= up.settings.health.tick_seconds

    def test_after_a_teardown_nothing_is_repaired(self, up: Chain, tick: Tick) -> None:
        up.teardown()
        result = tick(suspect())
        assert result.run_requests == [] and result.asset_events == []

    def test_a_vanished_cluster_is_not_bought_again(self, up: Chain, tick: Tick, world: World) -> None:
        next(iter(world.instances.values())).deleted_at = -1000.0
        result = tick(suspect())
        assert result.run_requests == [] and "health.buy_cluster" in str(result.skip_reason)
        assert not events(result)["cluster"].passed

    @pytest.mark.parametrize("error", [NotReadyError("The sandbox is not running."), AccessError("No keys.")])
    def test_a_chain_that_cannot_be_opened_is_unknown(
        self, up: Chain, tick: Tick, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def refuse(*_: Any, **__: Any) -> Chain:
            raise error

        monkeypatch.setattr("raynest_pipeline.defs.resources.open_chain", refuse)
        result = tick(suspect())
        assert result.run_requests == [] and result.asset_events == []
        assert str(error.args[0]) in str(result.skip_reason)
        assert history_of(result).bad == 1, "an incident is not forgotten for it"

    def test_credentials_that_are_gone_are_unknown_too(self, up: Chain, tick: Tick, world: World) -> None:
        gone = [AccessError("There are no Alibaba Cloud credentials.") for _ in range(10)]
        world.faults["find_instances"] = list(gone)
        result = tick(suspect())
        assert result.run_requests == []
        assert history_of(result).bad == 0

    def test_a_link_that_hangs_is_unknown_within_the_budget(
        self, up: Chain, tick: Tick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import threading

        release = threading.Event()

        def hang() -> Observation:
            release.wait(60)
            return Observation("ray_service", State.READY)

        monkeypatch.setattr(up.ray_service, "observe", hang)
        health = up.settings.health.model_copy(update={"tick_seconds": 0.3})
        object.__setattr__(up, "settings", up.settings.model_copy(update={"health": health}))
        started = time.monotonic()
        result = tick(suspect())
        release.set()
        assert time.monotonic() - started < 20
        assert events(result)["ray_service"].metadata["state"].value == "unknown"
        assert result.run_requests == []


@pytest.mark.parametrize(
    ("state", "passed", "severity"),
    [
        (State.READY, True, None),
        (State.PENDING, False, dg.AssetCheckSeverity.WARN),
        (State.UNKNOWN, False, dg.AssetCheckSeverity.WARN),
        (State.MISSING, False, dg.AssetCheckSeverity.ERROR),
        (State.BROKEN, False, dg.AssetCheckSeverity.ERROR),
    ],
)
def test_a_state_as_a_check(state: State, passed: bool, severity: dg.AssetCheckSeverity | None) -> None:
    (event,) = evaluations([Observation("cluster", state, "why", {"instance_id": "si-1"})])
    assert event.passed is passed
    assert severity is None or event.severity is severity
    assert event.description == "why"
    assert event.metadata["instance_id"].value == "si-1"


def _run(status: dg.DagsterRunStatus, tags: dict[str, str]) -> dg.DagsterRun:
    # A queued run must say where it came from.
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "raynest"), "redeploy"
    )
    return dg.DagsterRun(job_name="redeploy", status=status, tags=tags, remote_job_origin=origin)
