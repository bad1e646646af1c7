"""Pods: placement, pulling, volumes, crashes, faults, restarts; over nodes that only answer as Ray does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raynest_pipeline.sandbox.kuberay import objects


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(pod["status"]["containerStatuses"][0])


def test_pod_shows_each_step_of_its_life(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            changes = world.store.subscribe("pods")
            world.apply(rayservice)
            await world.ready()
            steps: dict[str, list[str]] = {"head": [], "worker": []}
            while not changes.empty():
                _, pod = changes.get_nowait()
                container = pod["status"].get("containerStatuses", [{}])[0]
                state = container.get("state") or {"": {}}
                ((kind, details),) = state.items()
                shown = details.get("reason", "ready" if container.get("ready") else kind)
                steps[pod["metadata"]["labels"]["ray.io/node-type"]].append(shown)
            assert list(dict.fromkeys(steps["head"])) == ["", "ContainerCreating", "running", "ready"]
            assert list(dict.fromkeys(steps["worker"])) == ["", "PodInitializing", "running", "ready"]
            pod = world.pods("worker")[0]
            init = pod["status"]["initContainerStatuses"][0]
            assert init["name"] == "wait-gcs-ready"
            assert init["state"]["terminated"]["exitCode"] == 0
            assert [each["type"] for each in pod["status"]["conditions"]] == [
                "PodReadyToStartContainers",
                "Initialized",
                "Ready",
                "ContainersReady",
                "PodScheduled",
            ]
            assert pod["status"]["qosClass"] == "Guaranteed"
            assert pod["status"]["podIP"].startswith("10.244.")
            reasons = [reason for reason, _ in world.events("head")]
            assert {"Scheduled", "Pulling", "Pulled", "Created", "Started"} <= set(reasons)

    asyncio.run(scenario())


def test_resources_become_ray_start_flags(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
            head["rayStartParams"] = {"num-cpus": "0"}
            world.apply(rayservice)
            await world.ready()
            gibibyte = 1024**3
            assert world.heads[0].resources == {"num-cpus": "0", "memory": str(8 * gibibyte)}
            assert world.workers[0].resources == {
                "num-cpus": "3",
                "memory": str(12 * gibibyte),
                "num-gpus": "1",
            }
            command = world.pods("worker")[0]["spec"]["containers"][0]["args"][0]
            assert "ray start --block" in command
            assert "--num-gpus=1" in command

    asyncio.run(scenario())


def test_files_and_variables_reach_the_container(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            secret = {"metadata": {"name": "keys", "namespace": "ray"}, "stringData": {"token": "s3cret"}}
            world.store.create("secrets", secret, manager="test")
            code = {"metadata": {"name": "code", "namespace": "ray"}, "data": {"main": "print(1)\n"}}
            world.store.create("configmaps", code, manager="test")
            config = rayservice["spec"]["rayClusterConfig"]
            spec = config["headGroupSpec"]["template"]["spec"]
            items = [{"key": "main", "path": "pkg/main.py"}]
            spec["volumes"] = [{"name": "code", "configMap": {"name": "code", "items": items}}]
            spec["containers"][0] |= {
                "volumeMounts": [{"name": "code", "mountPath": "/opt/raynest"}],
                "env": [
                    {"name": "PYTHONPATH", "value": "/opt/raynest:/other"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
            }
            rayservice["spec"]["serveConfigV2"] += (
                "  runtime_env: {env_vars: {PYTHONPATH: /opt/raynest}}\n"
                "  args: {file: /opt/raynest/pkg/main.py}\n"
            )
            world.apply(rayservice)
            await world.ready()
            head = world.heads[0]
            folder, _, other = head.env["PYTHONPATH"].partition(":")
            assert other == "/other"
            assert folder.endswith("/root/opt/raynest")
            assert head.env["TOKEN"] == "s3cret"
            assert head.env["POD"] == objects.name_of(world.pods("head")[0])
            app = head.serve.puts[0]["applications"][0]
            assert app["runtime_env"]["env_vars"]["PYTHONPATH"] == folder
            with open(app["args"]["file"], encoding="utf-8") as stream:
                assert stream.read() == "print(1)\n"

    asyncio.run(scenario())


def test_missing_configmap_holds_the_pod_until_it_is_there(
    make_world: Any, rayservice: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            spec = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
            spec["volumes"] = [{"name": "code", "configMap": {"name": "code"}}]
            spec["containers"][0]["volumeMounts"] = [{"name": "code", "mountPath": "/opt/code"}]
            world.apply(rayservice)
            await world.until(lambda: "FailedMount" in world.event_reasons())
            expected = 'MountVolume.SetUp failed for volume "code" : configmap "code" not found'
            assert ("FailedMount", expected) in world.events()
            assert _container(world.pods("head")[0])["state"]["waiting"]["reason"] == "ContainerCreating"
            code = {"metadata": {"name": "code", "namespace": "ray"}, "data": {"a": "1"}}
            world.store.create("configmaps", code, manager="test")
            await world.ready()

    asyncio.run(scenario())


def test_worker_without_a_proxy_is_never_ready(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.auto_proxies = False
            world.apply(rayservice)
            await world.ready(endpoints=1)
            cluster = world.store.get("rayclusters", "ray", world.clusters()[0])
            assert not objects.is_true(cluster, "RayClusterProvisioned")
            assert "state" not in cluster["status"]
            endpoints = world.store.get("endpoints", "ray", "demo-serve-svc")["subsets"][0]
            assert len(endpoints["addresses"]) == len(endpoints["notReadyAddresses"]) == 1
            assert endpoints["addresses"][0]["targetRef"]["name"] == objects.name_of(world.pods("head")[0])
            worker = objects.name_of(world.pods("worker")[0])
            world.heads[0].serve.proxies[worker] = "HEALTHY"
            await world.ready(endpoints=2)
            await world.until(
                lambda: (
                    world.store.get("rayclusters", "ray", world.clusters()[0])["status"].get("state")
                    == "ready"
                )
            )

    asyncio.run(scenario())


def test_crashed_worker_container_restarts_in_place(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            name = objects.name_of(world.pods("worker")[0])
            world.workers[0].code = 1
            await world.until(lambda: len(world.workers) == 2)
            await world.ready()
            container = _container(world.pods("worker")[0])
            assert objects.name_of(world.pods("worker")[0]) == name
            assert container["restartCount"] == 1
            assert container["lastState"]["terminated"]["exitCode"] == 1

    asyncio.run(scenario())


def test_crash_loop_backs_off(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            seen = set()
            world.apply(rayservice)
            changes = world.store.subscribe("pods")
            for count in range(1, 4):
                await world.until(lambda count=count: len(world.heads) == count)
                world.heads[-1].code = 1
            await world.until(lambda: len(world.heads) == 4)
            while not changes.empty():
                container = changes.get_nowait()[1]["status"].get("containerStatuses", [{}])[0]
                seen.add((container.get("state") or {}).get("waiting", {}).get("reason"))
            assert "CrashLoopBackOff" in seen
            assert "BackOff" in {reason for reason, _ in world.events("head")}
            await world.ready()

    asyncio.run(scenario())


def test_dead_head_takes_the_workers_with_it(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            changes = world.store.subscribe("rayservices")
            world.faults.set("dead_head")
            await world.until(lambda: len(world.heads) == 2 and len(world.workers) == 2)
            await world.ready()
            assert world.faults.active("dead_head") is None
            assert world.workers[1].head is world.heads[1]
            assert len(world.heads[1].serve.puts) == 1  # no applications there: submitted again
            assert _container(world.pods("head")[0])["lastState"]["terminated"]["exitCode"] == 137
            assert _container(world.pods("worker")[0])["restartCount"] == 1
            reasons = set()
            while not changes.empty():
                for each in changes.get_nowait()[1]["status"]["conditions"]:
                    reasons.add(each["reason"])
            assert "ZeroServeEndpoints" in reasons

    asyncio.run(scenario())


def test_dead_worker_is_replaced_by_another_pod(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            name = objects.name_of(world.pods("worker")[0])
            world.faults.set("dead_worker")
            await world.until(lambda: len(world.workers) == 2)
            await world.ready()
            assert objects.name_of(world.pods("worker")[0]) != name
            assert len(world.heads) == 1
            assert "TaintManagerEviction" in world.event_reasons()

    asyncio.run(scenario())


def test_missing_gpu_evicts_and_leaves_the_next_pod_unschedulable(
    make_world: Any, rayservice: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            world.faults.set("missing_gpu")

            def stuck() -> bool:
                found = [objects.condition(pod, "PodScheduled") or {} for pod in world.pods("worker")]
                return [each.get("reason") for each in found] == ["Unschedulable"]

            await world.until(stuck)
            message = objects.condition(world.pods("worker")[0], "PodScheduled")["message"]
            assert "1 Insufficient nvidia.com/gpu" in message
            assert "UnexpectedAdmissionError" in world.event_reasons()
            node = world.store.get("nodes", None, "node-1")
            assert node["status"]["allocatable"]["nvidia.com/gpu"] == "0"
            assert node["status"]["capacity"]["nvidia.com/gpu"] == "1"
            await world.until(lambda: world.status().get("numServeEndpoints") == 1)
            world.faults.clear("missing_gpu")
            await world.ready()
            node = world.store.get("nodes", None, "node-1")
            assert node["status"]["allocatable"]["nvidia.com/gpu"] == "1"

    asyncio.run(scenario())


def test_image_pull_error_holds_new_pods(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.faults.set("image_pull_error")
            world.apply(rayservice)
            # By its events: on a slow machine a look at the pod now and then may miss the short ErrImagePull.
            told = {("Failed", "Error: ErrImagePull"), ("Failed", "Error: ImagePullBackOff")}
            await world.until(lambda: told <= set(world.events("head")))
            await world.until(lambda: world.pods("worker"))
            cluster = world.store.get("rayclusters", "ray", world.clusters()[0])
            condition = objects.condition(cluster, "HeadPodReady")
            assert condition["reason"] in ("ErrImagePull", "ImagePullBackOff")
            worker = world.pods("worker")[0]["status"]
            waiting = worker["initContainerStatuses"][0]["state"]["waiting"]
            assert waiting["reason"] in ("ErrImagePull", "ImagePullBackOff")
            assert worker["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
            assert not world.launched
            world.faults.clear("image_pull_error")
            await world.ready()

    asyncio.run(scenario())


@pytest.mark.parametrize("clear_at_once", [True, False])
def test_failed_deploy_strikes_a_running_application(
    make_world: Any, rayservice: dict[str, Any], clear_at_once: bool
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            serve = world.heads[0].serve
            serve.outcome = lambda app: (
                "DEPLOY_FAILED" if app["import_path"].startswith("raynest_sandbox_fault") else "RUNNING"
            )
            world.faults.set("deploy_failed", message="out of weights")
            if clear_at_once:
                world.faults.clear("deploy_failed")
            await world.until(lambda: world.applications() == {"app": "DEPLOY_FAILED"})
            broken = serve.puts[1]["applications"][0]
            assert broken["import_path"] == "raynest_sandbox_fault:constructor"
            assert broken["args"]["message"] == "out of weights"
            assert (broken["name"], broken["route_prefix"]) == ("app", "/")
            world.faults.clear()
            world.apply(rayservice)
            asked = len(serve.queries)
            await world.until(lambda: len(serve.queries) > asked + 5)
            assert world.applications() == {"app": "DEPLOY_FAILED"}
            assert world.reasons()["Ready"][0] == "True"
            rayservice["spec"]["serveConfigV2"] += "# nonce 1\n"
            world.apply(rayservice)
            await world.until(lambda: world.applications() == {"app": "RUNNING"})

    asyncio.run(scenario())


@pytest.mark.parametrize(("count", "broken"), [(1, 1), (2, 2), (None, 3)])
def test_failed_deploy_lasts_for_its_count(
    make_world: Any, rayservice: dict[str, Any], count: int | None, broken: int
) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.faults.set("deploy_failed", count=count)
            world.apply(rayservice)
            await world.until(lambda: world.heads and world.heads[0].serve.puts)
            puts = world.heads[0].serve.puts
            for again in (2, 3):
                rayservice["spec"]["serveConfigV2"] += f"# nonce {again}\n"
                world.apply(rayservice)
                await world.until(lambda again=again: len(puts) == again)
            paths = [body["applications"][0]["import_path"] for body in puts]
            assert [path == "raynest_sandbox_fault:constructor" for path in paths] == [
                put < broken for put in range(3)
            ]

    asyncio.run(scenario())


def test_restart_of_the_sandbox_is_a_reboot_of_the_nodes(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            before = {objects.name_of(pod) for pod in world.store.list("pods")}
            await world.restart()
            pods = world.store.list("pods")
            assert {objects.name_of(pod) for pod in pods} == before
            assert not any(objects.is_true(pod, "Ready") for pod in pods)
            assert all(_container(pod)["restartCount"] == 1 for pod in pods)
            assert all(_container(pod)["lastState"]["terminated"]["reason"] == "Unknown" for pod in pods)
            subset = world.store.get("endpoints", "ray", "demo-serve-svc").get("subsets") or [{}]
            assert "addresses" not in subset[0]
            await world.until(lambda: world.reasons()["Ready"] == ("False", "ZeroServeEndpoints"))
            await world.ready()
            assert len(world.heads[1].serve.puts) == 1
            assert len(world.clusters()) == 1

    asyncio.run(scenario())


def test_logs_are_the_containers_output(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            name = objects.name_of(world.pods("head")[0])

            async def read(**options: Any) -> bytes:
                pieces = world.operator.logs("ray", name, "ray-head", **options)
                return b"".join([piece async for piece in pieces])

            assert await read(tail=None, follow=False) == b"Ray runtime started.\n"
            assert await read(tail=1, follow=False) == b"Ray runtime started.\n"
            assert await read(tail=0, follow=False) == b""
            pieces = world.operator.logs("ray", name, "ray-head", tail=None, follow=True)
            assert await anext(pieces) == b"Ray runtime started.\n"
            world.store.delete("rayservices", "ray", "demo")
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(anext(pieces), 10)

    asyncio.run(scenario())


def test_pod_addresses(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            world.apply(rayservice)
            await world.ready()
            head, worker = (objects.name_of(world.pods(kind)[0]) for kind in ("head", "worker"))
            real = world.heads[0].ports
            assert world.operator.pod_address("ray", head, "8000") == ("127.0.0.1", real["serve"])
            assert world.operator.pod_address("ray", head, "metrics") == ("127.0.0.1", real["metrics"])
            assert world.operator.pod_address("ray", head, "22") is None
            assert world.operator.pod_address("ray", "nope", "8000") is None
            assert world.operator.pod_address("ray", worker, "52365") is not None
            world.heads[0].healthy = False
            await world.until(lambda: world.operator.resolve("ray", "demo-serve-svc", "8000") is None)
            # The head service publishes addresses that aren't ready too.
            assert world.operator.resolve("ray", "demo-head-svc", "8265") is not None

    asyncio.run(scenario())
