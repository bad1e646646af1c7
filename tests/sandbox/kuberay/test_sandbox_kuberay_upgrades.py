"""What an edit of the RayService or of its RayCluster does to the clusters."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from raynest_pipeline.sandbox.kuberay import objects


def test_another_cluster_spec_makes_a_new_cluster_and_promotes_it(
    make_world: Any, rayservice: dict[str, Any]
) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0", gpus=2) as world:
            rayservice["spec"]["rayClusterDeletionDelaySeconds"] = 0
            world.apply(rayservice)
            await world.ready()
            (old,) = world.clusters()
            head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
            head["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "1"}]
            world.apply(rayservice)
            await world.until(
                lambda: world.reasons()["UpgradeInProgress"][1] == "BothActivePendingClustersExist"
            )
            # While there are two, nobody asks the active one about its applications.
            await world.until(lambda: world.applications() == {})
            assert world.reasons()["Ready"] == ("True", "NonZeroServeEndpoints")
            await world.until(
                lambda: (
                    world.status()["activeServiceStatus"]["rayClusterName"] != old
                    and world.clusters() != [old]
                    and len(world.clusters()) == 1
                )
            )
            await world.ready()
            assert world.reasons()["UpgradeInProgress"] == ("False", "NoPendingCluster")
            service = world.store.get("services", "ray", "demo-serve-svc")
            assert service["spec"]["selector"]["ray.io/cluster"] == world.clusters()[0]
            assert "DeletedRayCluster" in world.event_reasons()
            assert world.heads[1].env["A"] == "1"

    asyncio.run(scenario())


def test_upgrade_without_a_second_gpu_stays_pending(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world(gpus=1, cpu=16) as world:
            world.apply(rayservice)
            await world.ready()
            annotations = {"annotations": {"nonce": "1"}}
            group = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
            group["template"]["metadata"] = annotations
            world.heads[0].serve.outcome = lambda app: "DEPLOYING"
            world.auto_proxies = False

            def stuck() -> bool:
                return any(
                    (objects.condition(pod, "PodScheduled") or {}).get("reason") == "Unschedulable"
                    for pod in world.pods("worker")
                )

            world.apply(rayservice)
            await world.until(stuck)
            message = next(text for reason, text in world.events() if reason == "FailedScheduling")
            assert message == (
                "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. "
                "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
            )

    asyncio.run(scenario())


def test_what_the_hash_leaves_out_changes_nothing(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0") as world:
            world.apply(rayservice)
            await world.ready()
            before = world.store.get("rayclusters", "ray", world.clusters()[0])["spec"]
            group = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
            group["replicas"] = 3
            group["template"]["spec"]["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
            world.apply(rayservice)
            asked = len(world.heads[0].serve.queries)
            await world.until(lambda: len(world.heads[0].serve.queries) > asked + 5)
            (name,) = world.clusters()
            assert world.store.get("rayclusters", "ray", name)["spec"] == before
            assert len(world.pods("worker")) == 1

    asyncio.run(scenario())


def test_scaling_the_raycluster_itself_works(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world(gpus=2, cpu=16) as world:
            world.apply(rayservice)
            await world.ready()
            cluster = world.store.get("rayclusters", "ray", world.clusters()[0])
            cluster["spec"]["workerGroupSpecs"][0]["replicas"] = 2
            world.store.update("rayclusters", cluster, manager="test")
            await world.ready(endpoints=3)
            cluster = world.store.get("rayclusters", "ray", world.clusters()[0])
            cluster["spec"]["workerGroupSpecs"][0]["replicas"] = 1
            world.store.update("rayclusters", cluster, manager="test")
            await world.ready(endpoints=2)
            assert len(world.pods("worker")) == 1

    asyncio.run(scenario())


def test_appended_worker_group_is_an_update_in_place(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world(gpus=2, cpu=16) as world:
            world.apply(rayservice)
            await world.ready()
            clusters = world.clusters()
            groups = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            second = copy.deepcopy(groups[0]) | {"groupName": "more"}
            groups.append(second)
            world.apply(rayservice)
            await world.ready(endpoints=3)
            assert world.clusters() == clusters
            assert "UpdatedRayCluster" in world.event_reasons()

    asyncio.run(scenario())


def test_upgrade_strategy_none_ignores_the_cluster_spec(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world() as world:
            rayservice["spec"]["upgradeStrategy"] = {"type": "None"}
            world.apply(rayservice)
            await world.ready()
            rayservice["spec"]["rayClusterConfig"]["rayVersion"] = "2.61.0"
            rayservice["spec"]["serveConfigV2"] += "# touched\n"
            world.apply(rayservice)
            await world.until(lambda: len(world.heads[0].serve.puts) == 2)
            assert len(world.clusters()) == 1

    asyncio.run(scenario())


def test_deleted_active_cluster_is_replaced(make_world: Any, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with make_world("1.7.0") as world:
            world.apply(rayservice)
            await world.ready()
            (old,) = world.clusters()
            changes = world.store.subscribe("rayservices")
            world.store.delete("rayclusters", "ray", old)
            await world.until(lambda: world.clusters() and world.clusters() != [old])
            await world.until(
                lambda: world.status()["activeServiceStatus"].get("rayClusterName") == world.clusters()[0]
            )
            await world.ready()
            seen = set()
            while not changes.empty():
                status = changes.get_nowait()[1]["status"]
                seen.add(tuple(each["reason"] for each in status["conditions"]))
            assert ("ZeroServeEndpoints", "BothActivePendingClustersExist") in seen

    asyncio.run(scenario())
