"""The RayService link: what it sees, what it applies, when it rebuilds, and when it believes a failure."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chain_kube import (
    APP,
    FakeKube,
    FakeServe,
    kube_error,
    no_kuberay,
    running,
    status_of,
    unauthorized,
    unreachable,
)
from chain_world import World

from raynest_pipeline.chain.endpoint import EndpointFinder
from raynest_pipeline.chain.link import State
from raynest_pipeline.chain.ray_service import RayServiceLink
from raynest_pipeline.errors import InputError, NotReadyError, RemoteError, Verdict
from raynest_pipeline.kube.client import RAY_SERVICE
from raynest_pipeline.kube.rayservice.serve_config import MANIFEST_VARIABLE
from raynest_pipeline.settings import Endpoint, RayServiceSettings, Settings
from raynest_pipeline.waiting import Deadline

NAME, NAMESPACE = "stable-diffusion", "raynest"
STOCK = Path(__file__).parent / "data" / "own-rayservice.yaml"

pytestmark = pytest.mark.usefixtures("serve")
MakeLink = Callable[..., RayServiceLink]


def live(kube: FakeKube) -> dict[str, Any]:
    return kube.objects["RayService", NAMESPACE, NAME]


def become(kube: FakeKube, status: dict[str, Any]) -> None:
    live(kube)["status"] = status


class TestObserve:
    def test_without_a_kubeconfig_it_is_missing(self, settings: Settings) -> None:
        def no_client() -> Any:
            raise NotReadyError("There is no kubeconfig.")

        link = RayServiceLink(settings, no_client, NAMESPACE, EndpointFinder(settings))
        seen = link.observe()
        assert (seen.state, seen.cause) == (State.MISSING, "There is no kubeconfig.")

    def test_a_kubeconfig_that_is_damaged_is_no_crash(self, settings: Settings) -> None:
        def no_client() -> Any:
            raise InputError("The kubeconfig is not usable.")

        link = RayServiceLink(settings, no_client, NAMESPACE, EndpointFinder(settings))
        assert link.observe().state in (State.MISSING, State.UNKNOWN, State.BROKEN)

    def test_nothing_there_is_missing(self, link: RayServiceLink) -> None:
        seen = link.observe()
        assert seen.state is State.MISSING and NAME in seen.cause

    def test_serving_is_ready_and_says_by_which_road(self, deployed: RayServiceLink) -> None:
        seen = deployed.observe()
        assert seen.ready
        proxy = f"https://47.1.0.1:6443/api/v1/namespaces/{NAMESPACE}/services"
        assert seen.facts["endpoint"] == f"{proxy}/{NAME}-serve-svc:8000/proxy"
        assert seen.facts["dashboard"] == f"{proxy}/{NAME}-head-svc:8265/proxy"
        assert seen.facts["route"] == "service-proxy"
        assert seen.facts["ray_version"] == "2.60.0"
        assert seen.facts["image"] == "rayproject/ray:2.60.0-py311-gpu"
        assert seen.facts["applications"] == f"{APP}: RUNNING"
        assert "s3cr3t" not in repr(seen)

    @pytest.mark.parametrize(
        ("status", "state"),
        [
            (status_of("DEPLOYING"), State.PENDING),
            (status_of("", reason="Initializing"), State.PENDING),
            (status_of("DEPLOY_FAILED", message="CUDA out of memory"), State.BROKEN),
            (status_of("UNHEALTHY", ready="True", reason="NonZeroServeEndpoints"), State.BROKEN),
            (status_of("RUNNING", reason="ZeroServeEndpoints"), State.BROKEN),
            (status_of("", reason="InitializingTimeout"), State.BROKEN),
            ({}, State.PENDING),
        ],
    )
    def test_the_status_decides_first(
        self, deployed: RayServiceLink, kube: FakeKube, status: dict[str, Any], state: State
    ) -> None:
        become(kube, status)
        assert deployed.observe().state is state

    def test_the_cause_is_the_applications(self, deployed: RayServiceLink, kube: FakeKube) -> None:
        become(kube, status_of("DEPLOY_FAILED", message="Traceback ...\nCUDA out of memory"))
        assert "CUDA out of memory" in deployed.observe().cause

    @pytest.mark.parametrize("error", [kube_error(Verdict.GONE, 404), kube_error(Verdict.RETRYABLE, 503)])
    def test_ready_that_does_not_serve_is_broken(
        self, deployed: RayServiceLink, serve: FakeServe, error: RemoteError
    ) -> None:
        serve.routes_now = error
        seen = deployed.observe()
        assert seen.state is State.BROKEN and "the status says ready" in seen.cause

    @pytest.mark.parametrize(
        "error",
        [
            unreachable(),
            unauthorized(),
            kube_error(Verdict.PERMANENT, 403),
            kube_error(Verdict.RETRYABLE, 429),
            kube_error(Verdict.RETRYABLE, 504),
            kube_error(Verdict.UNKNOWN),
        ],
    )
    def test_a_serve_that_could_not_be_asked_is_unknown(
        self, deployed: RayServiceLink, serve: FakeServe, error: RemoteError
    ) -> None:
        serve.routes_now = error
        assert deployed.observe().state is State.UNKNOWN

    def test_serve_that_runs_another_configuration_is_pending(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe
    ) -> None:
        assert deployed.observe().facts["confirmed"] is True
        old = running(kube)[APP]
        serve.deployed = {APP: replace(old, variables={**old.variables, MANIFEST_VARIABLE: "older"})}
        seen = deployed.observe()
        assert seen.state is State.PENDING and "configuration" in seen.cause
        serve.deployed = {}
        assert deployed.observe().state is State.PENDING

    @pytest.mark.parametrize(
        ("status", "state"),
        [("DEPLOYING", State.PENDING), ("DEPLOY_FAILED", State.BROKEN), ("UNHEALTHY", State.BROKEN)],
    )
    def test_serve_knows_sooner_than_the_status(
        self, deployed: RayServiceLink, kube: FakeKube, serve: FakeServe, status: str, state: State
    ) -> None:
        serve.deployed = running(kube, status)
        seen = deployed.observe()
        assert seen.state is state and status in seen.cause

    @pytest.mark.parametrize("error", [unreachable(), unauthorized(), kube_error(Verdict.GONE, 404)])
    def test_a_dashboard_that_does_not_answer_leaves_it_ready(
        self, deployed: RayServiceLink, serve: FakeServe, error: RemoteError
    ) -> None:
        serve.deployed = error
        seen = deployed.observe()
        assert seen.ready and seen.facts["confirmed"] is False

    @pytest.mark.parametrize(
        ("secret", "token"),
        [
            ({"auth_token": base64.b64encode(b"ray-t0ken").decode()}, "ray-t0ken"),
            ({"auth_token": "no base64!"}, None),
            ({}, None),
            (None, None),
        ],
    )
    def test_the_dashboard_is_asked_with_rays_own_token(
        self,
        make: MakeLink,
        kube: FakeKube,
        serve: FakeServe,
        deadline: Deadline,
        secret: dict[str, str] | None,
        token: str | None,
    ) -> None:
        link = make(ray_service=RayServiceSettings(token_auth="on"))
        if secret is not None:
            metadata = {"name": "sd-abcde", "namespace": NAMESPACE}
            kube.put({"kind": "Secret", "metadata": metadata, "data": secret})
        seen = link.ensure(deadline)
        assert set(serve.tokens) == {token}
        assert "ray-t0ken" not in repr(seen)

    def test_without_token_authentication_no_secret_is_read(
        self, deployed: RayServiceLink, serve: FakeServe
    ) -> None:
        assert set(serve.tokens) == {None}

    @pytest.mark.parametrize("annotations", [{"ray.io/kuberay-version": "v1.7.0"}, {}, None])
    def test_the_version_of_kuberay(
        self, deployed: RayServiceLink, kube: FakeKube, annotations: dict[str, str] | None
    ) -> None:
        if annotations is not None:
            metadata = {"name": "sd-abcde", "namespace": NAMESPACE, "annotations": annotations}
            kube.put({"kind": "RayCluster", "metadata": metadata})
        assert deployed.observe().facts["kuberay_version"] == ("v1.7.0" if annotations else "")

    def test_ready_without_a_route_is_broken(self, deployed: RayServiceLink, serve: FakeServe) -> None:
        serve.routes_now = {"/": "something-else"}
        seen = deployed.observe()
        assert (seen.state, seen.cause) == (State.BROKEN, f"Serve has no route to {APP}")

    @pytest.mark.parametrize("error", [unreachable(), unauthorized(), kube_error(Verdict.PERMANENT, 403)])
    def test_a_server_that_does_not_tell_is_unknown(
        self, deployed: RayServiceLink, kube: FakeKube, error: RemoteError
    ) -> None:
        kube.fail["get"] = [error]
        assert deployed.observe().state is State.UNKNOWN

    def test_a_cluster_without_kuberay_is_broken(self, link: RayServiceLink, kube: FakeKube) -> None:
        kube.fail["get"] = [no_kuberay()]
        assert link.observe().state is State.BROKEN

    def test_an_explicit_url_is_asked(
        self, make: MakeLink, kube: FakeKube, serve: FakeServe, deadline: Deadline
    ) -> None:
        link = make(endpoint=Endpoint(url="http://10.0.0.9:8000/"))
        link.ensure(deadline)
        assert set(serve.asked) == {"http://10.0.0.9:8000"}

    def test_a_load_balancer_without_an_address_is_told(
        self, make: MakeLink, deployed: RayServiceLink
    ) -> None:
        seen = make(endpoint=Endpoint(route="load-balancer")).observe()
        assert seen.state is State.BROKEN and "has no address" in seen.cause

    def test_clients_are_closed(self, deployed: RayServiceLink, kube: FakeKube) -> None:
        kube.fail["get"] = [unreachable()]
        deployed.observe()
        assert kube.clients == kube.closed


class TestPlanAndRemove:
    def test_a_plan_for_each_state(self, link: RayServiceLink, kube: FakeKube, world: World) -> None:
        assert [change.action for change in link.plan()] == ["create"]
        link.ensure(Deadline.after(600, world.clock))
        assert [change.action for change in link.plan()] == ["none"]
        become(kube, status_of("DEPLOYING"))
        assert [change.action for change in link.plan()] == ["wait"]
        become(kube, status_of("DEPLOY_FAILED"))
        assert "rebuild" in link.plan()[0].what
        kube.fail["get"] = [unreachable()]
        assert [change.action for change in link.plan()] == ["unknown"]

    def test_a_plan_sees_drift_and_changes_nothing(
        self, deployed: RayServiceLink, make: MakeLink, kube: FakeKube
    ) -> None:
        before = json.dumps(live(kube), sort_keys=True)
        (change,) = make(ray_service=RayServiceSettings(replicas=3)).plan()
        assert change.action == "update" and "settings" in change.why
        assert json.dumps(live(kube), sort_keys=True) == before

    def test_remove_takes_what_raynest_applied(
        self, deployed: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        labels = {"app.kubernetes.io/managed-by": "raynest"}
        kube.put(
            {"kind": "ConfigMap", "metadata": {"name": "x", "namespace": NAMESPACE, "labels": labels}},
            manager="helm",
        )
        changes = deployed.remove(deadline)
        assert [change.action for change in changes] == ["delete", "delete"]
        assert [key[0] for key in kube.objects] == ["Namespace", "ConfigMap"]
        assert kube.objects["ConfigMap", NAMESPACE, "x"]
        assert deployed.remove(deadline) == []

    def test_remove_leaves_somebody_elses_alone(
        self, link: RayServiceLink, kube: FakeKube, deadline: Deadline
    ) -> None:
        kube.put(
            {"kind": "RayService", "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": {}},
            manager="helm",
        )
        with pytest.raises(NotReadyError, match="left alone"):
            link.remove(deadline)
        assert kube.get(RAY_SERVICE, NAME, NAMESPACE) is not None

    def test_without_a_kubeconfig_there_is_nothing_to_remove(
        self, settings: Settings, deadline: Deadline
    ) -> None:
        def no_client() -> Any:
            raise NotReadyError("There is no kubeconfig.")

        link = RayServiceLink(settings, no_client, NAMESPACE, EndpointFinder(settings))
        assert link.remove(deadline) == []

    def test_a_finalizer_that_holds_it_is_not_taken_for_no_kubeconfig(
        self, deployed: RayServiceLink, kube: FakeKube, world: World
    ) -> None:
        kube.stuck = True
        with pytest.raises(NotReadyError, match="The deletion of RayService"):
            deployed.remove(Deadline.after(30, world.clock))
