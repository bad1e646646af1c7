"""The front door: which action, who may, which fault, error shapes; and the checks before an order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sandbox_account import REGION, SERVICE_NAME, Account, Refused, order, roa, rpc

FIVE = (
    "AliyunCSFullAccess",
    "AliyunECSFullAccess",
    "AliyunVPCFullAccess",
    "AliyunROSFullAccess",
    "AliyunComputeNestUserFullAccess",
)


def refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def whoami(account: Account) -> dict[str, Any]:
    found: dict[str, Any] = account.ask("sts", "GetCallerIdentity")
    return found


def test_rpc_errors_have_the_real_shape(account: Account) -> None:
    error = refusal(lambda: account.instance("si-0"))
    assert set(error.body) == {"RequestId", "HostId", "Code", "Message", "Recommend"}
    assert error.body["RequestId"].count("-") == 4


def test_a_wrong_signature_is_answered_in_the_caller_s_style(account: Account) -> None:
    request = rpc("sts", "GetCallerIdentity", {}, account.now)
    answer = account.send(replace(request, headers={**request.headers, "host": "other"}))
    assert (answer.status, json.loads(answer.body)["Code"]) == (400, "SignatureDoesNotMatch")
    request = roa("GET", "/clusters/c1", {}, None, account.now)
    answer = account.send(replace(request, target="/clusters/c2"))
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "SignatureDoesNotMatch")


def test_unknown_actions_versions_and_paths_are_not_found(account: Account) -> None:
    assert refusal(lambda: account.ask("nest", "MakeCoffee")).code == "InvalidAction.NotFound"
    assert refusal(lambda: account.roa("POST", "/clusters")).code == "InvalidAction.NotFound"
    assert refusal(lambda: account.roa("GET", "/clusters/a/b/c")).code == "InvalidAction.NotFound"
    request = rpc("sts", "GetCallerIdentity", {}, account.now)
    answer = account.send(replace(request, headers={**request.headers, "x-acs-version": "1999-01-01"}))
    assert (answer.status, json.loads(answer.body)["Code"]) == (404, "InvalidVersion")


@pytest.mark.parametrize("action", ["CheckServiceDeployable", "ValidateServiceInstanceName"])
def test_the_supplier_side_lacks_what_only_users_have(account: Account, action: str) -> None:
    assert refusal(lambda: account.ask("supplier", action)).code == "InvalidAction.NotFound"


def test_the_supplier_side_orders_and_lists_like_the_user_side(account: Account) -> None:
    given = order(account, "ray-one", "t") | {"UserId": "1"}
    instance_id = account.ask("supplier", "CreateServiceInstance", **given)["ServiceInstanceId"]
    account.pass_time(3.2)
    body = account.ask("supplier", "GetServiceInstance", RegionId=REGION, ServiceInstanceId=instance_id)
    assert body["Status"] == "Deployed"
    assert account.ask("supplier", "ListServiceInstances", RegionId=REGION)["TotalCount"] == 1


@pytest.mark.parametrize("body", [b"{", b"[]"])
def test_a_body_that_is_no_json_object_is_refused(account: Account, body: bytes) -> None:
    from sandbox_account import VERSIONS, signed

    headers = {"content-type": "application/json"}
    request = signed("PUT", "/api/v2/clusters/c1", {}, body, headers, VERSIONS["cs"], account.now)
    answer = account.send(request)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "InvalidJSON")


def test_form_parameters_count_like_those_of_the_query(account: Account) -> None:
    from sandbox_account import VERSIONS, signed

    headers = {"content-type": "application/x-www-form-urlencoded", "x-acs-action": "DescribeEipAddresses"}
    body = f"RegionId={REGION}".encode()
    answer = account.send(signed("POST", "/", {}, body, headers, VERSIONS["vpc"], account.now))
    assert answer.status == 200


def test_throttling_refuses_so_many_calls(account: Account) -> None:
    account.faults.set("throttling", count=2)
    for _ in range(2):
        error = refusal(lambda: whoami(account))
        assert (error.status, error.code) == (400, "Throttling.User")
    assert whoami(account)["IdentityType"] == "RAMUser"


def test_throttling_of_container_service_is_429_and_may_say_when_to_return(account: Account) -> None:
    account.faults.set("throttling", count=1, retry_after_ms=250)
    answer = account.send(roa("GET", "/api/v1/clusters", {}, None, account.now))
    assert (answer.status, answer.headers) == (429, {"x-acs-retry-after": "250"})
    assert json.loads(answer.body)["code"] == "Throttling.User"


def test_a_fault_of_one_action_leaves_the_others_alone(account: Account) -> None:
    account.faults.set("throttling", count=1, action="vpc:DescribeEipAddresses")
    assert whoami(account)
    assert (
        refusal(lambda: account.ask("vpc", "DescribeEipAddresses", RegionId=REGION)).code == "Throttling.User"
    )


def test_a_call_with_a_wrong_signature_does_not_use_a_fault_up(account: Account) -> None:
    account.faults.set("throttling", count=1)
    request = rpc("sts", "GetCallerIdentity", {}, account.now)
    account.send(replace(request, headers={**request.headers, "host": "other"}))
    assert account.faults.active("throttling") is not None


def test_unavailable_is_an_html_page(account: Account) -> None:
    account.faults.set("unavailable", count=1)
    answer = account.send(rpc("sts", "GetCallerIdentity", {}, account.now))
    assert (answer.status, answer.content_type) == (503, "text/html")
    assert answer.body.startswith(b"<html>")
    assert whoami(account)


def test_a_lost_response_carries_the_call_out(account: Account) -> None:
    account.faults.set("lost_response", action="AllocateEipAddress")
    assert whoami(account)
    params = {"RegionId": REGION, "ClientToken": "once"}
    assert account.send(rpc("vpc", "AllocateEipAddress", params, account.now)).drop
    again = account.send(rpc("vpc", "AllocateEipAddress", params, account.now))
    assert not again.drop
    assert list(account.cloud.world.eips) == [json.loads(again.body)["AllocationId"]]


def test_the_state_is_saved_before_the_answer_goes_out(account: Account) -> None:
    before = account.saves
    account.allocate()
    assert account.saves == before + 1


def test_the_call_log_knows_actions_and_outcomes_but_no_parameters(account: Account) -> None:
    account.create(LoginPassword="Unseen+12&")
    refusal(lambda: account.instance("si-0"))
    account.faults.set("throttling", count=1)
    refusal(lambda: whoami(account))
    calls = [
        (each["product"], each["action"], each["status"], each["code"]) for each in account.gateway.calls
    ]
    assert calls == [
        ("computenest", "GetService", 200, ""),
        ("computenest", "CreateServiceInstance", 200, ""),
        ("computenest", "GetServiceInstance", 404, "ServiceInstanceNotFound"),
        ("sts", "GetCallerIdentity", 400, "Throttling.User"),
    ]
    assert account.gateway.calls[-1]["fault"] == "throttling"
    assert "Unseen+12&" not in repr(account.gateway.calls)


@pytest.mark.parametrize("pattern", ["vpc:AllocateEipAddress", "AllocateEipAddress", "vpc:*", "*"])
def test_a_denied_action_is_refused_by_name(account: Account, pattern: str) -> None:
    account.faults.set("denied", action=pattern)
    error = refusal(account.allocate)
    assert error.status == 403
    detail = error.body["AccessDeniedDetail"]
    assert (detail["AuthAction"], detail["NoPermissionType"]) == ("vpc:AllocateEipAddress", "ExplicitDeny")
    assert account.owned() == []
    # Nobody can be kept from asking who they are.
    assert whoami(account)


def test_a_denial_by_container_service_is_in_its_own_style(account: Account) -> None:
    account.faults.set("denied", action="cs:DescribeClustersV1")
    error = refusal(lambda: account.roa("GET", "/api/v1/clusters"))
    assert (error.status, error.code) == (403, "StatusForbidden")
    assert error.body["accessDeniedDetail"]["AuthAction"] == "cs:DescribeClustersV1"


def test_the_walkthrough_s_five_policies_reach_neither_ram_nor_the_supplier_side(tmp_path: Path) -> None:
    account = Account(tmp_path, policies=FIVE)
    account.deploy()
    error = refusal(lambda: account.ask("ram", "ListPoliciesForUser", UserName="raynest-sandbox"))
    assert (error.status, error.code) == (403, "NoPermission")
    assert error.body["AccessDeniedDetail"]["NoPermissionType"] == "ImplicitDeny"
    assert refusal(lambda: account.ask("supplier", "ListServices", RegionId=REGION)).status == 403


def policy(account: Account) -> dict[str, list[str]]:
    """GenerateServicePolicy's missing actions, by service."""
    given = {
        "RegionId": REGION,
        "ServiceId": account.service_id(),
        "OperationTypes.1": "CreateServiceInstance",
    }
    body = account.ask("nest", "GenerateServicePolicy", **given)
    assert json.loads(body["Policy"])["Version"] == "1"
    return {each["ServiceName"]: each["Action"] for each in body["MissingPolicy"]}


