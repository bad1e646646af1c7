"""ACK clusters and their public addresses: binding, losing, unbinding, releasing, kubeconfigs, nodes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from sandbox_account import REGION, Account, Refused


def refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def bound(account: Account) -> tuple[str, str, str]:
    """A deployed instance, its cluster, and the address that is bound to it."""
    instance_id, cluster_id = account.deploy()
    eip_id = account.allocate(Name="mine")
    account.bind(cluster_id, eip_id)
    account.pass_time(1.2)
    return instance_id, cluster_id, eip_id


def task(account: Account, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = account.roa("GET", f"/tasks/{task_id}")
    return found


def test_binding_an_address_is_a_task_and_opens_the_public_endpoint(account: Account) -> None:
    _, cluster_id = account.deploy()
    eip_id = account.allocate()
    assert account.endpoint(cluster_id) == ""
    task_id = account.bind(cluster_id, eip_id)
    running = task(account, task_id)
    # A filled error beside a running state, as in the official example.
    assert (running["state"], running["error"]["code"]) == ("running", "400")
    assert account.eip(eip_id)["Status"] == "Associating"  # type: ignore[index]
    assert account.roa("GET", f"/clusters/{cluster_id}")["state"] == "updating"
    account.pass_time(1.2)
    assert task(account, task_id)["state"] == "success"
    assert account.endpoint(cluster_id) == "https://127.0.0.1:40000"
    address = account.eip(eip_id)
    assert address is not None
    assert (address["Status"], address["InstanceType"], address["IpAddress"]) == (
        "InUse",
        "SlbInstance",
        "127.0.0.1",
    )


def test_unbinding_closes_the_endpoint_and_frees_the_address(account: Account) -> None:
    _, cluster_id, eip_id = bound(account)
    task_id = account.unbind(cluster_id)
    assert account.eip(eip_id)["Status"] == "Unassociating"  # type: ignore[index]
    account.pass_time(1.2)
    assert task(account, task_id)["state"] == "success"
    assert account.endpoint(cluster_id) == ""
    assert account.eip(eip_id)["Status"] == "Available"  # type: ignore[index]
    assert account.sides[cluster_id].port is None


def test_an_address_can_be_exchanged_for_another(account: Account) -> None:
    _, cluster_id, first = bound(account)
    second = account.allocate()
    account.bind(cluster_id, second)
    account.pass_time(1.2)
    assert account.eip(first)["Status"] == "Available"  # type: ignore[index]
    assert account.eip(second)["Status"] == "InUse"  # type: ignore[index]
    assert account.endpoint(cluster_id)


def test_the_port_is_the_same_after_binding_again(account: Account) -> None:
    _, cluster_id, eip_id = bound(account)
    before = account.endpoint(cluster_id)
    account.unbind(cluster_id)
    account.pass_time(1.2)
    account.bind(cluster_id, eip_id)
    account.pass_time(1.2)
    assert account.endpoint(cluster_id) == before
    assert account.sides[cluster_id].log[-1] == "listen 40000"


def test_a_cluster_that_is_busy_refuses_another_change(account: Account) -> None:
    _, cluster_id = account.deploy()
    account.bind(cluster_id, account.allocate())
    error = refusal(lambda: account.unbind(cluster_id))
    assert (error.status, error.code) == (409, "OperationConflict")
    # Container Service writes its errors in lower case.
    assert set(error.body) == {"code", "message", "requestId", "status"}
    assert "T-" in error.body["message"]


def test_a_cluster_that_is_being_deleted_refuses_a_change(account: Account) -> None:
    instance_id, cluster_id = account.deploy()
    eip_id = account.allocate()
    account.delete(instance_id)
    error = refusal(lambda: account.bind(cluster_id, eip_id))
    assert (error.status, error.code) == (409, "OperationConflict")
    assert account.eip(eip_id)["Status"] == "Available"  # type: ignore[index]


def test_the_same_client_token_starts_one_task(account: Account) -> None:
    _, cluster_id = account.deploy()
    body = {"api_server_eip": True, "api_server_eip_id": account.allocate(), "client_token": "bind-1"}
    path = f"/api/v2/clusters/{cluster_id}"
    first = account.roa("PUT", path, body)
    assert account.roa("PUT", path, body)["task_id"] == first["task_id"]
    account.pass_time(1.2)
    assert account.roa("PUT", path, body)["task_id"] == first["task_id"]
    assert refusal(lambda: account.roa("PUT", path, {**body, "api_server_eip": False})).code == (
        "IdempotentParameterMismatch"
    )


def test_binding_needs_an_address_that_exists_and_is_free(account: Account) -> None:
    _, cluster_id, eip_id = bound(account)
    assert refusal(lambda: account.bind(cluster_id, "eip-0")).code == "InvalidAllocationId.NotFound"
    assert refusal(lambda: account.bind(cluster_id, eip_id)).code == "IncorrectEipStatus"
    elsewhere = account.allocate(RegionId="cn-hangzhou")
    assert refusal(lambda: account.bind(cluster_id, elsewhere)).code == "InvalidAllocationId.NotFound"
    # A refusal leaves the cluster free for the next attempt.
    account.unbind(cluster_id)


def test_unbinding_what_is_not_bound_is_refused(account: Account) -> None:
    _, cluster_id = account.deploy()
    assert refusal(lambda: account.unbind(cluster_id)).code == "ErrorApiServerEipNotBound"


def test_a_change_of_nothing_starts_no_task(account: Account) -> None:
    _, cluster_id = account.deploy()
    assert account.roa("PUT", f"/api/v2/clusters/{cluster_id}", {})["task_id"] == ""


def test_a_slow_task_runs_until_the_fault_is_cleared(account: Account) -> None:
    _, cluster_id = account.deploy()
    account.faults.set("slow_task", seconds=100)
    task_id = account.bind(cluster_id, account.allocate())
    account.pass_time(50, step=1)
    assert task(account, task_id)["state"] == "running"
    account.faults.clear()
    account.pass_time(0.1)
    assert task(account, task_id)["state"] == "success"


def test_a_bound_address_can_be_neither_released_nor_unbound_directly(account: Account) -> None:
    _, _, eip_id = bound(account)
    given = {"RegionId": REGION, "AllocationId": eip_id}
    error = refusal(lambda: account.ask("vpc", "UnassociateEipAddress", **given))
    assert error.code == "InvalidOperation.ApiServerEip"
    assert "cluster" in error.body["Message"]
    assert refusal(lambda: account.ask("vpc", "ReleaseEipAddress", **given)).code == "IncorrectEipStatus"


def test_deleting_the_instance_leaves_the_bound_address_behind(account: Account) -> None:
    instance_id, _, eip_id = bound(account)
    account.delete(instance_id)
    account.pass_time(2)
    assert account.eip(eip_id)["Status"] == "Available"  # type: ignore[index]
    assert account.owned() == ["eip"]
    account.ask("vpc", "ReleaseEipAddress", RegionId=REGION, AllocationId=eip_id)
    account.pass_time(0.3)
    assert account.eip(eip_id) is None
    assert account.owned() == []


def test_deleting_the_instance_during_a_task_fails_the_task_and_frees_the_address(account: Account) -> None:
    instance_id, cluster_id = account.deploy()
    eip_id = account.allocate()
    task_id = account.bind(cluster_id, eip_id)
    # Both are due at the same moment; the deletion comes first.
    account.delete(instance_id)
    account.pass_time(3)
    found = task(account, task_id)
    assert (found["state"], found["error"]["message"]) == ("fail", "the cluster was deleted")
    assert account.eip(eip_id)["Status"] == "Available"  # type: ignore[index]


@pytest.mark.parametrize("mode", ["unbound", "released"])
def test_a_lost_endpoint_goes_without_a_task(account: Account, mode: str) -> None:
    _, cluster_id, eip_id = bound(account)
    account.faults.set("lost_endpoint", mode=mode)
    account.pass_time(0.2)
    assert account.endpoint(cluster_id) == ""
    assert account.sides[cluster_id].port is None
    assert account.faults.active("lost_endpoint") is None
    address = account.eip(eip_id)
    assert (address and address["Status"]) == ("Available" if mode == "unbound" else None)
    # The NAT gateway's own address stays in either case.
    assert account.owned().count("eip") == (2 if mode == "unbound" else 1)
    # A new address mends it.
    account.bind(cluster_id, eip_id if mode == "unbound" else account.allocate())
    account.pass_time(1.2)
    assert account.endpoint(cluster_id)


def test_the_fault_waits_until_there_is_an_endpoint_to_lose(account: Account) -> None:
    account.faults.set("lost_endpoint")
    _, cluster_id, _ = bound(account)
    account.pass_time(0.2)
    assert account.endpoint(cluster_id) == ""


def test_a_kubeconfig_for_the_public_endpoint_needs_one(account: Account) -> None:
    _, cluster_id = account.deploy()
    path = f"/k8s/{cluster_id}/user_config"
    assert refusal(lambda: account.roa("GET", path)).code == "ErrorApiServerEndpointNotFound"
    private = account.roa("GET", path, PrivateIpAddress=True, TemporaryDurationMinutes=60)
    assert private == {"config": "server: https://192.168.0.231:6443", "expiration": "1970-01-01T01:00:00Z"}


@pytest.mark.parametrize(("minutes", "hours"), [(15, "T00:15"), (4320, "04T00:00")])
def test_a_kubeconfig_lasts_as_long_as_asked(account: Account, minutes: int, hours: str) -> None:
    _, cluster_id, _ = bound(account)
    body = account.roa("GET", f"/k8s/{cluster_id}/user_config", TemporaryDurationMinutes=minutes)
    assert body["config"] == "server: https://127.0.0.1:40000"
    assert hours in body["expiration"]


@pytest.mark.parametrize("minutes", [14, 4321, -1, "x"])
def test_a_duration_outside_its_range_is_refused(account: Account, minutes: object) -> None:
    _, cluster_id, _ = bound(account)
    path = f"/k8s/{cluster_id}/user_config"
    error = refusal(lambda: account.roa("GET", path, TemporaryDurationMinutes=minutes))
    assert error.code == "InvalidParameter.TemporaryDurationMinutes"


def test_without_a_duration_the_credential_lasts_three_years(account: Account) -> None:
    _, cluster_id, _ = bound(account)
    assert account.roa("GET", f"/k8s/{cluster_id}/user_config")["expiration"].startswith("1972-12-31")


def test_a_cluster_that_is_being_made_gives_no_kubeconfig(account: Account) -> None:
    instance_id = account.create()
    account.pass_time(1.5)
    cluster_id = account.cloud.world.instances[instance_id].cluster_id
    assert account.roa("GET", f"/clusters/{cluster_id}")["state"] == "initial"
    assert refusal(lambda: account.roa("GET", f"/k8s/{cluster_id}/user_config")).code == "ErrorClusterState"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/clusters/c0"),
        ("PUT", "/api/v2/clusters/c0"),
        ("DELETE", "/clusters/c0"),
        ("GET", "/clusters/c0/nodes"),
        ("GET", "/clusters/c0/nodepools"),
        ("GET", "/clusters/c0/resources"),
        ("GET", "/k8s/c0/user_config"),
    ],
)
def test_an_unknown_cluster_is_not_found(account: Account, method: str, path: str) -> None:
    error = refusal(lambda: account.roa(method, path, {} if method == "PUT" else None))
    assert (error.status, error.code) == (404, "ErrorClusterNotFound")


def test_an_unknown_task_is_not_found(account: Account) -> None:
    assert refusal(lambda: task(account, "T-0")).code == "ErrorTaskNotFound"


def test_searching_clusters_by_name_is_fuzzy(account: Account) -> None:
    account.deploy("ray")
    account.deploy("ray-one")

    def names(**query: Any) -> list[str]:
        found = account.roa("GET", "/api/v1/clusters", **query)
        return [each["name"] for each in found["clusters"]]

    assert names(name="ray") == ["ray", "ray-one"]
    assert names(name="ray-one", region_id=REGION) == ["ray-one"]
    assert names(region_id="cn-hangzhou") == []
    assert names(page_size=1, page_number=2) == ["ray-one"]


def test_the_detail_has_the_ingress_balancer_and_china_time(account: Account) -> None:
    _, cluster_id = account.deploy()
    body = account.roa("GET", f"/clusters/{cluster_id}")
    cluster = account.cloud.world.clusters[cluster_id]
    assert re.fullmatch("c[0-9a-f]{32}", cluster_id)
    assert body["external_loadbalancer_id"] == cluster.ids["ingress_slb"] != cluster.ids["api_slb"]
    assert body["created"].endswith("+08:00")
    assert json.loads(body["master_url"])["intranet_api_server_endpoint"] == "https://192.168.0.231:6443"
    assert (body["state"], body["size"], body["deletion_protection"]) == ("running", 1, False)


def test_the_public_endpoint_is_empty_or_absent_when_there_is_none(account: Account) -> None:
    seen = set()
    for number in range(40):
        account.create(f"ray-{number}")
    account.pass_time(3.2, step=0.5)
    for cluster_id in account.cloud.world.clusters:
        url = json.loads(account.roa("GET", f"/clusters/{cluster_id}")["master_url"])
        seen.add(url.get("api_server_endpoint", "absent"))
    assert seen == {"", "absent"}


def test_node_pool_and_nodes_show_what_was_ordered(account: Account) -> None:
    _, cluster_id = account.deploy(WorkerInstanceCount=2)
    (pool,) = account.roa("GET", f"/clusters/{cluster_id}/nodepools")["nodepools"]
    assert pool["scaling_group"]["instance_types"] == ["ecs.gn7i-c8g1.2xlarge"]
    assert pool["scaling_group"]["system_disk_size"] == 1024
    assert (pool["status"]["state"], pool["status"]["healthy_nodes"]) == ("active", 2)
    body = account.roa("GET", f"/clusters/{cluster_id}/nodes", pageSize=1)
    assert body["page"] == {"page_number": 1, "page_size": 1, "total_count": 2}
    (node,) = body["nodes"]
    assert (node["node_status"], node["ip_address"]) == ("Ready", ["192.168.0.5"])
    assert account.roa("GET", f"/clusters/{cluster_id}/nodepools", NodepoolName="x") == {"nodepools": []}


def test_the_resources_come_as_a_bare_array(account: Account) -> None:
    _, cluster_id = account.deploy()
    found = account.roa("GET", f"/clusters/{cluster_id}/resources")
    assert isinstance(found, list)
    assert "ALIYUN::VPC::NatGateway" in {each["resource_type"] for each in found}
    assert any(not each["delete_behavior"]["delete_by_default"] for each in found)


def test_a_cluster_can_be_deleted_on_its_own(account: Account) -> None:
    _, cluster_id, eip_id = bound(account)
    task_id = account.roa("DELETE", f"/clusters/{cluster_id}")["task_id"]
    assert account.roa("GET", f"/clusters/{cluster_id}")["state"] == "deleting"
    account.pass_time(1.2)
    assert task(account, task_id)["state"] == "success"
    assert refusal(lambda: account.roa("GET", f"/clusters/{cluster_id}")).code == "ErrorClusterNotFound"
    assert account.owned() == ["eip"]
    assert account.eip(eip_id)["Status"] == "Available"  # type: ignore[index]


def test_a_protected_or_busy_cluster_is_not_deleted(account: Account) -> None:
    _, cluster_id = account.deploy()
    path = f"/clusters/{cluster_id}"
    account.roa("PUT", f"/api/v2{path}", {"deletion_protection": True})
    assert refusal(lambda: account.roa("DELETE", path)).code == "ErrorClusterDeletionProtection"
    account.roa("PUT", f"/api/v2{path}", {"deletion_protection": False})
    account.bind(cluster_id, account.allocate())
    assert refusal(lambda: account.roa("DELETE", path)).code == "OperationConflict"


@pytest.mark.parametrize("at", [0.0, 0.5, 1.2])
def test_a_restart_while_an_address_is_being_bound_ends_bound(account: Account, at: float) -> None:
    _, cluster_id = account.deploy()
    task_id = account.bind(cluster_id, account.allocate())
    if at:
        account.pass_time(at)
    account.restart()
    account.pass_time(1.5)
    assert task(account, task_id)["state"] == "success"
    assert account.endpoint(cluster_id) == "https://127.0.0.1:40000"
    assert account.sides[cluster_id].port == 40_000
