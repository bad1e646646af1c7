"""ROS: the resources of a service instance's stack."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.cloud.context import Call, Handler
from raynest_pipeline.sandbox.cloud.errors import CloudError
from raynest_pipeline.sandbox.cloud.wire import utc


def list_stack_resources(call: Call) -> dict[str, Any]:
    """ListStackResources of a stack in the region where it was deployed."""
    stack_id, region = call.params.required("StackId"), call.params.required("RegionId")
    instance = next((each for each in call.world.instances.values() if each.stack_id == stack_id), None)
    if instance is None or instance.status == "Deleted" or instance.parameters["RegionId"] != region:
        raise CloudError(404, "StackNotFound", f"The Stack ({stack_id}) could not be found.")
    cluster = call.world.clusters.get(instance.cluster_id)
    if cluster is None or cluster.owner != instance.id:
        return {"Resources": []}
    module = "AckOrAcsClusterModule"
    made = [
        ("VpcModule.Vpc", "ALIYUN::ECS::VPC", cluster.ids["vpc"]),
        ("VpcModule.VSwitch", "ALIYUN::ECS::VSwitch", cluster.ids["vswitch"]),
        (f"{module}.NodePool", "ALIYUN::CS::ClusterNodePool", cluster.ids["nodepool"]),
        (f"{module}.Cluster", "ALIYUN::CS::ManagedKubernetesCluster", cluster.id),
    ]
    return {
        "Resources": [
            {
                "StackId": stack_id,
                "StackName": instance.name,
                "LogicalResourceId": name,
                "PhysicalResourceId": physical_id,
                "ResourceType": kind,
                "Status": "CREATE_COMPLETE" if cluster.state != "initial" else "CREATE_IN_PROGRESS",
                "StatusReason": "",
                "CreateTime": utc(cluster.created).rstrip("Z"),
                "UpdateTime": utc(cluster.updated).rstrip("Z"),
            }
            for name, kind, physical_id in made
        ]
    }


HANDLERS: dict[str, Handler] = {"ListStackResources": list_stack_resources}
