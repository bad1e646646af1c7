"""Container Service for Kubernetes (ROA style): clusters, nodes, tasks, kubeconfigs. Times are China's."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.cloud.clusters import nodes_of
from raynest_pipeline.sandbox.cloud.context import Call, Handler, new_id, new_uuid
from raynest_pipeline.sandbox.cloud.errors import CloudError
from raynest_pipeline.sandbox.cloud.wire import china, compact, page_by_number, utc
from raynest_pipeline.sandbox.cloud.world import Cluster, Eip, Task

_PRIVATE_ENDPOINT = "https://192.168.0.231:6443"
_VERSION = "1.32.1-aliyun.1"
#: A credential without a limit lasts three years.
_UNLIMITED_MINUTES = 3 * 365 * 24 * 60


def describe_cluster_detail(call: Call) -> dict[str, Any]:
    """DescribeClusterDetail."""
    return _detail(call.cloud.cluster(call.path["cluster_id"]))


def describe_clusters(call: Call) -> dict[str, Any]:
    """DescribeClustersV1: `name` finds every cluster whose name contains it."""
    text = call.params.text
    found = [
        _detail(cluster)
        for cluster in call.world.clusters.values()
        if text("name") in cluster.name
        and text("cluster_id") in ("", cluster.id)
        and text("region_id") in ("", cluster.region)
        and text("cluster_type") in ("", "ManagedKubernetes")
    ]
    page, number, size = page_by_number(found, call.params, size="page_size", number="page_number")
    info = {"page_number": number, "page_size": size, "total_count": len(found)}
    return {"clusters": page, "page_info": info}


def _detail(cluster: Cluster) -> dict[str, Any]:
    public = f"https://127.0.0.1:{cluster.port}" if cluster.eip_id else ""
    endpoints = {"intranet_api_server_endpoint": _PRIVATE_ENDPOINT}
    # Without a public endpoint the key is empty or absent, both seen in life; here it goes with the id.
    if public or int(cluster.id[-1], 16) % 2 == 0:
        endpoints["api_server_endpoint"] = public
    return {
        "cluster_id": cluster.id,
        "name": cluster.name,
        "state": cluster.state,
        "region_id": cluster.region,
        "zone_id": cluster.zone,
        "cluster_type": "ManagedKubernetes",
        "profile": "Default",
        "cluster_spec": "ack.pro.small",
        "current_version": _VERSION,
        "init_version": _VERSION,
        "size": len(cluster.workers),
        "vpc_id": cluster.ids["vpc"],
        "vswitch_ids": [cluster.ids["vswitch"]],
        "security_group_id": cluster.ids["security_group"],
        # The ingress's load balancer, not the API server's.
        "external_loadbalancer_id": cluster.ids["ingress_slb"],
        "deletion_protection": cluster.deletion_protection,
        "network_mode": "vpc",
        "subnet_cidr": cluster.network["pods"],
        "service_cidr": cluster.network["services"],
        "created": china(cluster.created),
        "updated": china(cluster.updated),
        "resource_group_id": "rg-acfmsandbox",
        "tags": [{"key": key, "value": value} for key, value in cluster.tags.items()],
        "maintenance_window": {"enable": False},
        "meta_data": compact({"Addons": []}),
        "parameters": {},
        "master_url": compact(endpoints),
    }


def modify_cluster(call: Call) -> dict[str, Any]:
    """ModifyCluster: bind or unbind the API server's public address, or set deletion protection."""
    token = str(call.body.get("client_token") or "")
    arguments = {**call.path, **{key: value for key, value in call.body.items() if key != "client_token"}}
    return call.once(
        token, lambda: _modify(call), mismatch="IdempotentParameterMismatch", arguments=arguments
    )


