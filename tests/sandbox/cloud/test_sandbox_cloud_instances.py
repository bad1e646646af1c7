"""Service instances: ordering, the way to Deployed, the ways to fail, deletion, and what it all costs."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from sandbox_account import REGION, Account, Refused, order

STACK = ["cluster", "eip", "load_balancer", "load_balancer", "load_balancer", "nat_gateway", "worker"]


def refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def test_an_order_goes_from_created_through_deploying_to_deployed(account: Account) -> None:
    instance_id = account.create()
    assert account.instance(instance_id)["Status"] == "Created"
    seen: list[tuple[str, int]] = []
    for _ in range(32):
        account.pass_time(0.1)
        body = account.instance(instance_id)
        seen.append((body["Status"], body["Progress"]))
    statuses = [status for status, _ in seen]
    assert statuses == sorted(statuses, key=["Created", "Deploying", "Deployed"].index)
    assert {"Created", "Deploying", "Deployed"} == set(statuses)
    progress = [value for _, value in seen]
    assert progress == sorted(progress)
    # Never 100: whoever waits for that waits forever.
    assert progress[-1] == 90


def test_while_it_deploys_it_says_what_it_is_doing(account: Account) -> None:
    instance_id = account.create()
    account.pass_time(1.5)
    assert "cluster" in account.instance(instance_id)["StatusDetail"]
    account.pass_time(1.0)
    assert "Helm" in account.instance(instance_id)["StatusDetail"]


def test_the_description_has_json_inside_json_and_no_password(account: Account) -> None:
    instance_id, _ = account.deploy(LoginPassword="Unseen+12&")
    body = account.instance(instance_id)
    parameters = json.loads(body["Parameters"])
    assert parameters["ZoneId"] == "ap-southeast-1a"
    assert parameters["LoginPassword"] == "******"
    assert json.loads(body["Outputs"])["Instruction"] == "http://203.0.113.20:8265\n"
    assert json.loads(body["Resources"])[0]["StackId"]
    assert body["Tags"] == [{"Key": "raynest", "Value": "ray-one"}]
    assert "Unseen+12&" not in json.dumps([body, account.cloud.world.dump()])


def test_the_dashboard_is_public_unless_the_chart_values_make_it_intranet(account: Account) -> None:
    key = "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-address-type"
    values = {"head": {"headService": {"metadata": {"annotations": {key: "intranet"}}}}}
    instance_id, _ = account.deploy(ChartValues=values)
    assert json.loads(account.instance(instance_id)["Outputs"])["Instruction"].startswith("http://192.168.")


def test_a_cluster_ip_service_never_satisfies_the_template(account: Account) -> None:
    instance_id = account.create(ChartValues={"service": {"type": "ClusterIP"}})
    account.pass_time(3.2)
    body = account.instance(instance_id)
    assert body["Status"] == "DeployedFailed"
    assert "WaitUntil timed out" in body["StatusDetail"]


@pytest.mark.parametrize("name", ["Ray-One", "ray_one", "9-", "ray-"])
def test_a_name_that_is_no_namespace_passes_the_api_and_fails_minutes_later(
    account: Account, name: str
) -> None:
    instance_id = account.create(name)
    account.pass_time(2.9)
    assert account.instance(instance_id)["Status"] == "Deploying"
    account.pass_time(0.3)
    body = account.instance(instance_id)
    assert body["Status"] == "DeployedFailed"
    assert "RFC 1123" in body["StatusDetail"]
    assert "worker" in account.owned()


@pytest.mark.parametrize("name", ["-ray", "_ray", "ray one", "räy", "a" * 65])
def test_a_name_that_the_api_refuses(account: Account, name: str) -> None:
    assert refusal(lambda: account.create(name)).code == "InvalidParameter.Name"
    assert account.cloud.world.instances == {}


def test_the_namespace_is_the_instance_name(account: Account) -> None:
    _, cluster_id = account.deploy("ray-two")
    assert account.sides[cluster_id].namespaces == ["ray-two"]


def test_the_nodes_are_those_that_were_ordered(account: Account) -> None:
    _, cluster_id = account.deploy(WorkerInstanceCount=2)
    nodes = account.sides[cluster_id].nodes
    assert [(each.instance_type, each.cpu, each.memory_gib, each.gpus, each.disk_gib) for each in nodes] == [
        ("ecs.gn7i-c8g1.2xlarge", 8, 30.0, 1, 1024)
    ] * 2
    assert len({each.name for each in nodes}) == 2


def test_the_ledger_holds_the_whole_stack_with_its_prices(account: Account) -> None:
    instance_id, _ = account.deploy()
    assert account.owned() == STACK
    bought = account.cloud.world.purchases
    assert {each.owner for each in bought} == {instance_id}
    prices = {each.kind: Decimal(each.hourly_price) for each in bought}
    assert prices["cluster"] == Decimal("0.64")
    assert prices["worker"] == Decimal("18.065") + 1024 * Decimal("0.0014")


def test_the_same_token_orders_once(account: Account) -> None:
    first = account.create(token="order-1")
    account.pass_time(1.0)
    assert account.create(token="order-1") == first
    assert list(account.cloud.world.instances) == [first]


def test_the_same_token_with_other_arguments_is_refused(account: Account) -> None:
    account.create(token="order-1")
    error = refusal(lambda: account.create(token="order-1", WorkerInstanceCount=2))
    assert (error.status, error.code) == (400, "IdempotentParameterMismatch")


def test_without_a_token_the_same_order_is_bought_twice(account: Account) -> None:
    assert account.create() != account.create()
    account.pass_time(3.2)
    assert account.owned().count("cluster") == 2


@pytest.mark.parametrize("token", ["x" * 65, "tökén"])
def test_a_token_must_be_short_ascii(account: Account, token: str) -> None:
    assert refusal(lambda: account.create(token=token)).code == "InvalidParameter.ClientToken"


def test_a_dry_run_checks_everything_and_buys_nothing(account: Account) -> None:
    good = order(account, "ray-one") | {"DryRun": "True", "ClientToken": "t"}
    assert account.ask("nest", "CreateServiceInstance", **good)["ServiceInstanceId"] == ""
    bad = order(account, "ray-one", ZoneId="nowhere") | {"DryRun": "True"}
    assert (
        refusal(lambda: account.ask("nest", "CreateServiceInstance", **bad)).code == "StackValidationFailed"
    )
    account.pass_time(4)
    assert account.cloud.world.purchases == []
    # And it doesn't use the token up.
    assert account.create(token="t")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ServiceId": "service-0"}, "EntityNotExist.Service"),
        ({"ServiceId": ""}, "MissingParameter"),
        ({"ServiceVersion": "99"}, "EntityNotExist.ServiceVersion"),
        ({"TemplateName": "other"}, "InvalidParameter.TemplateName"),
        ({"Parameters": "{"}, "InvalidParameter.Parameters"),
        ({"Name": ""}, "MissingParameter"),
        (
            {"Parameters": '{"RegionId": "ap-southeast-1", "CsOptions": "ExistCs", "ClusterId": "c0"}'},
            "StackValidationFailed",
        ),
    ],
)
def test_an_order_of_something_else_is_refused(account: Account, change: dict[str, str], code: str) -> None:
    assert (
        refusal(lambda: account.ask("nest", "CreateServiceInstance", **order(account, "a") | change)).code
        == code
    )


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ({}, {"ZoneId": "ap-southeast-1b"}),
        ({"zone": "ap-southeast-1a"}, {}),
        ({"zone": None}, {}),
        ({"instance_type": "ecs.gn7i-c8g1.2xlarge"}, {}),
    ],
)
def test_out_of_stock_fails_on_the_way_and_leaves_what_was_bought(
    account: Account, fault: dict[str, Any], changes: dict[str, Any]
) -> None:
    if fault:
        account.faults.set("sold_out", **fault)
    instance_id = account.create(**changes)
    account.pass_time(3.2)
    body = account.instance(instance_id)
    assert body["Status"] == "DeployedFailed"
    assert "OperationDenied.NoStock" in body["StatusDetail"]
    assert "worker" not in account.owned() and "cluster" in account.owned()


def test_another_zone_being_sold_out_does_not_matter(account: Account) -> None:
    account.faults.set("sold_out", zone="ap-southeast-1c")
    account.deploy()


def test_a_failed_deployment_says_why_in_detail_and_logs(account: Account) -> None:
    account.faults.set("failed_deployment", reason="vCPU quota used up", count=1)
    instance_id = account.create()
    account.pass_time(3.2)
    assert account.instance(instance_id)["StatusDetail"] == "vCPU quota used up"
    given = {"RegionId": REGION, "ServiceInstanceId": instance_id}
    logs = account.ask("nest", "ListServiceInstanceLogs", **given)["ServiceInstancesLogs"]
    assert [each["Status"] for each in logs[:2]] == ["DeployedFailed", "CREATE_FAILED"]
    assert logs[1]["Content"] == "vCPU quota used up"
    ros = account.ask("nest", "ListServiceInstanceLogs", LogSource="ros", SortOrder="Ascending", **given)
    assert {each["Source"] for each in ros["ServiceInstancesLogs"]} == {"ros"}
    # The fault was for one deployment.
    account.deploy("ray-two")


def test_a_slow_task_keeps_a_deployment_waiting_until_it_is_cleared(account: Account) -> None:
    account.faults.set("slow_task", seconds=60)
    instance_id = account.create()
    account.pass_time(30)
    assert account.instance(instance_id)["Status"] == "Deploying"
    account.faults.clear("slow_task")
    account.pass_time(0.1)
    assert account.instance(instance_id)["Status"] == "Deployed"


def test_an_existing_cluster_gets_a_namespace_and_survives_the_instance(account: Account) -> None:
    _, cluster_id = account.deploy()
    given = {"CsOptions": "ExistCs", "ClusterId": cluster_id}
    second = account.create("ray-two", **given)
    account.pass_time(3.2)
    assert account.instance(second)["Status"] == "Deployed"
    assert account.sides[cluster_id].namespaces == ["ray-one", "ray-two"]
    account.delete(second)
    account.pass_time(2)
    assert cluster_id in account.cloud.world.clusters
    assert account.owned() == STACK


def test_serverless_clusters_are_not_emulated_and_say_so(account: Account) -> None:
    instance_id = account.create(CsOptions="NewAcs")
    account.pass_time(3.2)
    assert "ACS" in account.instance(instance_id)["StatusDetail"]
    assert account.owned() == []


def test_deletion_takes_a_while_and_ends_in_not_found(account: Account) -> None:
    instance_id, cluster_id = account.deploy()
    account.delete(instance_id)
    assert account.instance(instance_id)["Status"] == "Deleting"
    assert account.owned() == STACK
    account.pass_time(1.1)
    assert account.instance(instance_id)["Status"] == "Deleted"
    assert account.owned() == []
    assert account.sides[cluster_id].log[-1] == "close True"
    account.pass_time(0.6)
    error = refusal(lambda: account.instance(instance_id))
    assert (error.status, error.code) == (404, "ServiceInstanceNotFound")


def test_deleting_twice_is_deleting_once(account: Account) -> None:
    instance_id, _ = account.deploy()
    account.delete(instance_id)
    account.pass_time(0.9)
    account.delete(instance_id)
    account.pass_time(0.2)
    assert account.instance(instance_id)["Status"] == "Deleted"


def test_an_unknown_instance_among_several_stops_the_whole_deletion(account: Account) -> None:
    instance_id, _ = account.deploy()
    given = {"RegionId": REGION, "ServiceInstanceId.1": instance_id, "ServiceInstanceId.2": "si-0"}
    assert (
        refusal(lambda: account.ask("nest", "DeleteServiceInstances", **given)).code
        == "ServiceInstanceNotFound"
    )
    assert account.instance(instance_id)["Status"] == "Deployed"


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.5])
def test_an_instance_can_be_deleted_at_any_point_of_its_deployment(account: Account, after: float) -> None:
    instance_id = account.create()
    if after:
        account.pass_time(after)
    account.delete(instance_id)
    account.pass_time(2.0)
    assert account.cloud.world.instances == {}
    assert account.owned() == []
    assert account.cloud.world.eips == {}


def test_deletion_protection_ends_in_deleted_failed_and_can_be_repeated(account: Account) -> None:
    instance_id, cluster_id = account.deploy()
    account.roa("PUT", f"/api/v2/clusters/{cluster_id}", {"deletion_protection": True})
    account.delete(instance_id)
    account.pass_time(1.2)
    body = account.instance(instance_id)
    assert body["Status"] == "DeletedFailed"
    assert "protection" in body["StatusDetail"]
    account.roa("PUT", f"/api/v2/clusters/{cluster_id}", {"deletion_protection": False})
    account.delete(instance_id)
    account.pass_time(2)
    assert account.owned() == []


@pytest.mark.parametrize("at", [0.05, 0.6, 1.4, 2.0, 2.4, 2.95, 3.2])
def test_a_restart_at_any_point_ends_deployed_with_one_of_everything(account: Account, at: float) -> None:
    instance_id = account.create()
    account.pass_time(at)
    account.restart()
    account.pass_time(3.5)
    assert account.instance(instance_id)["Status"] == "Deployed"
    assert account.owned() == STACK
    (side,) = account.sides.values()
    assert side.log.count("open") == 1


@pytest.mark.parametrize("at", [0.05, 0.9, 1.2])
def test_a_restart_during_a_deletion_ends_with_nothing(account: Account, at: float) -> None:
    instance_id, cluster_id = account.deploy()
    account.delete(instance_id)
    account.pass_time(at)
    account.restart()
    account.pass_time(2)
    assert account.cloud.world.instances == {}
    assert account.owned() == []
    assert not (account.directory / cluster_id).exists()
