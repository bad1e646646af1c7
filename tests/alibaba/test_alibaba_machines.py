"""ECS, STS, RAM and ROS."""

from decimal import Decimal
from typing import Any

import pytest

from raynest_pipeline.alibaba.ecs import InstanceType
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.errors import Verdict

A10 = {
    "InstanceTypeId": "ecs.gn7i-c8g1.2xlarge",
    "CpuCoreCount": 8,
    "MemorySize": 30.0,
    "GPUAmount": 1,
    "GPUSpec": "NVIDIA A10",
    "GPUMemorySize": 24.0,
}
USER = Caller("RAMUser", "1968", "acs:ram::1968:user/alice", "alice")
ROLE = Caller("AssumedRoleUser", "1968", "acs:ram::1968:assumed-role/worker/session", "worker")
ROOT = Caller("Account", "1968", "acs:ram::1968:root", "root")


class TestInstanceType:
    def test_is_read(self, bench: Any) -> None:
        bench.server.answer("DescribeInstanceTypes", {**bench.ok, "InstanceTypes": {"InstanceType": [A10]}})
        assert bench.cloud.machines.instance_type(A10["InstanceTypeId"]) == InstanceType(
            "ecs.gn7i-c8g1.2xlarge", 8, 30.0, 1, 24.0, "NVIDIA A10"
        )
        assert bench.server.calls[0].query == {"InstanceTypes.1": "ecs.gn7i-c8g1.2xlarge"}
        assert bench.server.calls[0].version == "2014-05-26"

    def test_a_machine_without_gpu(self, bench: Any) -> None:
        plain = {"InstanceTypeId": "ecs.c7.large", "CpuCoreCount": 2, "MemorySize": 4}
        bench.server.answer("DescribeInstanceTypes", {**bench.ok, "InstanceTypes": {"InstanceType": [plain]}})
        found = bench.cloud.machines.instance_type("ecs.c7.large")
        assert (found.gpus, found.gpu_memory_gib, found.gpu_name) == (0, 0.0, "")

    @pytest.mark.parametrize("items", [[], [{**A10, "InstanceTypeId": "ecs.other"}]])
    def test_an_unknown_one_is_none(self, bench: Any, items: list[Any]) -> None:
        bench.server.answer("DescribeInstanceTypes", {**bench.ok, "InstanceTypes": {"InstanceType": items}})
        assert bench.cloud.machines.instance_type(A10["InstanceTypeId"]) is None

    def test_one_without_size_is_refused(self, bench: Any) -> None:
        bare = {"InstanceTypeId": A10["InstanceTypeId"]}
        bench.server.answer("DescribeInstanceTypes", {**bench.ok, "InstanceTypes": {"InstanceType": [bare]}})
        with pytest.raises(CloudError) as caught:
            bench.cloud.machines.instance_type(A10["InstanceTypeId"])
        assert caught.value.verdict is Verdict.UNKNOWN


def zone(zone_id: str, status: str, stock: str, value: str = "ecs.x") -> dict[str, Any]:
    resource = {"Value": value, "Status": status, "StatusCategory": stock}
    kinds = [{"Type": "InstanceType", "SupportedResources": {"SupportedResource": [resource]}}]
    return {"ZoneId": zone_id, "Status": "Available", "AvailableResources": {"AvailableResource": kinds}}


class TestZones:
    def test_in_stock_come_first(self, bench: Any) -> None:
        zones = [
            zone("a", "SoldOut", "WithoutStock"),
            zone("b", "Available", "ClosedWithStock"),
            zone("c", "Available", "WithStock"),
            zone("d", "Available", "ClosedWithoutStock"),
            zone("e", "Available", "WithStock", value="ecs.other"),
        ]
        bench.server.answer(
            "DescribeAvailableResource", {**bench.ok, "AvailableZones": {"AvailableZone": zones}}
        )
        found = bench.cloud.machines.zones_in_stock("ap-southeast-1", "ecs.x", "cloud_essd")
        assert [(item.zone_id, item.available) for item in found] == [
            ("c", True),
            ("b", True),
            ("a", False),
            ("d", False),
        ]
        assert bench.server.calls[0].query == {
            "RegionId": "ap-southeast-1",
            "DestinationResource": "InstanceType",
            "InstanceType": "ecs.x",
            "InstanceChargeType": "PostPaid",
            "SystemDiskCategory": "cloud_essd",
            "NetworkCategory": "vpc",
        }

    def test_a_type_that_no_zone_knows(self, bench: Any) -> None:
        bench.server.answer("DescribeAvailableResource", dict(bench.ok))
        assert bench.cloud.machines.zones_in_stock("r", "ecs.x", "cloud_essd") == []


class TestHourlyPrice:
    def ask(self, bench: Any, price: Any) -> Any:
        bench.server.answer("DescribePrice", {**bench.ok, "PriceInfo": {"Price": price}})
        return bench.cloud.machines.hourly_price(
            "ecs.x", count=3, disk_category="cloud_essd", disk_gib=1024, zone_id="z"
        )

    def test_is_for_all_machines(self, bench: Any) -> None:
        price = self.ask(bench, {"Currency": "CNY", "OriginalPrice": 18.065, "TradePrice": 9.0})
        assert (price.amount, price.currency, price.lower_bound) == (Decimal("54.195"), "CNY", False)
        query = bench.server.calls[0].query
        assert (query["PriceUnit"], query["SystemDisk.Size"], query["SystemDisk.Category"]) == (
            "Hour",
            "1024",
            "cloud_essd",
        )

    def test_without_list_price(self, bench: Any) -> None:
        assert self.ask(bench, {"Currency": "USD", "TradePrice": 1}).amount == Decimal(3)

    @pytest.mark.parametrize("price", [None, {}, {"OriginalPrice": 1}])
    def test_none_in_the_answer(self, bench: Any, price: Any) -> None:
        assert self.ask(bench, price) is None


