"""A service instance's way from Created to Deployed or DeployedFailed, and from Deleting to gone."""

from __future__ import annotations

import re
from decimal import Decimal

from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.clusters import Clusters
from raynest_pipeline.sandbox.cloud.context import Cloud, new_id
from raynest_pipeline.sandbox.cloud.wire import utc
from raynest_pipeline.sandbox.cloud.world import Cluster, Eip, Instance, Purchase

#: When each step of a deployment and of a deletion is done, seconds after it began, at time_scale 1.
DEPLOY_S = (0.2, 1.0, 2.0, 3.0)
DELETE_S = (1.0, 1.5)
#: A deployed instance shows 90, never 100.
FULL_PROGRESS = 90

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


async def advance(cloud: Cloud, clusters: Clusters, instance: Instance) -> None:
    """Take the steps of an instance's deployment or deletion that are due."""
    if instance.status in ("Created", "Deploying"):
        instance.progress = _progress(cloud, instance)
        if is_due(cloud, instance.began, DEPLOY_S[instance.stage], last=instance.stage == len(DEPLOY_S) - 1):
            await _deploy_step(cloud, clusters, instance)
            cloud.save()
    elif instance.status in ("Deleting", "Deleted") and is_due(
        cloud, instance.began, DELETE_S[instance.stage], last=instance.stage == 0
    ):
        await _delete_step(cloud, clusters, instance)
        cloud.save()


def is_due(cloud: Cloud, began: float, after: float, *, last: bool) -> bool:
    """Whether a step is over; the last of several is the one that the fault slow_task makes wait."""
    slow = cloud.faults.active("slow_task") if last else None
    return cloud.clock() >= began + after * cloud.time_scale + (slow["seconds"] if slow else 0.0)


def dashboard_address(instance: Instance) -> str:
    """Where the Ray dashboard's load balancer listens: public unless the chart values make it intranet."""
    head = instance.parameters["ChartValues"].get("head", {})
    service = head.get("headService", {}) if isinstance(head, dict) else {}
    annotations = service.get("metadata", {}).get("annotations", {}) if isinstance(service, dict) else {}
    key = "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type"
    return "192.168.0.240" if annotations.get(key) == "intranet" else "203.0.113.20"


def log(cloud: Cloud, instance: Instance, status: str, content: str, source: str = "computeNest") -> None:
    """Add to the instance's own log and move its update time."""
    instance.updated = cloud.clock()
    entry = {"Timestamp": utc(cloud.clock()), "Source": source, "Status": status, "Content": content}
    instance.logs.append({**entry, "LogType": "serviceInstance"})


def free_address(cloud: Cloud, eip_id: str) -> None:
    """Make an address available that was bound, or was being bound; nothing for one that is gone."""
    eip = cloud.world.eips.get(eip_id)
    if eip is not None:
        eip.status, eip.instance_id, eip.instance_type = "Available", "", ""


async def remove_cluster(cloud: Cloud, clusters: Clusters, cluster: Cluster) -> None:
    """End a cluster and what it consists of. Its public address stays: unused, still paid for, as in life."""
    await clusters.close(cluster.id, remove=True)
    free_address(cloud, cluster.eip_id)
    for task in cloud.world.tasks.values():
        if task.cluster_id == cluster.id and task.state == "running" and task.eip_id:
            free_address(cloud, task.eip_id)
    cloud.world.eips.pop(cluster.ids["nat_eip"], None)
    cloud.world.clusters.pop(cluster.id, None)
    cloud.world.end_purchases(cloud.clock(), owner=cluster.owner)


def _progress(cloud: Cloud, instance: Instance) -> int:
    whole = DEPLOY_S[-1] * cloud.time_scale
    share = (cloud.clock() - instance.began) / whole if whole > 0 else 1.0
    return max(instance.progress, min(FULL_PROGRESS - 1, int(FULL_PROGRESS * share)))


async def _deploy_step(cloud: Cloud, clusters: Clusters, instance: Instance) -> None:
    stage = instance.stage
    if stage == 0:
        instance.status, instance.status_detail = "Deploying", "The stack is being created."
        log(cloud, instance, "Deploying", "Start to deploy the service instance.")
    elif instance.parameters["CsOptions"] == "NewAcs":
        _fail(cloud, instance, "The account has not activated Container Compute Service (ACS).")
    elif stage == 1:
        _order(cloud, instance)
    elif stage == 2:
        await _start(cloud, clusters, instance)
    else:
        await _finish(cloud, clusters, instance)
    # Only now: a step that was cut short is done again. It may also have been deleted in the meantime.
    if instance.status == "Deploying":
        instance.stage = stage + 1


