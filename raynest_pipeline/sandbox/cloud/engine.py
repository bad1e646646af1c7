"""Lets time pass in the emulated cloud: deployments, deletions, cluster tasks, addresses that go.

Everything that takes time is a record with the time it began; `tick` carries out what is due. So a sandbox
that was stopped in the middle goes on where it was.
"""

from __future__ import annotations

from raynest_pipeline.sandbox.cloud import deployment
from raynest_pipeline.sandbox.cloud.clusters import Clusters
from raynest_pipeline.sandbox.cloud.context import Cloud
from raynest_pipeline.sandbox.cloud.world import Cluster, Task

#: How long things take at time_scale 1, seconds.
TASK_S = 1.0
RELEASE_S = 0.2


class Engine:
    """Carries out what is due in a cloud and on its clusters' Kubernetes sides."""

    def __init__(self, cloud: Cloud, clusters: Clusters) -> None:
        self._cloud = cloud
        self._clusters = clusters

    async def resume(self) -> None:
        """Open again what was open when the state was saved."""
        for cluster in list(self._cloud.world.clusters.values()):
            if cluster.state in ("running", "updating"):
                await self._clusters.open(cluster)
                if cluster.eip_id:
                    await self._clusters.expose(cluster)
        self._cloud.save()

    def is_busy(self) -> bool:
        """Whether anything is under way, so that the next tick should come soon."""
        world = self._cloud.world
        settled = ("Deployed", "DeployedFailed", "DeletedFailed")
        return (
            any(each.status not in settled for each in world.instances.values())
            or any(each.state == "running" for each in world.tasks.values())
            or any(each.status == "Releasing" for each in world.eips.values())
        )

    async def tick(self) -> None:
        """Carry out everything that is due now."""
        world = self._cloud.world
        for instance in list(world.instances.values()):
            await deployment.advance(self._cloud, self._clusters, instance)
        for task in list(world.tasks.values()):
            if task.state == "running":
                await self._advance_task(task)
        self._release_addresses()
        await self._lose_endpoint()

    async def _advance_task(self, task: Task) -> None:
        cloud = self._cloud
        if not deployment.is_due(cloud, task.began, TASK_S, last=True):
            return
        cluster = cloud.world.clusters.get(task.cluster_id)
        if cluster is None:
            task.state, task.error = "fail", "the cluster was deleted"
        elif task.kind == "delete_cluster":
            await deployment.remove_cluster(cloud, self._clusters, cluster)
            task.state = "success"
        else:
            await self._change_address(cluster, task)
            cluster.state, cluster.updated, task.state = "running", cloud.clock(), "success"
        task.updated = cloud.clock()
        cloud.save()

    async def _change_address(self, cluster: Cluster, task: Task) -> None:
        detach(self._cloud, cluster)
        if task.kind == "unbind_eip":
            await self._clusters.hide(cluster)
            return
        eip = self._cloud.world.eips[task.eip_id]
        eip.status, eip.instance_id, eip.instance_type = "InUse", cluster.ids["api_slb"], "SlbInstance"
        cluster.eip_id = eip.id
        await self._clusters.expose(cluster)

    def _release_addresses(self) -> None:
        cloud = self._cloud
        for eip in list(cloud.world.eips.values()):
            if eip.status == "Releasing" and cloud.clock() >= eip.due:
                del cloud.world.eips[eip.id]
                cloud.world.end_purchases(cloud.clock(), id=eip.id)
                cloud.save()

    async def _lose_endpoint(self) -> None:
        cloud = self._cloud
        bound = [each for each in cloud.world.clusters.values() if each.eip_id and each.state == "running"]
        if not bound or cloud.faults.active("lost_endpoint") is None:
            return
        fault = cloud.faults.consume("lost_endpoint")
        for cluster in bound:
            eip_id = cluster.eip_id
            detach(cloud, cluster)
            if fault and fault["mode"] == "released":
                cloud.world.eips.pop(eip_id, None)
                cloud.world.end_purchases(cloud.clock(), id=eip_id)
            await self._clusters.hide(cluster)
        cloud.save()


def detach(cloud: Cloud, cluster: Cluster) -> None:
    """Take a cluster's public address away from it; the address stays, and is available again."""
    deployment.free_address(cloud, cluster.eip_id)
    cluster.eip_id = ""