def _modify(call: Call) -> dict[str, Any]:
    cluster = call.cloud.cluster(call.path["cluster_id"])
    busy = call.world.running_task(cluster.id)
    if busy is not None or cluster.state != "running":
        with_what = f", busy with the task {busy.id}" if busy else ""
        message = f"The cluster {cluster.id} is {cluster.state}{with_what}; try again when it is running."
        raise CloudError(409, "OperationConflict", message)
    if isinstance(protection := call.body.get("deletion_protection"), bool):
        cluster.deletion_protection = protection
    wanted = call.body.get("api_server_eip")
    if wanted is None:
        return {"cluster_id": cluster.id, "request_id": new_uuid(), "task_id": ""}
    task = Task(new_id("T-", 24), cluster.id, "bind_eip" if wanted else "unbind_eip", began=call.now)
    if wanted:
        eip = _bindable(call, cluster)
        eip.status, task.eip_id = "Associating", eip.id
    elif not cluster.eip_id:
        message = f"No EIP is bound to the API server of the cluster {cluster.id}."
        raise CloudError(400, "ErrorApiServerEipNotBound", message)
    elif cluster.eip_id in call.world.eips:
        call.world.eips[cluster.eip_id].status = "Unassociating"
        task.eip_id = cluster.eip_id
    call.world.tasks[task.id] = task
    cluster.state, cluster.updated = "updating", call.now
    return {"cluster_id": cluster.id, "request_id": new_uuid(), "task_id": task.id}


def _bindable(call: Call, cluster: Cluster) -> Eip:
    eip_id = str(call.body.get("api_server_eip_id") or "")
    eip = call.world.eips.get(eip_id)
    if eip is None or eip.region != cluster.region:
        message = f"The EIP {eip_id!r} does not exist in {cluster.region}."
        raise CloudError(404, "InvalidAllocationId.NotFound", message)
    if eip.status != "Available":
        raise CloudError(400, "IncorrectEipStatus", f"The EIP {eip.id} is {eip.status}, not Available.")
    return eip


def describe_task_info(call: Call) -> dict[str, Any]:
    """DescribeTaskInfo. `error` is filled even while the task runs: trust `state` alone."""
    task = call.world.tasks.get(call.path["task_id"])
    if task is None:
        raise CloudError(404, "ErrorTaskNotFound", f"The task {call.path['task_id']} does not exist.")
    kinds = {"delete_cluster": "cluster_delete", "bind_eip": "cluster_modify", "unbind_eip": "cluster_modify"}
    return {
        "task_id": task.id,
        "cluster_id": task.cluster_id,
        "task_type": kinds[task.kind],
        "state": task.state,
        "created": china(task.began),
        "updated": china(task.updated or task.began),
        "target": {"id": task.cluster_id, "type": "cluster"},
        "parameters": {},
        "current_stage": "" if task.state == "success" else "UpdateApiServer",
        "stages": [],
        "events": [],
        "task_result": [],
        "error": {"code": "" if task.state == "success" else "400", "message": task.error},
    }


def describe_cluster_user_kubeconfig(call: Call) -> dict[str, Any]:
    """DescribeClusterUserKubeconfig: for the public endpoint (default), or for the private one."""
    cluster = call.cloud.cluster(call.path["cluster_id"])
    name = "TemporaryDurationMinutes"
    minutes = call.params.integer(name, 0, 15, 4320) or _UNLIMITED_MINUTES
    if cluster.state not in ("running", "updating"):
        message = f"The cluster {cluster.id} is {cluster.state}."
        raise CloudError(400, "ErrorClusterState", message)
    server = _PRIVATE_ENDPOINT
    if not call.params.boolean("PrivateIpAddress"):
        if not cluster.eip_id:
            message = f"The API server of the cluster {cluster.id} has no public endpoint: no EIP is bound."
            raise CloudError(400, "ErrorApiServerEndpointNotFound", message)
        server = f"https://127.0.0.1:{cluster.port}"
    text, expires = call.cloud.issue_kubeconfig(cluster.id, server, minutes)
    return {"config": text, "expiration": utc(expires)}


def describe_cluster_node_pools(call: Call) -> dict[str, Any]:
    """DescribeClusterNodePools: one pool."""
    cluster = call.cloud.cluster(call.path["cluster_id"])
    total = len(cluster.workers)
    status = {"state": "active", "total_nodes": total, "healthy_nodes": total, "failed_nodes": 0}
    pool = {
        "nodepool_info": {"nodepool_id": cluster.ids["nodepool"], "name": "default-nodepool", "type": "ess"},
        "scaling_group": {
            "instance_types": [cluster.worker_type],
            "system_disk_category": cluster.disk_category,
            "system_disk_size": cluster.disk_gib,
            "instance_charge_type": "PostPaid",
            "desired_size": cluster.worker_count,
            "vswitch_ids": [cluster.ids["vswitch"]],
        },
        "kubernetes_config": {"runtime": "containerd"},
        "status": {**status, "initial_nodes": cluster.worker_count - total},
    }
    wanted = call.params.text("NodepoolName") in ("", "default-nodepool")
    return {"nodepools": [pool] if wanted else []}