def _order(cloud: Cloud, instance: Instance) -> None:
    if instance.parameters["CsOptions"] == "ExistCs":
        instance.cluster_id = instance.parameters["ClusterId"]
        return
    cluster = _new_cluster(cloud, instance)
    cloud.world.clusters[cluster.id] = cluster
    instance.cluster_id = cluster.id
    instance.status_detail = "AckOrAcsClusterModule: the cluster is being created."
    log(cloud, instance, "CREATE_IN_PROGRESS", f"ManagedKubernetesCluster {cluster.id}", source="ros")
    _buy(cloud, cluster, "cluster", cluster.id, catalog.CLUSTER_PRICE)
    for name in ("api_slb", "ingress_slb"):
        _buy(cloud, cluster, "load_balancer", cluster.ids[name], catalog.LOAD_BALANCER_PRICE)
    if cluster.ids["nat"]:
        _buy(cloud, cluster, "nat_gateway", cluster.ids["nat"], catalog.NAT_PRICE)
        _buy(cloud, cluster, "eip", cluster.ids["nat_eip"], catalog.EIP_PRICE)
        cloud.world.eips[cluster.ids["nat_eip"]] = Eip(
            id=cluster.ids["nat_eip"],
            ip="203.0.113.10",
            name=f"{cluster.name}-nat",
            region=cluster.region,
            created=cluster.created,
            bandwidth="100",
            charge="PayByTraffic",
            # A stack hands its tags on to everything in it: the owner's tags alone don't tell whose it is.
            tags={**instance.tags, "acs:ros:stackId": instance.stack_id},
            status="InUse",
            instance_id=cluster.ids["nat"],
            instance_type="Nat",
        )


def _new_cluster(cloud: Cloud, instance: Instance) -> Cluster:
    given = instance.parameters
    egress = given["VpcOption"] == "NewVPC"
    ids = {
        "vpc": given["VpcId"] or new_id("vpc-t4n", 18),
        "vswitch": given["VSwitchId"] or new_id("vsw-t4n", 18),
        "security_group": new_id("sg-t4n", 17),
        "api_slb": new_id("lb-t4n", 18),
        "ingress_slb": new_id("lb-t4n", 18),
        "dashboard_slb": new_id("lb-t4n", 18),
        "nat": new_id("ngw-t4n", 18) if egress else "",
        "snat_table": new_id("stb-t4n", 18) if egress else "",
        "snat_entry": new_id("snat-t4n", 18) if egress else "",
        "nat_eip": new_id("eip-t4n", 18) if egress else "",
        "nodepool": new_id("np", 32),
        "scaling_group": new_id("asg-t4n", 17),
    }
    return Cluster(
        id=new_id("c", 32),
        name=instance.name,
        owner=instance.id,
        region=given["RegionId"],
        zone=given["ZoneId"],
        created=cloud.clock(),
        updated=cloud.clock(),
        worker_type=given["WorkerInstanceType"],
        worker_count=given["WorkerInstanceCount"],
        disk_category=given["WorkerSystemDiskCategory"],
        disk_gib=given["WorkerSystemDiskSize"],
        tags={"ack.aliyun.com": instance.name, **instance.tags},
        ids=ids,
        network={
            "pods": given["PodCidr"],
            "services": given["ServiceCidr"],
            "plugin": given["AckNetworkPlugin"],
        },
    )


async def _start(cloud: Cloud, clusters: Clusters, instance: Instance) -> None:
    cluster = cloud.world.clusters.get(instance.cluster_id)
    if cluster is None:
        _fail(cloud, instance, f"ErrorClusterNotFound: the cluster {instance.cluster_id} does not exist.")
        return
    if cluster.owner != instance.id:
        return
    if out_of_stock(cloud, cluster.worker_type, cluster.zone):
        cluster.state = "failed"
        message = (
            "Resource CREATE failed: ClusterNodePool: OperationDenied.NoStock: the instance type "
            f"{cluster.worker_type} is out of stock in zone {cluster.zone}."
        )
        _fail(cloud, instance, message)
        return
    if not cluster.workers:
        cluster.workers = [new_id("i-t4n", 17) for _ in range(cluster.worker_count)]
        kind = catalog.INSTANCE_TYPES[cluster.worker_type]
        price = catalog.worker_price(kind, cluster.disk_category, cluster.disk_gib)
        for worker in cluster.workers:
            _buy(cloud, cluster, "worker", worker, price)
    cluster.state, cluster.updated = "running", cloud.clock()
    instance.status_detail = "FluxHelmApplicationModule: the Helm charts are being installed."
    cloud.save()
    await clusters.open(cluster)
    log(cloud, instance, "CREATE_COMPLETE", f"ManagedKubernetesCluster {cluster.id}", source="ros")