def test_a_missing_policy_is_named_beforehand_and_refuses_the_order(tmp_path: Path) -> None:
    account = Account(tmp_path, policies=tuple(each for each in FIVE if "VPC" not in each))
    assert list(policy(account)) == ["vpc"]
    error = refusal(lambda: account.create())
    assert error.status == 403
    assert error.body["AccessDeniedDetail"]["AuthAction"] in policy(account)["vpc"]
    assert account.cloud.world.instances == {}


def test_nothing_is_missing_with_the_five_policies_until_one_action_is_denied(tmp_path: Path) -> None:
    account = Account(tmp_path, policies=FIVE)
    assert policy(account) == {}
    account.faults.set("denied", action="cs:CreateCluster")
    assert policy(account) == {"cs": ["cs:CreateCluster"]}
    assert refusal(lambda: account.create()).body["AccessDeniedDetail"]["AuthAction"] == "cs:CreateCluster"


def test_who_the_caller_is(account: Account, tmp_path: Path) -> None:
    body = whoami(account)
    assert body["IdentityType"] == "RAMUser"
    assert body["Arn"] == f"acs:ram::{body['AccountId']}:user/raynest-sandbox"
    root = whoami(Account(tmp_path, root=True))
    assert (root["IdentityType"], root["UserId"]) == ("Account", root["AccountId"])
    assert root["Arn"].endswith(":root")


