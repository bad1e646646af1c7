"""Which service instances, and which ACK cluster, belong to this chain."""

import re
from dataclasses import dataclass

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import (
    STATUS_DELETE_FAILED,
    STATUS_DELETING,
    STATUS_DEPLOYED,
    STATUS_FAILED,
    ServiceInstance,
)
from raynest_pipeline.alibaba.cs import Cluster
from raynest_pipeline.chain.journal import Journal
from raynest_pipeline.chain.link import Change
from raynest_pipeline.chain.parameters import OWNER_TAG
from raynest_pipeline.errors import RefusedError, RemoteError
from raynest_pipeline.settings import Settings

KEY = "cluster"
"""Of the purchase in the journal."""
_CLUSTER_ID = re.compile(r"c[0-9a-f]{32}")
_FREE = ("SecurityGroup", "::VPC::VPC", "::ECS::VPC", "VSwitch", "::RAM::")
"""Parts of a resource's type that cost nothing."""
_DASHBOARD = "ray-cluster-kuberay-head-svc"
"""The Service of the template's own Helm release: its load balancer goes with the service instance."""


@dataclass(frozen=True)
class Found:
    """What belongs to this chain in the cloud."""

    instance: ServiceInstance | None
    cluster: Cluster | None
    cause: str = ""
    others: tuple[ServiceInstance, ...] = ()
    """More instances of ours beside the one that counts: each of them costs."""


class Instances:
    """Finds what is ours: by tag, or by the id on record."""

    def __init__(self, settings: Settings, cloud: Cloud, journal: Journal) -> None:
        self._settings = settings
        self._cloud = cloud
        self._journal = journal

    def find(self) -> Found:
        """The instance that counts and its ACK cluster, as they are now.

        Raises:
            CloudError: The cloud could not be asked.
            RefusedError: An instance of this name exists that isn't ours, or ours is in another region.
        """
        # One that works comes before one that is on its way, and that before a failed or dying one.
        rank = {STATUS_DEPLOYED: 0, STATUS_FAILED: 2, STATUS_DELETING: 3, STATUS_DELETE_FAILED: 3}
        ours = sorted(self.ours(), key=lambda instance: rank.get(instance.status, 1))
        if not ours:
            return Found(None, None)
        instance = ours[0]
        others = tuple(other for other in ours[1:] if other.status != STATUS_DELETING)
        if instance.status != STATUS_DEPLOYED:
            return Found(instance, None, others=others)
        cluster = self._ack_cluster(instance)
        return Found(instance, cluster, "" if cluster else "its ACK cluster is not to be found", others)

    def ours(self) -> list[ServiceInstance]:
        """All of ours that are listed. Raises as `find`."""
        name, region = self._settings.name, self._settings.alibaba.region_id
        intent = self._journal.read(KEY)
        if intent is not None:
            intent.refuse_elsewhere(region=region)
        instances = self._cloud.instances.find_instances(name)
        ours = [i for i in instances if i.tags.get(OWNER_TAG) == name]
        # An instance can be listed before its tags are; the id on record says that it is ours.
        ours += [i for i in instances if i not in ours and intent and i.id == intent.remote_id]
        if instances and not ours:
            raise RefusedError(
                f"A service instance named {name} exists ({instances[0].id}), "
                f"and raynest did not make it (it has no tag {OWNER_TAG}={name}).",
                fix=f"Set another `name`, or tag the instance {OWNER_TAG}={name} to adopt it.",
            )
        # One control plane serves many regions, and lists the instances of all of them.
        away = next((i for i in ours if i.deploy_region not in ("", region)), None)
        if away is not None:
            raise RefusedError(
                f"The service instance {away.id} named {name} is in {away.deploy_region}, not in {region}.",
                fix=f"Set alibaba.region_id to {away.deploy_region} (and take it down first, `raynest down`, "
                "if it is to move), or give the new chain another `name`.",
            )
        return ours

    def _ack_cluster(self, instance: ServiceInstance) -> Cluster | None:
        """By its resources, else its ROS stack, else its name (alibaba-cloud facts 2.4)."""
        alibaba = self._settings.alibaba
        if alibaba.existing_cluster_id:
            return self._cloud.clusters.get_cluster(alibaba.existing_cluster_id)
        for resource in self._cloud.instances.resources(instance.id):
            if resource.product_code.lower() == "cs" and _CLUSTER_ID.fullmatch(resource.id):
                return self._cloud.clusters.get_cluster(resource.id)
        for stack_id in instance.stack_ids:
            for part in self._cloud.stacks.stack_resources(stack_id, alibaba.region_id):
                if part.type == "ALIYUN::CS::ManagedKubernetesCluster" and part.physical_id:
                    return self._cloud.clusters.get_cluster(part.physical_id)
        named = self._cloud.clusters.find_clusters(instance.name)
        return named[0] if len(named) == 1 else None

    def survivors(self, instance: ServiceInstance) -> list[Change]:
        """What the deletion of the instance does not take along, though it costs; ask before it.

        Action `left`: made by the cluster, e.g. the load balancer of a Service in it, so nobody else will
        remove it. Action `keep`: made by a user, or by the service itself, which may remove it.
        """
        if self._settings.alibaba.existing_cluster_id or instance.status != STATUS_DEPLOYED:
            return []
        try:
            cluster = self._ack_cluster(instance)
            resources = self._cloud.clusters.resources(cluster.id) if cluster else []
        except RemoteError as error:
            return [Change(KEY, "keep", "what the cluster made", f"it could not be listed: {error.what}")]
        changes = []
        for item in resources:
            of_service = item.owner.startswith("Service ")
            goes = item.deleted_with_cluster or (item.deleted_with_cluster is None and not of_service)
            if goes or item.owner.endswith(f"/{_DASHBOARD}") or any(part in item.type for part in _FREE):
                continue
            action = "keep" if item.creator == "user" and not of_service else "left"
            made_for = f" of {item.owner}" if item.owner else ""
            why = "the cluster's own deletion does not take it along; look in the console whether it is gone"
            changes.append(Change(KEY, action, f"{item.type} {item.id}{made_for}", why))
        return changes