async def _finish(cloud: Cloud, clusters: Clusters, instance: Instance) -> None:
    cluster = cloud.world.clusters.get(instance.cluster_id)
    fault = cloud.faults.consume("failed_deployment")
    if fault is not None:
        _fail(cloud, instance, str(fault["reason"]))
    elif cluster is None or cluster.state not in ("running", "updating"):
        _fail(cloud, instance, f"The cluster {instance.cluster_id} is not running.")
    elif not _NAMESPACE.fullmatch(instance.name):
        message = (
            f'FluxOciHelmDeploy kuberay-operator: Namespace "{instance.name}" is invalid: metadata.name: '
            f'Invalid value: "{instance.name}": a lowercase RFC 1123 label must consist of lower case '
            "alphanumeric characters or '-', and must start and end with an alphanumeric character"
        )
        _fail(cloud, instance, message)
    elif _chart_service_type(instance) != "LoadBalancer":
        message = "FluxHelmApplicationModule: WaitUntil timed out after 300 s: .status.loadBalancer is empty."
        _fail(cloud, instance, message)
    else:
        _buy(cloud, cluster, "load_balancer", cluster.ids["dashboard_slb"], catalog.LOAD_BALANCER_PRICE)
        await clusters.create_namespace(cluster, instance.name)
        # It may have been deleted while the namespace was made.
        if instance.status == "Deploying":
            instance.status, instance.status_detail, instance.progress = "Deployed", "", FULL_PROGRESS
            log(cloud, instance, "Deployed", "The service instance is deployed.")


def _chart_service_type(instance: Instance) -> str:
    service = instance.parameters["ChartValues"].get("service", {})
    return str(service.get("type", "LoadBalancer")) if isinstance(service, dict) else "LoadBalancer"


async def _delete_step(cloud: Cloud, clusters: Clusters, instance: Instance) -> None:
    if instance.status == "Deleted":
        del cloud.world.instances[instance.id]
        return
    cluster = cloud.world.clusters.get(instance.cluster_id)
    if cluster is not None and cluster.owner == instance.id:
        if cluster.deletion_protection:
            cluster.state = "running"
            instance.status, instance.stage = "DeletedFailed", 0
            instance.status_detail = f"The cluster {cluster.id} is under deletion protection."
            log(cloud, instance, "DeletedFailed", instance.status_detail)
            return
        await remove_cluster(cloud, clusters, cluster)
    instance.status, instance.status_detail, instance.stage = "Deleted", "", 1
    log(cloud, instance, "Deleted", "The service instance is deleted.")


def out_of_stock(cloud: Cloud, instance_type: str, zone: str) -> bool:
    """Whether a type can't be had in a zone: there is none, or the fault sold_out says so."""
    kind = catalog.INSTANCE_TYPES.get(instance_type)
    if kind is None or zone not in kind.zones:
        return True
    fault = cloud.faults.active("sold_out")
    return fault is not None and fault["zone"] in (None, zone) and fault["instance_type"] in (None, kind.id)


def _fail(cloud: Cloud, instance: Instance, reason: str) -> None:
    # What has been bought so far stays, and is paid for, until the instance is deleted.
    instance.status, instance.status_detail = "DeployedFailed", reason
    log(cloud, instance, "CREATE_FAILED", reason, source="ros")
    log(cloud, instance, "DeployedFailed", "The service instance failed to be deployed.")


def _buy(cloud: Cloud, cluster: Cluster, kind: str, id: str, price: Decimal) -> None:
    # A step that is done again after a restart buys nothing twice.
    if all(bought.id != id for bought in cloud.world.purchases):
        cloud.world.purchases.append(
            Purchase(kind, id, cluster.name, cloud.clock(), str(price), owner=cluster.owner)
        )