def test_a_root_account_needs_no_policies(tmp_path: Path) -> None:
    account = Account(tmp_path, root=True, policies=())
    account.deploy()


def test_policies_hang_on_the_user_and_on_a_group(account: Account) -> None:
    direct = account.ask("ram", "ListPoliciesForUser", UserName="raynest-sandbox")["Policies"]["Policy"]
    groups = account.ask("ram", "ListGroupsForUser", UserName="raynest-sandbox")["Groups"]["Group"]
    (group,) = groups
    through = account.ask("ram", "ListPoliciesForGroup", GroupName=group["GroupName"])["Policies"]["Policy"]
    assert {each["PolicyName"] for each in direct + through} == set(account.policies)
    assert through
    assert (
        refusal(lambda: account.ask("ram", "ListPoliciesForUser", UserName="x")).code == "EntityNotExist.User"
    )
    assert (
        refusal(lambda: account.ask("ram", "ListPoliciesForGroup", GroupName="x")).code
        == "EntityNotExist.Group"
    )


def test_the_service_is_found_by_its_exact_name_on_the_user_side_only(account: Account) -> None:
    given = {"RegionId": REGION, "ServiceName": SERVICE_NAME}
    body = account.ask("nest", "GetService", **given)
    assert body["ServiceInfos"][0]["Name"] == SERVICE_NAME
    metadata = json.loads(body["DeployMetadata"])
    assert metadata["TemplateConfigs"][0]["AllowedRegions"] == [REGION]
    assert refusal(lambda: account.ask("supplier", "GetService", **given)).code == "MissingParameter"
    by_id = account.ask("supplier", "GetService", RegionId=REGION, ServiceId=body["ServiceId"])
    assert by_id["ServiceId"] == body["ServiceId"]
    given["ServiceName"] = "Ray"
    assert refusal(lambda: account.ask("nest", "GetService", **given)).code == "EntityNotExist.Service"


def test_a_search_for_the_service_finds_another_one_first(account: Account) -> None:
    given = {"RegionId": REGION, "Filter.1.Name": "Name", "Filter.1.Value.1": SERVICE_NAME}
    found = account.ask("nest", "ListServices", **given)["Services"]
    names = [each["ServiceInfos"][0]["Name"] for each in found]
    assert names[0] != SERVICE_NAME and SERVICE_NAME in names
    assert account.ask("nest", "ListServices", RegionId=REGION, FuzzyKeyword="Spark")["Services"] == []


def estimate(account: Account, **changes: Any) -> dict[str, Any]:
    given = order(account, "x", **changes)
    resources: dict[str, Any] = account.ask("nest", "GetServiceEstimateCost", **given)["Resources"]
    return resources


def test_the_estimate_has_lines_of_other_units_and_one_without_a_price(account: Account) -> None:
    lines = estimate(account, WorkerInstanceCount=2)
    units = {each["Result"]["OrderSupplement"]["PriceUnit"] for each in lines.values() if each["Success"]}
    assert units == {"/Hour", "/GB"}
    assert [each for each in lines.values() if not each["Success"]]
    workers = lines["AckOrAcsClusterModule.EcsInstanceWorker"]["Result"]
    assert workers["OrderSupplement"]["Quantity"] == 2
    assert workers["Order"]["TradeAmount"] == pytest.approx(2 * (18.065 + 1024 * 0.0014))


