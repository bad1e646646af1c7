"""Compute Nest: one port, two SDKs."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from raynest_pipeline.alibaba.computenest import (
    CloudResource,
    DeployCheck,
    MissingPermission,
    Provision,
    Service,
)
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict

NAME, TEMPLATE = "Ray社区版", "容器集群版"
SERVICE = Service("service-1", "3", NAME, (TEMPLATE,), ("ap-southeast-1",))
PARAMETERS = {
    "RegionId": "ap-southeast-1",
    "WorkerInstanceCount": 1,
    "LoginPassword": "Pa+ss&w*rd1",
    "ChartValues": {},
}
GET_SERVICE = {
    "ServiceId": "service-1",
    "Version": "3",
    "Status": "Online",
    "DeployMetadata": json.dumps(
        {"TemplateConfigs": [{"Name": TEMPLATE, "AllowedRegions": ["ap-southeast-1"]}]}
    ),
    "ServiceInfos": [{"Locale": "en-US", "Name": "Ray Community"}, {"Locale": "zh-CN", "Name": NAME}],
}
INSTANCE = {
    "ServiceInstanceId": "si-1",
    "Name": "demo",
    "Status": "Deploying",
    "StatusDetail": "",
    "Progress": 30,
    "TemplateName": TEMPLATE,
    "CreateTime": "2025-02-24T10:37:49Z",
    "Parameters": json.dumps({"RegionId": "ap-southeast-1", "LoginPassword": "******"}),
    "Outputs": json.dumps({"Instruction": "http://47.236.190.119:8265\n", "Count": 3}),
    "Resources": json.dumps([{"StackId": "stack-1"}]),
    "Service": {"ServiceId": "service-1", "Version": "3"},
    "Tags": [{"Key": "raynest", "Value": "demo"}],
}


@pytest.fixture(params=["user", "supplier"])
def side(request: pytest.FixtureRequest, bench: Any) -> Any:
    """The port of each side; the server must not see a difference but for the version."""
    return bench.with_settings(sdk=request.param).instances


def ok(bench: Any, **fields: Any) -> dict[str, Any]:
    return {**bench.ok, **fields}


@pytest.mark.parametrize(("sdk", "version"), [("user", "2021-06-01"), ("supplier", "2021-05-21")])
def test_the_setting_chooses_the_sdk(bench: Any, sdk: str, version: str) -> None:
    bench.server.answer("GetServiceInstance", ok(bench, **INSTANCE))
    bench.with_settings(sdk=sdk).instances.get_instance("si-1")
    assert bench.server.calls[0].version == version


class TestResolveService:
    def test_by_name(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetService", ok(bench, **GET_SERVICE))
        assert side.resolve_service() == SERVICE
        assert bench.server.calls[0].query == {"RegionId": "ap-southeast-1", "ServiceName": NAME}

    def test_by_id_and_version(self, bench: Any) -> None:
        bench.server.answer("GetService", ok(bench, **GET_SERVICE))
        bench.with_settings(service_id="service-1", service_version="3").instances.resolve_service()
        query = bench.server.calls[0].query
        assert (query["ServiceId"], query["ServiceVersion"]) == ("service-1", "3")
        assert "ServiceName" not in query

    def test_in_the_control_planes_region(self, bench: Any) -> None:
        bench.server.answer("GetService", ok(bench, **GET_SERVICE))
        bench.with_settings(region_id="cn-beijing").instances.resolve_service()
        assert bench.server.calls[0].query["RegionId"] == "cn-hangzhou"

    @pytest.mark.parametrize("first", ["gone", "other"])
    def test_else_from_the_catalogue(self, bench: Any, side: Any, first: str) -> None:
        other = ok(bench, **{**GET_SERVICE, "ServiceId": "service-9", "ServiceInfos": [{"Name": "Ray"}]})
        refusal = bench.error(404, "EntityNotExist.Service")
        bench.server.answer("GetService", refusal if first == "gone" else other, ok(bench, **GET_SERVICE))
        near = {"ServiceId": "service-9", "ServiceInfos": [{"Name": NAME + " GPU"}]}
        right = {"ServiceId": "service-1", "ServiceInfos": [{"Name": NAME}]}
        bench.server.answer(
            "ListServices",
            ok(bench, Services=[near], NextToken="t"),
            ok(bench, Services=[right], NextToken=""),
        )
        assert side.resolve_service() == SERVICE
        assert bench.server.asked("ListServices")[1].query["NextToken"] == "t"
        assert bench.server.calls[-1].query["ServiceId"] == "service-1"

    def test_there_is_none(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetService", bench.error(404, "EntityNotExist.Service"))
        bench.server.answer("ListServices", ok(bench, Services=[]))
        with pytest.raises(CloudError, match=f"no service '{NAME}'") as caught:
            side.resolve_service()
        assert caught.value.verdict is Verdict.GONE
        assert "service_id" in caught.value.fix

    def test_denied_is_not_searched_for_elsewhere(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetService", bench.error(403, "NoPermission"))
        with pytest.raises(CloudError) as caught:
            side.resolve_service()
        assert caught.value.access
        assert len(bench.server.calls) == 1

    def test_without_the_template(self, bench: Any) -> None:
        bench.server.answer("GetService", ok(bench, **GET_SERVICE))
        with pytest.raises(CloudError, match=f"no template 'x', only: {TEMPLATE}"):
            bench.with_settings(template_name="x").instances.resolve_service()

    def test_a_service_that_names_no_templates_is_taken_as_it_is(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetService", ok(bench, **{**GET_SERVICE, "DeployMetadata": ""}))
        found = side.resolve_service()
        assert (found.template_names, found.allowed_regions) == ((), ())

    @pytest.mark.parametrize("metadata", ["{", '{"TemplateConfigs": 5}', '{"TemplateConfigs": [5]}'])
    def test_odd_metadata_is_refused(self, bench: Any, side: Any, metadata: str) -> None:
        bench.server.answer("GetService", ok(bench, **{**GET_SERVICE, "DeployMetadata": metadata}))
        with pytest.raises(CloudError) as caught:
            side.resolve_service()
        assert caught.value.verdict is Verdict.UNKNOWN


class TestGetInstance:
    def test_is_read(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetServiceInstance", ok(bench, **INSTANCE))
        found = side.get_instance("si-1")
        assert (found.id, found.name, found.status, found.progress) == ("si-1", "demo", "Deploying", 30)
        assert found.tags == {"raynest": "demo"}
        assert found.parameters == {"RegionId": "ap-southeast-1"}
        assert found.outputs == {"Instruction": "http://47.236.190.119:8265", "Count": "3"}
        assert found.stack_ids == ("stack-1",)
        assert found.created == datetime(2025, 2, 24, 10, 37, 49, tzinfo=UTC)
        assert (found.service_version, found.template_name) == ("3", TEMPLATE)
        assert found.deploy_region == "ap-southeast-1"

    def test_the_bare_minimum(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetServiceInstance", ok(bench, ServiceInstanceId="si-1", Status="Created"))
        found = side.get_instance("si-1")
        assert (found.tags, found.outputs, found.stack_ids, found.created) == ({}, {}, (), None)
        assert (found.progress, found.deploy_region) == (None, "")

    def test_gone(self, bench: Any, side: Any) -> None:
        for gone in (
            bench.error(404, "ServiceInstanceNotFound"),
            ok(bench, **{**INSTANCE, "Status": "Deleted"}),
        ):
            bench.server.answer("GetServiceInstance", gone)
            assert side.get_instance("si-1") is None

    @pytest.mark.parametrize(
        "odd",
        [
            {"Status": 123},
            {"Status": None},
            {"ServiceInstanceId": None},
            {"Tags": "x"},
            {"Tags": [5]},
            {"Progress": "much"},
            {"Parameters": "{"},
            {"Parameters": "[]"},
            {"Outputs": "5"},
            {"Resources": "{}"},
            {"Service": "x"},
            {"RequestId": None},
        ],
    )
    def test_an_odd_field_is_refused(self, bench: Any, side: Any, odd: dict[str, Any]) -> None:
        bench.server.answer("GetServiceInstance", {**ok(bench, **INSTANCE), **odd})
        with pytest.raises(CloudError) as caught:
            side.get_instance("si-1")
        assert caught.value.verdict is Verdict.UNKNOWN
        assert caught.value.code == "MalformedAnswer"
        assert next(iter(odd)) in caught.value.why


class TestFindInstances:
    def test_exact_living_newest_first(self, bench: Any, side: Any) -> None:
        def item(id_: str, **fields: Any) -> dict[str, Any]:
            return {**INSTANCE, "ServiceInstanceId": id_, **fields}

        bench.server.answer(
            "ListServiceInstances",
            ok(
                bench,
                TotalCount=5,
                NextToken="t1",
                ServiceInstances=[item("si-1"), item("si-2", Name="demo-2"), item("si-3", Status="Deleted")],
            ),
            ok(
                bench,
                TotalCount=5,
                NextToken="",
                ServiceInstances=[
                    item("si-4", CreateTime="2026-01-01T00:00:00Z", Status="DeployedFailed"),
                    item("si-5", CreateTime=None),
                ],
            ),
        )
        assert [found.id for found in side.find_instances("demo")] == ["si-4", "si-1", "si-5"]
        assert [call.query.get("NextToken") for call in bench.server.calls] == [None, "t1"]
        assert bench.server.calls[0].query["Filter.1.Name"] == "ServiceInstanceName"
        assert bench.server.calls[0].query["Filter.1.Value.1"] == "demo"

    def test_none(self, bench: Any, side: Any) -> None:
        bench.server.answer("ListServiceInstances", ok(bench, TotalCount=0, ServiceInstances=[]))
        assert side.find_instances("demo") == []

    @pytest.mark.parametrize(
        "odd",
        [
            {},
            {"RequestId": "R", "TotalCount": 1},
            {"RequestId": "R", "TotalCount": 1, "NextToken": "", "ServiceInstances": []},
            {"RequestId": "R", "ServiceInstances": "x"},
        ],
    )
    def test_an_odd_answer_is_not_taken_for_none(self, bench: Any, side: Any, odd: Any) -> None:
        """Or a second cluster would be bought."""
        bench.server.answer("ListServiceInstances", odd)
        with pytest.raises(CloudError):
            side.find_instances("demo")

    def test_an_empty_last_page_is_no_odd_answer(self, bench: Any, side: Any) -> None:
        bench.server.answer(
            "ListServiceInstances",
            ok(bench, TotalCount=1, NextToken="t", ServiceInstances=[INSTANCE]),
            ok(bench, TotalCount=1, NextToken="", ServiceInstances=[]),
        )
        assert [found.id for found in side.find_instances("demo")] == ["si-1"]


class TestCreate:
    def create(self, side: Any, **more: Any) -> str:
        made: str = side.create_instance("demo", SERVICE, PARAMETERS, {"raynest": "demo"}, "token-1", **more)
        return made

    def test_sends_everything(self, bench: Any, side: Any) -> None:
        bench.server.answer("CreateServiceInstance", ok(bench, ServiceInstanceId="si-1", Status="Created"))
        assert self.create(side) == "si-1"
        query = dict(bench.server.calls[0].query)
        assert json.loads(query.pop("Parameters")) == PARAMETERS
        assert query == {
            "Name": "demo",
            "RegionId": "ap-southeast-1",
            "ServiceId": "service-1",
            "ServiceVersion": "3",
            "TemplateName": TEMPLATE,
            "ClientToken": "token-1",
            "Tag.1.Key": "raynest",
            "Tag.1.Value": "demo",
        }

    @pytest.mark.parametrize("works", [True, False])
    def test_a_dry_run_makes_nothing(self, bench: Any, side: Any, works: bool) -> None:
        bench.server.answer(
            "CreateServiceInstance", ok(bench) if works else bench.error(400, "DryRunOperation", "would work")
        )
        assert self.create(side, dry_run=True) == ""
        assert bench.server.calls[0].query["DryRun"] == "True"

    def test_a_dry_run_that_would_fail(self, bench: Any, side: Any) -> None:
        bench.server.answer("CreateServiceInstance", bench.error(400, "StackValidationFailed", "ZoneId"))
        with pytest.raises(CloudError, match="StackValidationFailed"):
            self.create(side, dry_run=True)

    def test_the_token_with_other_settings(self, bench: Any, side: Any) -> None:
        bench.server.answer("CreateServiceInstance", bench.error(400, "IdempotentParameterMismatch"))
        with pytest.raises(CloudError) as caught:
            self.create(side)
        assert caught.value.verdict is Verdict.PERMANENT
        assert "raynest down" in caught.value.fix

    def test_the_parameters_given_are_not_changed(self, bench: Any, side: Any) -> None:
        before = json.dumps(PARAMETERS)
        bench.server.answer("CreateServiceInstance", ok(bench, ServiceInstanceId="si-1"))
        self.create(side)
        assert json.dumps(PARAMETERS) == before


class TestDelete:
    def test_sends_the_id(self, bench: Any, side: Any) -> None:
        bench.server.answer("DeleteServiceInstances", ok(bench))
        side.delete_instance("si-1", "token-1")
        assert bench.server.calls[0].query == {
            "RegionId": "ap-southeast-1",
            "ServiceInstanceId.1": "si-1",
            "ClientToken": "token-1",
        }

    def test_gone_is_done(self, bench: Any, side: Any) -> None:
        bench.server.answer("DeleteServiceInstances", bench.error(404, "ServiceInstanceNotFound"))
        side.delete_instance("si-1", "token-1")
        assert len(bench.server.calls) == 1

    def test_denied_is_not(self, bench: Any, side: Any) -> None:
        bench.server.answer("DeleteServiceInstances", bench.error(403, "NoPermission"))
        with pytest.raises(CloudError):
            side.delete_instance("si-1", "token-1")


class TestResources:
    def test_all_pages(self, bench: Any, side: Any) -> None:
        cluster = "arn:acs:cs:ap-southeast-1:1309:cluster/c01f9e6651cff45c5b33fd7c4b1a57bbf"
        odd = "arn:acs:ecs:ap-southeast-1:1309:something"
        bench.server.answer(
            "ListServiceInstanceResources",
            ok(
                bench,
                NextToken="t",
                Resources=[{"ResourceARN": cluster, "ProductCode": "cs", "Status": "running"}],
            ),
            ok(bench, NextToken="", Resources=[{"ResourceARN": odd}]),
        )
        first, second = side.resources("si-1")
        assert first == CloudResource(cluster, "cs", "cluster", "running")
        assert first.id == "c01f9e6651cff45c5b33fd7c4b1a57bbf"
        assert (second.type, second.id) == ("", "")
        assert bench.server.calls[0].query["ServiceInstanceResourceType"] == "AliyunResource"

    def test_one_without_arn_is_refused(self, bench: Any, side: Any) -> None:
        bench.server.answer("ListServiceInstanceResources", ok(bench, Resources=[{"ProductCode": "cs"}]))
        with pytest.raises(CloudError):
            side.resources("si-1")


class TestLogs:
    def line(self, time: str, content: str, status: str = "Deploying", **more: str) -> dict[str, str]:
        return {"Timestamp": time, "Content": content, "Status": status, **more}

    def test_the_cause_then_other_failures_then_the_newest(self, bench: Any, side: Any) -> None:
        nest = [
            self.line("2025-01-01T00:00:06Z", "The deployment failed.", "DeployedFailed"),
            self.line("2025-01-01T00:00:03Z", "waiting"),
            self.line("2025-01-01T00:00:01Z", "started"),
        ]
        worker = {"ResourceType": "ALIYUN::ECS::X", "ResourceId": "W"}
        ros = [
            self.line("2025-01-01T00:00:05Z", "cancelled", "CREATE_FAILED"),
            self.line("2025-01-01T00:00:02Z", "no stock", "CREATE_FAILED", **worker),
            self.line("2025-01-01T00:00:04Z", "rollback done"),
            self.line("2025-01-01T00:00:04Z", "rollback done"),
        ]
        bench.server.answer(
            "ListServiceInstanceLogs",
            ok(bench, ServiceInstancesLogs=nest),
            ok(bench, ServiceInstancesLogs=ros),
        )
        assert side.instance_logs("si-1") == [
            "2025-01-01T00:00:02Z CREATE_FAILED ALIYUN::ECS::X W no stock",
            "2025-01-01T00:00:05Z CREATE_FAILED cancelled",
            "2025-01-01T00:00:06Z DeployedFailed The deployment failed.",
            "2025-01-01T00:00:04Z Deploying rollback done",
            "2025-01-01T00:00:03Z Deploying waiting",
            "2025-01-01T00:00:01Z Deploying started",
        ]
        assert [call.query["LogSource"] for call in bench.server.calls] == ["computeNest", "ros"]

    def test_a_denied_source_does_not_hide_the_other(self, bench: Any, side: Any) -> None:
        bench.server.answer(
            "ListServiceInstanceLogs",
            bench.error(403, "NoPermission"),
            ok(bench, ServiceInstancesLogs=[self.line("t", "failed")]),
        )
        assert side.instance_logs("si-1") == ["t Deploying failed"]

    def test_a_broken_service_is_an_error(self, bench: Any, side: Any) -> None:
        bench.server.answer("ListServiceInstanceLogs", bench.error(500, "InternalError"))
        with pytest.raises(CloudError):
            side.instance_logs("si-1")


class TestPreflight:
    def test_missing_permissions(self, bench: Any, side: Any) -> None:
        missing = [
            {"ServiceName": "cs", "Action": ["cs:CreateCluster"], "Resource": "*"},
            {"ServiceName": "vpc", "Action": ["vpc:CreateVpc", "vpc:CreateVSwitch"]},
        ]
        bench.server.answer("GenerateServicePolicy", ok(bench, Policy="{}", MissingPolicy=missing))
        assert side.missing_permissions(SERVICE, PARAMETERS) == [
            MissingPermission("cs", ("cs:CreateCluster",)),
            MissingPermission("vpc", ("vpc:CreateVpc", "vpc:CreateVSwitch")),
        ]
        query = bench.server.calls[0].query
        assert query["OperationTypes.1"] == "CreateServiceInstance"
        assert "LoginPassword" not in query["Parameters"]

    @pytest.mark.parametrize("code", ["NoPermission", "Forbidden.RAM", "Odd"])
    def test_a_denied_look_is_not_known(self, bench: Any, side: Any, code: str) -> None:
        bench.server.answer("GenerateServicePolicy", bench.error(403, code))
        assert side.missing_permissions(SERVICE, PARAMETERS) is None

    def test_nothing_missing_is_not_the_same(self, bench: Any, side: Any) -> None:
        bench.server.answer("GenerateServicePolicy", ok(bench, MissingPolicy=[]))
        assert side.missing_permissions(SERVICE, PARAMETERS) == []

    def test_provisions(self, bench: Any, side: Any) -> None:
        roles = [
            {"RoleName": "AliyunCSDefaultRole", "Created": False},
            {"RoleName": "Other", "Created": True},
        ]
        items = [
            {
                "ServiceName": "CS",
                "Status": "Enabled",
                "RoleProvision": {"AuthorizationURL": "https://auth", "Roles": roles},
            },
            {"ServiceName": "ECS", "Status": "EnabledByDefault"},
            {"ServiceName": "ROS", "Status": "Disabled", "StatusReason": "off", "EnableURL": "https://on"},
            {"ServiceName": "OOS", "Status": "Unknown"},
            {
                "ServiceName": "ACS",
                "Status": "Enabled",
                "CommodityProvisions": [
                    {"CommodityCode": "acs", "Status": "Disabled", "EnableURL": "https://acs"}
                ],
            },
        ]
        bench.server.answer("GetServiceProvisions", ok(bench, ServiceProvisions=items))
        assert side.provisions(SERVICE, PARAMETERS) == [
            Provision("CS", True, "", "", ("AliyunCSDefaultRole",), "https://auth"),
            Provision("ECS", True),
            Provision("ROS", False, "off", "https://on"),
            Provision("OOS", None),
            Provision("ACS", False, "", "https://acs"),
        ]
        assert "LoginPassword" not in bench.server.calls[0].query["Parameters"]

    def test_provisions_without_parameters(self, bench: Any, side: Any) -> None:
        bench.server.answer("GetServiceProvisions", ok(bench, ServiceProvisions=[]))
        assert side.provisions(SERVICE) == []
        assert "Parameters" not in bench.server.calls[0].query

    def test_estimate_cost(self, bench: Any, side: Any) -> None:
        result = {
            "Order": {"Currency": "CNY", "OriginalAmount": 0.64},
            "OrderSupplement": {"ChargeType": "PostPaid", "PriceUnit": "/Hour"},
        }
        resources = {"A.Cluster": {"Success": True, "Result": result}, "B": {"Success": False}}
        bench.server.answer("GetServiceEstimateCost", ok(bench, Resources=resources))
        price = side.estimate_cost(SERVICE, PARAMETERS)
        assert (price.amount, price.currency, price.lower_bound) == (Decimal("0.64"), "CNY", True)

    @pytest.mark.parametrize("resources", [None, {}, {"test": "test"}])
    def test_an_estimate_without_a_price(self, bench: Any, side: Any, resources: Any) -> None:
        bench.server.answer("GetServiceEstimateCost", ok(bench, Resources=resources))
        assert side.estimate_cost(SERVICE, PARAMETERS) is None

    def test_check_deployable(self, bench: Any) -> None:
        checks = [
            {"Type": "Quota", "Value": "true", "Message": '""'},
            {"Type": "Balance", "Value": "false", "Message": "too low", "Skippable": True},
        ]
        bench.server.answer("CheckServiceDeployable", ok(bench, CheckResults=checks))
        assert bench.cloud.instances.check_deployable(SERVICE, Decimal("19.09")) == [
            DeployCheck("Balance", "too low", "false", True)
        ]
        assert bench.server.calls[0].query["PostPaidAmount"] == "19.09"

    def test_the_supplier_side_has_no_such_check(self, bench: Any) -> None:
        instances = bench.with_settings(sdk="supplier").instances
        assert instances.check_deployable(SERVICE, Decimal(1)) is None
        assert bench.server.calls == []
