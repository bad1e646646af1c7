"""A RayService from its creation to its end, over nodes that only answer as Ray does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raynest_pipeline.sandbox.kuberay import objects

VERSIONS = ["1.3.0", "1.7.0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_goes_from_nothing_to_ready(make_world: Any, rayservice: dict[str, Any], version: str) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            changes = world.store.subscribe("rayservices")
            world.apply(rayservice)
            await world.ready()
            seen = []
            while not changes.empty():
                kind, obj = changes.get_nowait()
                status = obj.get("status") or {}
                conditions = {each["type"]: each["reason"] for each in status.get("conditions") or ()}
                pending = (status.get("pendingServiceStatus") or {}).get("applicationStatuses") or {}
                seen.append((kind, conditions.get("Ready"), pending.get("app", {}).get("status")))
            # The order that a watch showed on a real API server.
            assert seen[0] == ("ADDED", None, None)
            initializing = [each for each in seen if each[1] == "Initializing"]
            assert initializing[0] == ("MODIFIED", "Initializing", None)
            assert ("MODIFIED", "Initializing", "DEPLOYING") in initializing
            assert seen[-1] == ("MODIFIED", "NonZeroServeEndpoints", None)
            assert world.reasons() == {
                "Ready": ("True", "NonZeroServeEndpoints"),
                "UpgradeInProgress": ("False", "NoPendingCluster"),
            }
            assert world.applications() == {"app": "RUNNING"}
            assert world.applications("pendingServiceStatus") == {}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("version", "prefix", "finalizers", "query", "generation"),
    [
        ("1.3.0", "demo-raycluster-", None, "", 1),
        ("1.7.0", "demo-", ["ray.io/rayservice-finalizer"], "api_type=declarative", 2),
    ],
)
def test_differs_by_release(
    make_world: Any,
    rayservice: dict[str, Any],
    version: str,
    prefix: str,
    finalizers: list[str] | None,
    query: str,
    generation: int,
) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            world.apply(rayservice)
            await world.ready()
            name = world.status()["activeServiceStatus"]["rayClusterName"]
            assert name.startswith(prefix)
            assert len(name) == len(prefix) + 5
            assert world.service()["metadata"].get("finalizers") == finalizers
            assert world.service()["metadata"]["generation"] == generation
            assert world.status()["observedGeneration"] == generation
            assert set(world.heads[0].serve.queries) == {query}
            cluster = world.store.get("rayclusters", "ray", name)
            assert cluster["metadata"]["annotations"]["ray.io/kuberay-version"] == f"v{version}"

    asyncio.run(scenario())


def test_services_appear_only_when_the_applications_run(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.outcome = lambda app: "DEPLOYING"
            world.apply(rayservice)
            await world.until(lambda: world.applications("pendingServiceStatus") == {"app": "DEPLOYING"})
            cluster = world.status()["pendingServiceStatus"]["rayClusterName"]
            assert [objects.name_of(each) for each in world.store.list("services", "ray")] == [
                f"{cluster}-head-svc"
            ]
            assert world.operator.resolve("ray", f"{cluster}-head-svc", "dashboard") == (
                "127.0.0.1",
                world.heads[0].ports["dashboard"],
            )
            world.heads[0].serve.outcome = lambda app: "RUNNING"
            await world.ready()
            names = {objects.name_of(each) for each in world.store.list("services", "ray")}
            assert names == {f"{cluster}-head-svc", "demo-head-svc", "demo-serve-svc"}
            assert world.operator.resolve("ray", "demo-serve-svc", "8000") is not None
            assert world.operator.resolve("ray", "demo-serve-svc", "serve") is not None
            assert world.operator.resolve("ray", "demo-serve-svc", "8001") is None
            assert world.operator.resolve("ray", "nope", "8000") is None

    asyncio.run(scenario())


def test_put_carries_the_config_and_a_port_of_its_own(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            (body,) = world.heads[0].serve.puts
            assert body["applications"] == [
                {"name": "app", "route_prefix": "/", "import_path": "app:entrypoint"}
            ]
            assert body["http_options"] == {"host": "127.0.0.1", "port": world.heads[0].ports["serve"]}

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_identical_apply_does_nothing(make_world: Any, rayservice: dict[str, Any], version: str) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            world.apply(rayservice)
            await world.ready()
            before = world.service()["metadata"]
            asked = len(world.heads[0].serve.queries)
            world.apply(rayservice)
            await world.until(lambda: len(world.heads[0].serve.queries) > asked + 5)
            if version == "1.3.0":
                assert world.service()["metadata"] == before
            else:
                # As recorded: the empty fields that the operator added are replaced, once.
                assert world.service()["metadata"]["generation"] == before["generation"] + 1
            assert len(world.heads[0].serve.puts) == 1
            assert len(world.clusters()) == 1

    asyncio.run(scenario())


def test_config_text_is_put_in_place(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            cluster = world.clusters()
            rayservice["spec"]["serveConfigV2"] += "# only a comment\n"
            world.apply(rayservice)
            await world.until(lambda: len(world.heads[0].serve.puts) == 2)
            assert world.clusters() == cluster
            assert world.heads[0].serve.puts[0] == world.heads[0].serve.puts[1]

    asyncio.run(scenario())


def test_failed_application_heals_only_by_another_text(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.until(lambda: world.heads)
            serve = world.heads[0].serve
            serve.outcome, serve.message = (lambda app: "DEPLOY_FAILED"), "Failed to update the deployments"
            await world.until(lambda: world.applications("pendingServiceStatus") == {"app": "DEPLOY_FAILED"})
            serve.outcome = lambda app: "RUNNING"
            asked = len(serve.queries)
            world.apply(rayservice)
            await world.until(lambda: len(serve.queries) > asked + 5)
            assert world.applications("pendingServiceStatus") == {"app": "DEPLOY_FAILED"}
            app = world.status()["pendingServiceStatus"]["applicationStatuses"]["app"]
            assert app["message"] == "Failed to update the deployments"
            rayservice["spec"]["serveConfigV2"] += "  runtime_env: {env_vars: {NONCE: '2'}}\n"
            world.apply(rayservice)
            await world.ready()

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_delete_leaves_nothing(
    make_world: Any, rayservice: dict[str, Any], version: str, propagation: str
) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            world.apply(rayservice)
            await world.ready()
            world.store.delete("rayservices", "ray", "demo", propagation=propagation)
            for resource in ("rayservices", "rayclusters", "pods", "services", "endpoints"):
                await world.until(lambda each=resource: not world.store.list(each, "ray"), resource)
            await world.until(lambda: not list((world.directory / "kuberay" / "pods").iterdir()))

    asyncio.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_deleting_the_namespace_leaves_nothing(
    make_world: Any, rayservice: dict[str, Any], version: str
) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            world.apply(rayservice)
            await world.ready()
            world.store.delete("namespaces", None, "ray")
            await world.until(lambda: world.store.get("namespaces", None, "ray") is None)
            await world.until(lambda: not list((world.directory / "kuberay" / "pods").iterdir()))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("version", "condition"), [("1.3.0", None), ("1.7.0", ("False", "ValidationFailed"))]
)
def test_too_long_a_name_is_refused(
    make_world: Any, rayservice: dict[str, Any], version: str, condition: tuple[str, str] | None
) -> None:
    async def scenario() -> None:
        async with make_world(version) as world:
            name = "a" * 48
            rayservice["metadata"]["name"] = name
            world.apply(rayservice)
            await world.until(lambda: "InvalidRayServiceMetadata" in world.event_reasons())
            if condition is not None:
                await world.until(lambda: world.reasons(name).get("Ready") == condition)
            assert world.clusters() == []

    asyncio.run(scenario())


def test_initializing_timeout_is_terminal(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0", gpus=0) as world:
            # From the start: a second is enough for an application that can become ready to do so.
            world.outcome = lambda app: "DEPLOYING"
            rayservice["metadata"]["annotations"] = {"ray.io/initializing-timeout": "1"}
            rayservice["spec"]["rayClusterDeletionDelaySeconds"] = 0
            world.apply(rayservice)
            await world.until(lambda: world.reasons().get("Ready") == ("False", "InitializingTimeout"))
            message = objects.condition(world.service(), "Ready")["message"]
            assert message.startswith(
                "RayService failed to become ready within the configured timeout of 1s. Time spent"
            )
            await world.until(lambda: world.clusters() == [])
            assert "rayClusterName" not in world.status()["pendingServiceStatus"]
            rayservice["spec"]["serveConfigV2"] += "# a change doesn't help\n"
            world.apply(rayservice)
            await world.until(lambda: world.service()["metadata"]["generation"] == 3)
            assert world.reasons()["Ready"] == ("False", "InitializingTimeout")
            assert world.clusters() == []

    asyncio.run(scenario())


def test_refused_config_is_an_event_and_freezes_the_status(
    make_world: Any, rayservice: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.until(lambda: world.heads)
            world.heads[0].serve.broken = True
            await world.until(lambda: "FailedToUpdateServeApplications" in world.event_reasons())
            message = dict(world.events())["FailedToUpdateServeApplications"]
            assert "400 1 validation error for ServeDeploySchema" in message
            assert world.applications("pendingServiceStatus") == {}
            world.heads[0].serve.broken = False
            await world.ready()

    asyncio.run(scenario())


def test_config_that_is_no_yaml_is_an_event(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            rayservice["spec"]["serveConfigV2"] = "applications: ["
            world.apply(rayservice)
            await world.until(lambda: "FailedToUpdateServeApplications" in world.event_reasons())
            assert "serveConfigV2" in dict(world.events())["FailedToUpdateServeApplications"]

    asyncio.run(scenario())


def test_silent_dashboard_freezes_the_status(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            serve = world.heads[0].serve
            serve.silent = True
            serve.statuses["app"] = "UNHEALTHY"
            rayservice["spec"]["serveConfigV2"] += "# not seen while the dashboard is silent\n"
            world.apply(rayservice)
            await world.until(lambda: world.service()["metadata"]["generation"] == 2)
            assert world.applications() == {"app": "RUNNING"}
            assert len(serve.puts) == 1
            serve.silent = False
            await world.until(lambda: world.applications() == {"app": "UNHEALTHY"})
            # Ready means that there are endpoints, not that the application is well.
            assert world.reasons()["Ready"][0] == "True"

    asyncio.run(scenario())


def test_head_without_its_serve_port_gets_no_serve_service(
    make_world: Any, rayservice: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            container = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"][
                "containers"
            ][0]
            container["ports"] = [{"name": "dashboard", "containerPort": 8265}]
            world.apply(rayservice)
            await world.until(lambda: world.store.get("services", "ray", "demo-head-svc"))
            assert world.store.get("services", "ray", "demo-serve-svc") is None
            assert world.reasons()["Ready"] == ("False", "Initializing")

    asyncio.run(scenario())


def test_serve_service_can_be_shaped(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            annotations = {"service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type": "intranet"}
            rayservice["spec"]["serveService"] = {
                "metadata": {"name": "front", "annotations": annotations},
                "spec": {"type": "LoadBalancer"},
            }
            world.apply(rayservice)
            await world.ready()
            service = world.store.get("services", "ray", "front")
            assert service["spec"]["type"] == "LoadBalancer"
            assert service["metadata"]["annotations"] == annotations
            assert service["spec"]["selector"]["ray.io/serve"] == "true"

    asyncio.run(scenario())


def test_head_can_be_left_out_of_the_endpoints(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0") as world:
            rayservice["spec"]["excludeHeadPodFromServeSvc"] = True
            world.apply(rayservice)
            await world.ready(endpoints=1)
            assert world.pods("head")[0]["metadata"]["labels"]["ray.io/serve"] == "false"

    asyncio.run(scenario())


def test_token_authentication(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0") as world:
            rayservice["spec"]["rayClusterConfig"]["authOptions"] = {"mode": "token"}
            world.apply(rayservice)
            await world.ready()
            (name,) = world.clusters()
            secret = world.store.get("secrets", "ray", name)
            assert set(secret["data"]) == {"auth_token"}
            head, worker = world.heads[0], world.workers[0]
            assert head.env["RAY_AUTH_MODE"] == worker.env["RAY_AUTH_MODE"] == "token"
            assert head.env["RAY_AUTH_TOKEN"] == worker.env["RAY_AUTH_TOKEN"]
            assert set(head.serve.tokens) == {f"Bearer {head.env['RAY_AUTH_TOKEN']}"}
            world.store.delete("rayservices", "ray", "demo")
            await world.until(lambda: world.store.get("secrets", "ray", name) is None)

    asyncio.run(scenario())


def test_token_of_ones_own(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0") as world:
            options = {"mode": "token", "secretName": "mine"}
            rayservice["spec"]["rayClusterConfig"]["authOptions"] = options
            world.apply(rayservice)
            await world.until(lambda: "Failed" in world.event_reasons())
            assert ("Failed", 'secret "mine" not found') in world.events()
            head = world.pods("head")[0]["status"]["containerStatuses"][0]["state"]["waiting"]
            assert head == {"reason": "CreateContainerConfigError", "message": 'secret "mine" not found'}
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": "ray"}}
            world.store.create("secrets", secret | {"stringData": {"auth_token": "abc"}}, manager="test")
            await world.ready()
            assert set(world.heads[0].serve.tokens) == {"Bearer abc"}

    asyncio.run(scenario())