def test_the_estimate_is_what_the_ledger_then_shows(account: Account) -> None:
    lines = [each["Result"] for each in estimate(account).values() if each["Success"]]
    hourly = [
        each["Order"]["TradeAmount"] for each in lines if each["OrderSupplement"]["PriceUnit"] == "/Hour"
    ]
    account.deploy()
    bought = [float(each.hourly_price) for each in account.cloud.world.purchases]
    # The dashboard's load balancer is the line that the estimate can't price.
    assert sum(bought) == pytest.approx(sum(hourly) + 0.1)


def test_an_existing_cluster_costs_nothing_known(account: Account) -> None:
    lines = estimate(account, CsOptions="ExistCs", ClusterId="c0")
    assert [each["Success"] for each in lines.values()] == [False]


def test_services_are_activated_and_roles_granted(account: Account) -> None:
    given = {"RegionId": REGION, "ServiceId": account.service_id()}
    found = account.ask("nest", "GetServiceProvisions", **given)["ServiceProvisions"]
    by_name = {each["ServiceName"]: each for each in found}
    assert by_name["CS"]["Status"] == "Enabled"
    assert all(role["Created"] for role in by_name["CS"]["RoleProvision"]["Roles"])


def test_balance_suffices(account: Account) -> None:
    given = {"RegionId": REGION, "ServiceId": account.service_id(), "PostPaidAmount": "20"}
    (check,) = account.ask("nest", "CheckServiceDeployable", **given)["CheckResults"]
    assert (check["Type"], check["Value"]) == ("Balance", "true")


def test_the_allowed_worker_types_follow_the_zone_and_the_stock(account: Account) -> None:
    def types(zone: str) -> list[str]:
        given = {
            "RegionId": REGION,
            "DeployRegionId": REGION,
            "ServiceId": account.service_id(),
            "TemplateName": "容器集群版",
            "Parameters.1.ParameterKey": "ZoneId",
            "Parameters.1.ParameterValue": zone,
        }
        body = account.ask("nest", "GetServiceTemplateParameterConstraints", **given)
        by_key = {each["ParameterKey"]: each["AllowedValues"] for each in body["ParameterConstraints"]}
        assert zone in by_key["ZoneId"]
        return list(by_key["WorkerInstanceType"])

    assert "ecs.gn7i-c8g1.2xlarge" in types(f"{REGION}a")
    assert "ecs.gn7i-c8g1.2xlarge" not in types(f"{REGION}b")
    account.faults.set("sold_out", zone=f"{REGION}a")
    assert types(f"{REGION}a") == []
    given = {"RegionId": REGION, "ServiceId": account.service_id()}
    assert (
        refusal(lambda: account.ask("nest", "GetServiceTemplateParameterConstraints", **given)).code
        == "MissingParameter"
    )


def test_the_stack_lists_the_cluster_under_its_type(account: Account) -> None:
    instance_id, cluster_id = account.deploy()
    (stack,) = json.loads(account.instance(instance_id)["Resources"])
    given = {"RegionId": REGION, "StackId": stack["StackId"]}
    found = account.ask("ros", "ListStackResources", **given)["Resources"]
    by_type = {each["ResourceType"]: each["PhysicalResourceId"] for each in found}
    assert by_type["ALIYUN::CS::ManagedKubernetesCluster"] == cluster_id
    given["RegionId"] = "cn-hangzhou"
    assert refusal(lambda: account.ask("ros", "ListStackResources", **given)).code == "StackNotFound"


def test_a_stack_that_has_made_nothing_yet_is_empty(account: Account) -> None:
    instance = account.cloud.world.instances[account.create()]
    given = {"RegionId": REGION, "StackId": instance.stack_id}
    assert account.ask("ros", "ListStackResources", **given)["Resources"] == []


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("/?A=http://x/y", "/?A=http://x/y"),
        ("http://127.0.0.1:1/?A=1", "/?A=1"),
        ("http://127.0.0.1:1/clusters/c1", "/clusters/c1"),
        ("http://127.0.0.1:1", "/"),
    ],
)
def test_a_target_may_be_a_whole_url(target: str, form: str) -> None:
    from raynest_pipeline.sandbox.server import origin_form

    assert origin_form(target) == form
