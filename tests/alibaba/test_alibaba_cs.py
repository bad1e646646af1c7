"""ACK clusters: state, the public address, kubeconfig, audit."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from raynest_pipeline.alibaba.cs import Cluster, ClusterResource, Task
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import Verdict

ID = "c01f9e6651cff45c5b33fd7c4b1a57bbf"
INTRANET = "https://192.168.0.231:6443"
PUBLIC = "https://47.74.22.109:6443"
DETAIL = {
    "cluster_id": ID,
    "name": "demo",
    "state": "running",
    "region_id": "ap-southeast-1",
    "vpc_id": "vpc-1",
    "vswitch_ids": ["vsw-1"],
    "current_version": "1.32.1-aliyun.1",
    "deletion_protection": False,
    "tags": [{"key": "raynest", "value": "demo"}],
    "master_url": json.dumps({"api_server_endpoint": "", "intranet_api_server_endpoint": INTRANET}),
}
CLUSTER = Cluster(
    id=ID,
    name="demo",
    state="running",
    region="ap-southeast-1",
    vpc_id="vpc-1",
    vswitch_ids=("vsw-1",),
    intranet_endpoint=INTRANET,
    version="1.32.1-aliyun.1",
    tags={"raynest": "demo"},
)
GONE = {"code": "ErrorClusterNotFound", "message": "cluster not found", "requestId": "R", "status": 404}


class TestGetCluster:
    def test_is_read(self, bench: Any) -> None:
        bench.server.answer(f"GET /clusters/{ID}", DETAIL)
        assert bench.cloud.clusters.get_cluster(ID) == CLUSTER
        assert bench.server.calls[0].version == "2015-12-15"

    @pytest.mark.parametrize(
        ("master_url", "endpoint"),
        [
            (json.dumps({"api_server_endpoint": PUBLIC}), PUBLIC),
            (json.dumps({"intranet_api_server_endpoint": INTRANET}), ""),
            ("{}", ""),
            ("", ""),
            (None, ""),
        ],
    )
    def test_the_public_endpoint(self, bench: Any, master_url: Any, endpoint: str) -> None:
        bench.server.answer(f"GET /clusters/{ID}", {**DETAIL, "master_url": master_url})
        assert bench.cloud.clusters.get_cluster(ID).api_server_endpoint == endpoint

    @pytest.mark.parametrize("master_url", ["{", "[]", '"x"', '{"api_server_endpoint": 5}', 5])
    def test_an_unreadable_endpoint_is_not_taken_for_none(self, bench: Any, master_url: Any) -> None:
        """Or a second address would be bound."""
        bench.server.answer(f"GET /clusters/{ID}", {**DETAIL, "master_url": master_url})
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.get_cluster(ID)
        assert "master_url" in caught.value.why

    @pytest.mark.parametrize("missing", ["cluster_id", "name", "state"])
    def test_a_lacking_answer_is_refused(self, bench: Any, missing: str) -> None:
        bench.server.answer(f"GET /clusters/{ID}", {k: v for k, v in DETAIL.items() if k != missing})
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.get_cluster(ID)
        assert f"The field {missing} is missing." in caught.value.why

    def test_gone(self, bench: Any) -> None:
        bench.server.answer(
            f"GET /clusters/{ID}", bench.reply(GONE, status=404), {**DETAIL, "state": "deleted"}
        )
        assert bench.cloud.clusters.get_cluster(ID) is None
        assert bench.cloud.clusters.get_cluster(ID) is None

    def test_a_404_for_another_reason_is_not_gone(self, bench: Any) -> None:
        bench.server.answer(f"GET /clusters/{ID}", bench.reply({"code": "Odd", "message": "m"}, status=404))
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.get_cluster(ID)
        assert caught.value.verdict is Verdict.PERMANENT

    def test_denied_in_lower_case(self, bench: Any) -> None:
        body = {
            "code": "StatusForbidden",
            "message": "no",
            "requestId": "REQ-9",
            "accessDeniedDetail": {"AuthAction": "cs:DescribeClusterDetail"},
        }
        bench.server.answer(f"GET /clusters/{ID}", bench.reply(body, status=403))
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.get_cluster(ID)
        assert caught.value.denied_action == "cs:DescribeClusterDetail"
        assert caught.value.request_id == "REQ-9"


class TestFindClusters:
    def test_of_exactly_that_name(self, bench: Any) -> None:
        near = {**DETAIL, "cluster_id": "c2", "name": "demo-2"}
        dead = {**DETAIL, "cluster_id": "c3", "state": "deleted"}
        second = {**DETAIL, "cluster_id": "c4"}
        bench.server.answer(
            "GET /api/v1/clusters",
            {"clusters": [DETAIL, near, dead], "page_info": {"total_count": 4}},
            {"clusters": [second], "page_info": {"total_count": 4}},
        )
        assert [item.id for item in bench.cloud.clusters.find_clusters("demo")] == [ID, "c4"]
        assert bench.server.calls[0].query == {
            "name": "demo",
            "region_id": "ap-southeast-1",
            "page_number": "1",
            "page_size": "50",
        }

    def test_none(self, bench: Any) -> None:
        bench.server.answer("GET /api/v1/clusters", {"clusters": [], "page_info": {"total_count": 0}})
        assert bench.cloud.clusters.find_clusters("demo") == []

    def test_an_answer_without_a_count_is_not_taken_for_none(self, bench: Any) -> None:
        bench.server.answer("GET /api/v1/clusters", {})
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.find_clusters("demo")
        assert "page_info.total_count" in caught.value.why


class TestPublicAddress:
    def test_bind(self, bench: Any) -> None:
        bench.server.answer(f"PUT /api/v2/clusters/{ID}", {"cluster_id": ID, "task_id": "T-1"})
        assert bench.cloud.clusters.bind_eip(ID, "eip-1", "token-1") == "T-1"
        assert bench.server.calls[0].body == {
            "api_server_eip": True,
            "api_server_eip_id": "eip-1",
            "client_token": "token-1",
        }

    def test_unbind(self, bench: Any) -> None:
        bench.server.answer(f"PUT /api/v2/clusters/{ID}", {"cluster_id": ID, "task_id": "T-2"})
        assert bench.cloud.clusters.unbind_eip(ID) == "T-2"
        assert bench.server.calls[0].body == {"api_server_eip": False}

    @pytest.mark.parametrize(
        ("body", "task"),
        [
            ({"state": "running", "current_stage": "Rolling"}, Task("T-1", "running", "Rolling")),
            ({"state": "running", "error": {"code": "400", "message": "demo"}}, Task("T-1", "running", "")),
            ({"state": "success"}, Task("T-1", "success", "")),
            ({"state": "fail", "error": {"message": "no eip"}}, Task("T-1", "fail", "no eip")),
        ],
    )
    def test_the_task_is_judged_by_its_state(self, bench: Any, body: dict[str, Any], task: Task) -> None:
        bench.server.answer("GET /tasks/T-1", {"task_id": "T-1", **body})
        assert bench.cloud.clusters.task("T-1") == task


class TestKubeconfig:
    def test_a_temporary_one_for_the_public_endpoint(self, bench: Any) -> None:
        body = {"config": "apiVersion: v1", "expiration": "2024-03-10T09:56:17Z"}
        bench.server.answer(f"GET /k8s/{ID}/user_config", body)
        found = bench.cloud.clusters.kubeconfig(ID, 120)
        assert found.text.get_secret_value() == "apiVersion: v1"
        assert found.expires_at == datetime(2024, 3, 10, 9, 56, 17, tzinfo=UTC)
        assert bench.server.calls[0].query == {"PrivateIpAddress": "False", "TemporaryDurationMinutes": "120"}

    def test_an_empty_one_is_refused(self, bench: Any) -> None:
        bench.server.answer(f"GET /k8s/{ID}/user_config", {"config": ""})
        with pytest.raises(CloudError):
            bench.cloud.clusters.kubeconfig(ID, 120)


class TestParts:
    def test_resources_come_as_a_list(self, bench: Any) -> None:
        nat = {
            "cluster_id": ID,
            "instance_id": "ngw-1",
            "resource_type": "ALIYUN::VPC::NatGateway",
            "state": "CREATE_COMPLETE",
            "creator_type": "system",
            "delete_behavior": {"delete_by_default": False, "changeable": True},
        }
        balancer = {
            "resource_type": "SLB",
            "creator_type": "addon",
            "associated_object": {"kind": "Service", "namespace": "demo", "name": "head"},
        }
        bench.server.answer(f"GET /clusters/{ID}/resources", [nat, balancer])
        assert bench.cloud.clusters.resources(ID) == [
            ClusterResource("ngw-1", "ALIYUN::VPC::NatGateway", "CREATE_COMPLETE", "system", False),
            ClusterResource("", "SLB", "", "addon", None, "Service demo/head"),
        ]

    @pytest.mark.parametrize("odd", [[5], ["x"], [{"delete_behavior": "x"}], "x"])
    def test_odd_resources_are_refused(self, bench: Any, odd: Any) -> None:
        bench.server.answer(f"GET /clusters/{ID}/resources", odd)
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.resources(ID)
        assert caught.value.verdict is Verdict.UNKNOWN

    def test_resources_of_a_cluster_that_is_gone(self, bench: Any) -> None:
        bench.server.answer(f"GET /clusters/{ID}/resources", bench.reply(GONE, status=404))
        assert bench.cloud.clusters.resources(ID) == []