def describe_cluster_nodes(call: Call) -> dict[str, Any]:
    """DescribeClusterNodes."""
    cluster = call.cloud.cluster(call.path["cluster_id"])
    found = [
        {
            "instance_id": worker,
            "instance_type": node.instance_type,
            "instance_role": "Worker",
            "instance_name": node.name,
            "node_name": node.name,
            "node_status": "Ready" if cluster.state in ("running", "updating") else "Unknown",
            "state": "running",
            "ip_address": [node.name.partition(".")[2]],
            "error_message": "",
            "nodepool_id": cluster.ids["nodepool"],
            "creation_time": china(cluster.created),
        }
        for worker, node in zip(cluster.workers, nodes_of(cluster), strict=True)
        if call.params.text("nodepool_id") in ("", cluster.ids["nodepool"])
    ]
    page, number, size = page_by_number(found, call.params, size="pageSize", number="pageNumber")
    return {"nodes": page, "page": {"page_number": number, "page_size": size, "total_count": len(found)}}


def describe_cluster_resources(call: Call) -> list[dict[str, Any]]:
    """DescribeClusterResources: a bare JSON array."""
    cluster = call.cloud.cluster(call.path["cluster_id"])
    made = [
        ("ALIYUN::ECS::SecurityGroup", cluster.ids["security_group"], "system", True),
        ("ALIYUN::SLB::LoadBalancer", cluster.ids["api_slb"], "system", True),
        ("ALIYUN::SLB::LoadBalancer", cluster.ids["ingress_slb"], "addon", True),
        ("ALIYUN::SLB::LoadBalancer", cluster.ids["dashboard_slb"], "user", False),
    ]
    if cluster.ids["nat"]:
        made.append(("ALIYUN::VPC::NatGateway", cluster.ids["nat"], "system", True))
    return [
        {
            "cluster_id": cluster.id,
            "instance_id": instance_id,
            "resource_type": kind,
            "resource_info": compact({"id": instance_id}),
            "state": "CREATE_COMPLETE",
            "auto_create": 1,
            "creator_type": creator,
            "associated_object": {},
            "delete_behavior": {"delete_by_default": by_default, "changeable": True},
            "dependencies": [],
        }
        for kind, instance_id, creator, by_default in made
    ]


def delete_cluster(call: Call) -> dict[str, Any]:
    """DeleteCluster: refused under deletion protection; a task otherwise."""
    cluster = call.cloud.cluster(call.path["cluster_id"])
    if cluster.deletion_protection:
        message = f"The cluster {cluster.id} is under deletion protection."
        raise CloudError(400, "ErrorClusterDeletionProtection", message)
    if call.world.running_task(cluster.id) is not None:
        raise CloudError(409, "OperationConflict", f"The cluster {cluster.id} is busy with a task.")
    task = Task(new_id("T-", 24), cluster.id, "delete_cluster", began=call.now)
    call.world.tasks[task.id] = task
    cluster.state, cluster.updated = "deleting", call.now
    return {"cluster_id": cluster.id, "request_id": new_uuid(), "task_id": task.id}


#: Method and path pattern -> the action's name and what answers it.
ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("GET", "/clusters/{cluster_id}", "DescribeClusterDetail", describe_cluster_detail),
    ("GET", "/api/v1/clusters", "DescribeClustersV1", describe_clusters),
    ("PUT", "/api/v2/clusters/{cluster_id}", "ModifyCluster", modify_cluster),
    ("GET", "/tasks/{task_id}", "DescribeTaskInfo", describe_task_info),
    (
        "GET",
        "/k8s/{cluster_id}/user_config",
        "DescribeClusterUserKubeconfig",
        describe_cluster_user_kubeconfig,
    ),
    ("GET", "/clusters/{cluster_id}/nodepools", "DescribeClusterNodePools", describe_cluster_node_pools),
    ("GET", "/clusters/{cluster_id}/nodes", "DescribeClusterNodes", describe_cluster_nodes),
    ("GET", "/clusters/{cluster_id}/resources", "DescribeClusterResources", describe_cluster_resources),
    ("DELETE", "/clusters/{cluster_id}", "DeleteCluster", delete_cluster),
)
