"""What is asked of Compute Nest: every template parameter, set explicitly.

The template's own defaults are traps (facts of its ROS template, quickstart-kuberay 1.3.0): an existing
cluster, three workers, a 120 GB disk, and a published password.
"""

from collections.abc import Mapping
from typing import Any

from raynest_pipeline.settings import Alibaba

OWNER_TAG = "raynest"
"""Tag key on everything bought; its value is the chain's name. Only what carries it is ever deleted."""

ROLE_TAG = "raynest-role"

PASSWORD = "LoginPassword"
"""The template parameter that is a secret: the workers' root password."""

_SLB_ADDRESS_TYPE = "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type"


def owner_tags(name: str) -> dict[str, str]:
    """The tags of what this chain buys."""
    return {OWNER_TAG: name}


def address_tags(name: str) -> dict[str, str]:
    """The tags of the API server's address.

    A stack's tags spread to everything in it, the NAT gateway's address included; the second tag tells
    ours from that one, which must never be touched.
    """
    return {**owner_tags(name), ROLE_TAG: "api-server"}


def template_parameters(alibaba: Alibaba, *, zone_id: str, password: str) -> dict[str, Any]:
    """The `Parameters` of CreateServiceInstance for these settings.

    With `existing_cluster_id` set this is the template's ExistCs form, else NewAck.
    """
    common: dict[str, Any] = {"RegionId": alibaba.region_id, "ChartValues": chart_values(alibaba)}
    if alibaba.existing_cluster_id:
        return {**common, "CsOptions": "ExistCs", "ClusterId": alibaba.existing_cluster_id}
    return {
        **common,
        "CsOptions": "NewAck",
        "PayType": "PostPaid",
        "ZoneId": zone_id,
        **_network(alibaba),
        PASSWORD: password,
        "WorkerInstanceType": alibaba.worker_instance_type,
        "WorkerInstanceCount": alibaba.worker_count,
        "WorkerSystemDiskCategory": alibaba.worker_disk_category,
        "WorkerSystemDiskSize": alibaba.worker_disk_gib,
        "AckNetworkPlugin": alibaba.network_plugin,
        "ServiceCidr": alibaba.service_cidr,
    }


def drift(made_with: Mapping[str, Any], alibaba: Alibaba) -> list[str]:
    """How what was bought differs from the settings, parameter by parameter, in words.

    Only what the answer names is compared. Chart values come back in another form than they were sent.
    """
    zone_id = alibaba.zone_id or str(made_with.get("ZoneId", ""))
    wanted = template_parameters(alibaba, zone_id=zone_id, password="")
    return [
        f"{key} is {made_with[key]}, the settings say {value}"
        for key, value in wanted.items()
        if key in made_with and key not in (PASSWORD, "ChartValues") and str(made_with[key]) != str(value)
    ]


def _network(alibaba: Alibaba) -> dict[str, str]:
    pods = {"PodCidr": alibaba.pod_cidr} if alibaba.network_plugin == "flannel" else {}
    if alibaba.vpc_id and alibaba.vswitch_id:
        existing = {"VpcOption": "ExistingVPC", "VpcId": alibaba.vpc_id, "VSwitchId": alibaba.vswitch_id}
        return {**existing, **pods}
    return {
        "VpcOption": "NewVPC",
        "VpcCidrBlock": alibaba.vpc_cidr_block,
        "VSwitchCidrBlock": alibaba.vswitch_cidr_block,
        **pods,
    }


def chart_values(alibaba: Alibaba) -> dict[str, Any]:
    """Values of the ray-cluster chart: ours, with the user's merged over them.

    Ours make the dashboard's load balancer intranet. It must stay a load balancer with an address: the
    template waits 300 s for one and fails without.
    """
    if alibaba.dashboard_load_balancer == "internet":
        return dict(alibaba.chart_values)
    annotations = {_SLB_ADDRESS_TYPE: "intranet"}
    ours = {"head": {"headService": {"metadata": {"annotations": annotations}}}}
    return _merged(ours, alibaba.chart_values)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(mine, value) if both else value  # type: ignore[arg-type]
    return result