class TestCaller:
    @pytest.mark.parametrize("caller", [USER, ROLE, ROOT])
    def test_is_read(self, bench: Any, caller: Caller) -> None:
        bench.server.answer(
            "GetCallerIdentity",
            {**bench.ok, "IdentityType": caller.identity_type, "AccountId": "1968", "Arn": caller.arn},
        )
        assert bench.cloud.identity.caller() == caller
        assert caller.is_root == (caller is ROOT)

    def test_a_denied_one_says_so(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", bench.error(404, "InvalidAccessKeyId.NotFound"))
        with pytest.raises(CloudError) as caught:
            bench.cloud.identity.caller()
        assert caught.value.access
        assert "access_key_id" in caught.value.fix


def policies(bench: Any, *names: str) -> dict[str, Any]:
    return {
        **bench.ok,
        "Policies": {"Policy": [{"PolicyName": name, "PolicyType": "System"} for name in names]},
    }


class TestPolicies:
    def test_of_a_user_and_its_groups(self, bench: Any) -> None:
        bench.server.answer("ListPoliciesForUser", policies(bench, "AliyunCSFullAccess"))
        groups = [{"GroupName": "dev"}, {"GroupName": "ops"}]
        bench.server.answer("ListGroupsForUser", {**bench.ok, "Groups": {"Group": groups}})
        bench.server.answer(
            "ListPoliciesForGroup",
            policies(bench, "AliyunVPCFullAccess"),
            policies(bench, "AliyunROSFullAccess"),
        )
        assert bench.cloud.policies.attached_policies(USER) == {
            "AliyunCSFullAccess",
            "AliyunVPCFullAccess",
            "AliyunROSFullAccess",
        }
        assert bench.server.calls[0].query == {"UserName": "alice"}
        assert [call.query["GroupName"] for call in bench.server.asked("ListPoliciesForGroup")] == [
            "dev",
            "ops",
        ]

    def test_of_a_role(self, bench: Any) -> None:
        bench.server.answer("ListPoliciesForRole", policies(bench, "AdministratorAccess"))
        assert bench.cloud.policies.attached_policies(ROLE) == {"AdministratorAccess"}
        assert bench.server.calls[0].query == {"RoleName": "worker"}

    def test_the_account_itself_has_none(self, bench: Any) -> None:
        assert bench.cloud.policies.attached_policies(ROOT) == set()
        assert bench.server.calls == []

    @pytest.mark.parametrize(
        ("status", "code"), [(403, "NoPermission"), (404, "EntityNotExist.User"), (403, "Odd")]
    )
    def test_denied_is_not_known_rather_than_none(self, bench: Any, status: int, code: str) -> None:
        bench.server.answer("ListPoliciesForUser", bench.error(status, code))
        assert bench.cloud.policies.attached_policies(USER) is None

    def test_a_denied_group_makes_all_unknown(self, bench: Any) -> None:
        bench.server.answer("ListPoliciesForUser", policies(bench, "AliyunCSFullAccess"))
        bench.server.answer("ListGroupsForUser", bench.error(403, "NoPermission"))
        assert bench.cloud.policies.attached_policies(USER) is None

    def test_a_broken_service_is_an_error(self, bench: Any) -> None:
        bench.server.answer("ListPoliciesForUser", bench.error(500, "InternalError"))
        with pytest.raises(CloudError):
            bench.cloud.policies.attached_policies(USER)

    def test_another_kind_of_caller(self, bench: Any) -> None:
        assert bench.cloud.policies.attached_policies(Caller("Robot", "1", "a", "r")) is None


class TestStacks:
    def test_resources(self, bench: Any) -> None:
        cluster = {
            "LogicalResourceId": "ManagedKubernetesCluster",
            "ResourceType": "ALIYUN::CS::ManagedKubernetesCluster",
            "PhysicalResourceId": "c01f9e6651cff45c5b33fd7c4b1a57bbf",
            "Status": "CREATE_COMPLETE",
        }
        pending = {"LogicalResourceId": "Nat", "ResourceType": "ALIYUN::VPC::NatGateway"}
        bench.server.answer("ListStackResources", {**bench.ok, "Resources": [cluster, pending]})
        found = bench.cloud.stacks.stack_resources("stack-1", "ap-southeast-1")
        assert [(item.type, item.physical_id) for item in found] == [
            ("ALIYUN::CS::ManagedKubernetesCluster", "c01f9e6651cff45c5b33fd7c4b1a57bbf"),
            ("ALIYUN::VPC::NatGateway", ""),
        ]
        assert bench.server.calls[0].query == {"RegionId": "ap-southeast-1", "StackId": "stack-1"}

    def test_a_stack_that_is_gone(self, bench: Any) -> None:
        bench.server.answer("ListStackResources", bench.error(404, "StackNotFound"))
        assert bench.cloud.stacks.stack_resources("stack-1", "r") == []

    def test_a_denied_look(self, bench: Any) -> None:
        bench.server.answer("ListStackResources", bench.error(403, "NoPermission"))
        with pytest.raises(CloudError) as caught:
            bench.cloud.stacks.stack_resources("stack-1", "r")
        assert caught.value.denied_action == "ros:ListStackResources"
        assert "AliyunROSFullAccess" in caught.value.fix
