"""The whole story with the official SDKs against a sandbox process, and the ways in which it goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandbox_sdk import REGION, Sdk, config, refused, wait

from raynest_pipeline.sandbox import control

Start = Callable[..., control.SandboxInfo]


@pytest.fixture
def info(start: Start, tmp_path: Path) -> control.SandboxInfo:
    return start(tmp_path)


@pytest.fixture
def sdk(info: control.SandboxInfo) -> Sdk:
    return Sdk(info.cloud_endpoint, info.access_key_id, info.access_key_secret)


def kinds(info: control.SandboxInfo) -> list[str]:
    return sorted(entry["kind"] for entry in control.ledger(info.state_dir))


def test_from_the_service_to_an_empty_ledger(info: control.SandboxInfo, sdk: Sdk) -> None:
    instance_id = sdk.create("ray-story", "order-1")
    assert sdk.create("ray-story", "order-1") == instance_id
    body = sdk.wait_status(instance_id, "Deployed", "DeployedFailed")
    assert (body.status, body.progress) == ("Deployed", 90)
    assert json.loads(body.outputs)["Instruction"].strip().endswith(":8265")

    cluster_id = sdk.cluster_id(instance_id)
    assert sorted(sdk.arns(instance_id, page=1)) == sorted(sdk.arns(instance_id))
    assert sdk.cs.describe_cluster_detail(cluster_id).body.state == "running"
    assert isinstance(sdk.cs.describe_cluster_resources(cluster_id, _resources_request()).body, list)

    eip_id = sdk.allocate("eip-1")
    assert sdk.allocate("eip-1") == eip_id
    assert refused(lambda: sdk.kubeconfig(cluster_id)).code == "ErrorApiServerEndpointNotFound"
    sdk.bind(cluster_id, eip_id)
    server = sdk.endpoint(cluster_id)
    assert sdk.eips(allocation_id=eip_id)[eip_id].status == "InUse"
    assert sdk.kubeconfig(cluster_id, temporary_duration_minutes=60).config == f"server: {server}\n"

    sdk.unbind(cluster_id)
    assert sdk.endpoint(cluster_id) == ""
    sdk.release(eip_id)
    sdk.wait_released(eip_id)
    sdk.delete(instance_id)
    sdk.wait_gone(instance_id)
    assert control.ledger(info.state_dir) == []
    bought = [entry["kind"] for entry in control.purchases(info.state_dir)]
    assert (bought.count("cluster"), bought.count("worker"), bought.count("eip")) == (1, 1, 2)
    assert sdk.eips() == {}
    assert control.processes(info.state_dir) == []


def _resources_request() -> Any:
    from alibabacloud_cs20151215 import models

    return models.DescribeClusterResourcesRequest()


def test_the_supplier_sdk_deploys_too(sdk: Sdk) -> None:
    from alibabacloud_computenestsupplier20210521 import models

    service_id = sdk.service_id()
    order = models.CreateServiceInstanceRequest(
        region_id=REGION, service_id=service_id, name="ray-supplier", parameters=sdk.parameters()
    )
    instance_id = sdk.supplier.create_service_instance(order).body.service_instance_id
    query = models.GetServiceInstanceRequest(region_id=REGION, service_instance_id=instance_id)

    def deployed() -> bool:
        return bool(sdk.supplier.get_service_instance(query).body.status == "Deployed")

    assert wait(deployed, "Deployed")


def test_every_reading_call_fills_the_sdk_s_models(sdk: Sdk) -> None:
    from alibabacloud_computenest20210601 import models as nest
    from alibabacloud_cs20151215 import models as cs
    from alibabacloud_ecs20140526 import models as ecs
    from alibabacloud_ram20150501 import models as ram
    from alibabacloud_ros20190910 import models as ros
    from alibabacloud_vpc20160428 import models as vpc

    instance_id = sdk.create("ray-models")
    body = sdk.wait_status(instance_id, "Deployed")
    cluster_id = sdk.cluster_id(instance_id)
    service = {"region_id": REGION, "service_id": sdk.service_id()}

    assert sdk.sts.get_caller_identity().body.identity_type == "RAMUser"
    user = ram.ListPoliciesForUserRequest(user_name="raynest-sandbox")
    assert sdk.ram.list_policies_for_user(user).body.policies.policy[0].policy_name == "AliyunCSFullAccess"
    groups = ram.ListGroupsForUserRequest(user_name="raynest-sandbox")
    group = sdk.ram.list_groups_for_user(groups).body.groups.group[0].group_name
    through = ram.ListPoliciesForGroupRequest(group_name=group)
    assert sdk.ram.list_policies_for_group(through).body.policies.policy

    missing = sdk.nest.generate_service_policy(nest.GenerateServicePolicyRequest(**service)).body
    assert missing.missing_policy == [] and json.loads(missing.policy)
    provisions = sdk.nest.get_service_provisions(nest.GetServiceProvisionsRequest(**service)).body
    assert provisions.service_provisions[0].role_provision.roles[0].created is True
    cost = nest.GetServiceEstimateCostRequest(parameters=sdk.parameters(), **service)
    assert any(each["Success"] for each in sdk.nest.get_service_estimate_cost(cost).body.resources.values())
    check = nest.CheckServiceDeployableRequest(service_id=service["service_id"], post_paid_amount="20")
    assert sdk.nest.check_service_deployable(check).body.check_results[0].type == "Balance"
    named = nest.ListServiceInstancesRequest(
        region_id=REGION,
        filter=[nest.ListServiceInstancesRequestFilter(name="ServiceInstanceName", value=["ray"])],
        tag=[nest.ListServiceInstancesRequestTag(key="raynest", value="ray-models")],
    )
    (found,) = sdk.nest.list_service_instances(named).body.service_instances
    assert found.service_instance_id == instance_id
    logs = nest.ListServiceInstanceLogsRequest(region_id=REGION, service_instance_id=instance_id)
    assert sdk.nest.list_service_instance_logs(logs).body.service_instances_logs[0].status == "Deployed"
    fuzzy = nest.ListServicesRequest(region_id=REGION, fuzzy_keyword="Ray")
    assert len(sdk.nest.list_services(fuzzy).body.services) == 2

    types = ecs.DescribeInstanceTypesRequest(instance_types=["ecs.gn7i-c8g1.2xlarge"])
    (kind,) = sdk.ecs.describe_instance_types(types).body.instance_types.instance_type
    assert (kind.gpuamount, kind.memory_size) == (1, 30.0)
    stock = ecs.DescribeAvailableResourceRequest(region_id=REGION, destination_resource="InstanceType")
    zones = sdk.ecs.describe_available_resource(stock).body.available_zones.available_zone
    assert [zone.status for zone in zones] == ["Available"] * 3
    price = ecs.DescribePriceRequest(
        region_id=REGION,
        instance_type="ecs.gn7i-c8g1.2xlarge",
        system_disk=ecs.DescribePriceRequestSystemDisk(category="cloud_essd", size=1024),
        price_unit="Hour",
    )
    assert sdk.ecs.describe_price(price).body.price_info.price.trade_price == pytest.approx(19.4986)

    named_clusters = cs.DescribeClustersV1Request(name="ray", region_id=REGION)
    (cluster,) = sdk.cs.describe_clusters_v1(named_clusters).body.clusters
    assert cluster.cluster_id == cluster_id
    nodes = sdk.cs.describe_cluster_nodes(cluster_id, cs.DescribeClusterNodesRequest(page_size=100)).body
    assert [node.node_status for node in nodes.nodes] == ["Ready"]
    pools = sdk.cs.describe_cluster_node_pools(cluster_id, cs.DescribeClusterNodePoolsRequest()).body
    assert pools.nodepools[0].scaling_group.system_disk_size == 1024

    gateways = vpc.DescribeNatGatewaysRequest(region_id=REGION, vpc_id=cluster.vpc_id)
    (gateway,) = sdk.vpc.describe_nat_gateways(gateways).body.nat_gateways.nat_gateway
    (table,) = gateway.snat_table_ids.snat_table_id
    entries = vpc.DescribeSnatTableEntriesRequest(region_id=REGION, snat_table_id=table)
    assert sdk.vpc.describe_snat_table_entries(entries).body.snat_table_entries.snat_table_entry[0].snat_ip
    (stack,) = json.loads(body.resources)
    resources = ros.ListStackResourcesRequest(region_id=REGION, stack_id=stack["StackId"])
    assert cluster_id in [
        each.physical_resource_id for each in sdk.ros.list_stack_resources(resources).body.resources
    ]


def test_the_asynchronous_client_signs_acceptably(info: control.SandboxInfo) -> None:
    from alibabacloud_sts20150401.client import Client

    client = Client(config(info.cloud_endpoint, info.access_key_id, info.access_key_secret))

    async def ask() -> list[Any]:
        return list(await asyncio.gather(*(client.get_caller_identity_async() for _ in range(10))))

    assert {answer.body.identity_type for answer in asyncio.run(ask())} == {"RAMUser"}


def test_a_wrong_secret_and_an_unknown_key(info: control.SandboxInfo) -> None:
    forged = Sdk(info.cloud_endpoint, info.access_key_id, "wrong")
    error = refused(lambda: forged.sts.get_caller_identity())
    assert (error.status_code, error.code) == (400, "SignatureDoesNotMatch")
    error = refused(lambda: forged.cs.describe_cluster_detail("c1"))
    assert error.code == "SignatureDoesNotMatch"
    stranger = Sdk(info.cloud_endpoint, "LTAIother", info.access_key_secret)
    assert refused(lambda: stranger.sts.get_caller_identity()).code == "InvalidAccessKeyId.NotFound"


def test_throttling_reaches_the_sdk_as_both_of_its_exceptions(info: control.SandboxInfo, sdk: Sdk) -> None:
    control.set_fault(info.state_dir, "throttling", count=1)
    error = refused(sdk.eips)
    assert (error.code, error.status_code) == ("Throttling.User", 400)
    control.set_fault(info.state_dir, "throttling", count=1, retry_after_ms=120)
    error = refused(sdk.eips)
    assert (type(error).__name__, error.retry_after) == ("ThrottlingException", 120)
    assert sdk.eips() == {}


def test_an_unavailable_service_costs_the_sdk_the_status(info: control.SandboxInfo, sdk: Sdk) -> None:
    control.set_fault(info.state_dir, "unavailable", count=1)
    error = refused(sdk.eips)
    assert type(error).__name__ == "UnretryableException"
    assert error.code is None
    assert sdk.eips() == {}


def test_a_lost_response_leaves_one_address_that_the_token_finds_again(
    info: control.SandboxInfo, sdk: Sdk
) -> None:
    control.set_fault(info.state_dir, "lost_response", action="AllocateEipAddress")
    error = refused(lambda: sdk.allocate("eip-1"))
    assert type(error).__name__ == "UnretryableException"
    assert kinds(info) == ["eip"]
    assert sdk.allocate("eip-1") in sdk.eips()
    assert kinds(info) == ["eip"]
    lost = [call for call in control.calls(info.state_dir) if call["fault"] == "lost_response"]
    assert [call["action"] for call in lost] == ["AllocateEipAddress"]


def test_a_denied_action_is_named_in_the_exception(info: control.SandboxInfo, sdk: Sdk) -> None:
    control.set_fault(info.state_dir, "denied", action="vpc:AllocateEipAddress")
    error = refused(sdk.allocate)
    assert (error.status_code, error.access_denied_detail["AuthAction"]) == (403, "vpc:AllocateEipAddress")
    control.clear_faults(info.state_dir, "denied")
    assert sdk.allocate()


def test_sold_out_fails_the_deployment(info: control.SandboxInfo, sdk: Sdk) -> None:
    control.set_fault(info.state_dir, "sold_out", zone="ap-southeast-1a")
    instance_id = sdk.create("ray-stock")
    body = sdk.wait_status(instance_id, "DeployedFailed", "Deployed")
    assert "OperationDenied.NoStock" in body.status_detail
    sdk.delete(instance_id)
    sdk.wait_gone(instance_id)
    assert kinds(info) == []


def test_a_lost_endpoint_stops_listening(info: control.SandboxInfo, sdk: Sdk) -> None:
    cluster_id = sdk.cluster_id(_deployed(sdk, "ray-lost"))
    eip_id = sdk.allocate()
    sdk.bind(cluster_id, eip_id)
    before = sdk.endpoint(cluster_id)
    assert connects(before)
    control.set_fault(info.state_dir, "lost_endpoint")
    wait(lambda: sdk.endpoint(cluster_id) == "" or None, "the endpoint is lost")
    assert sdk.eips(allocation_id=eip_id)[eip_id].status == "Available"
    wait(lambda: not connects(before) or None, "the port is closed")
    sdk.bind(cluster_id, eip_id)
    assert sdk.endpoint(cluster_id) == before
    assert connects(before)


def connects(url: str) -> bool:
    """Whether something listens at the address of a URL."""
    import socket

    host, _, port = url.removeprefix("https://").partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def _deployed(sdk: Sdk, name: str) -> str:
    instance_id = sdk.create(name)
    sdk.wait_status(instance_id, "Deployed")
    return instance_id


def test_neither_log_nor_call_log_nor_state_holds_the_password(info: control.SandboxInfo, sdk: Sdk) -> None:
    _deployed(sdk, "ray-secret")
    password = sdk.parameters()["LoginPassword"]
    for path in info.state_dir.rglob("*"):
        if path.is_file():
            assert password not in path.read_text(errors="replace")
    assert password not in json.dumps(control.calls(info.state_dir))


def test_a_client_that_is_behind_a_proxy_sends_whole_urls(info: control.SandboxInfo) -> None:
    from alibabacloud_sts20150401.client import Client

    # The sandbox itself plays the proxy: the request line then holds scheme, host and port.
    settings = config(info.cloud_endpoint, info.access_key_id, info.access_key_secret)
    settings.http_proxy = f"http://{info.cloud_endpoint}"
    assert Client(settings).get_caller_identity().body.identity_type == "RAMUser"
