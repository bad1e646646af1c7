"""Addresses, and the way out."""

from typing import Any

import pytest

from raynest_pipeline.alibaba.egress import SnatEntry, judge
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.vpc import Eip
from raynest_pipeline.errors import Verdict

TAGS = {"raynest": "demo"}
ITEM = {
    "AllocationId": "eip-1",
    "IpAddress": "47.236.1.2",
    "Status": "InUse",
    "InstanceId": "lb-1",
    "InstanceType": "SlbInstance",
    "ChargeType": "PostPaid",
    "Name": "demo",
    "Tags": {"Tag": [{"Key": "raynest", "Value": "demo"}]},
}
EIP = Eip("eip-1", "47.236.1.2", "InUse", "demo", "lb-1", "SlbInstance", "PostPaid", TAGS)


def page(bench: Any, *items: Any, total: int | None = None) -> dict[str, Any]:
    return {
        **bench.ok,
        "TotalCount": len(items) if total is None else total,
        "EipAddresses": {"EipAddress": list(items)},
    }


def allocate(bench: Any) -> Eip:
    found: Eip = bench.cloud.network.allocate_eip(
        region="ap-southeast-1", bandwidth_mbps=100, name="demo", tags=TAGS, client_token="token-1"
    )
    return found


class TestAllocate:
    def test_by_traffic_and_tagged(self, bench: Any) -> None:
        bench.server.answer(
            "AllocateEipAddress", {**bench.ok, "AllocationId": "eip-1", "EipAddress": "47.236.1.2"}
        )
        eip = allocate(bench)
        assert (eip.id, eip.ip, eip.status) == ("eip-1", "47.236.1.2", "")
        assert bench.server.calls[0].query == {
            "RegionId": "ap-southeast-1",
            "Bandwidth": "100",
            "InternetChargeType": "PayByTraffic",
            "InstanceChargeType": "PostPaid",
            "Name": "demo",
            "Tag.1.Key": "raynest",
            "Tag.1.Value": "demo",
            "ClientToken": "token-1",
        }

    def test_an_answer_without_an_id_is_asked_again_with_the_same_token(self, bench: Any) -> None:
        bench.server.answer(
            "AllocateEipAddress",
            dict(bench.ok),
            {**bench.ok, "AllocationId": "eip-1", "EipAddress": "47.236.1.2"},
        )
        assert allocate(bench).id == "eip-1"
        assert {call.query["ClientToken"] for call in bench.server.calls} == {"token-1"}

    def test_the_same_token_still_being_worked_on(self, bench: Any) -> None:
        bench.server.answer(
            "AllocateEipAddress",
            bench.error(400, "LastTokenProcessing"),
            {**bench.ok, "AllocationId": "eip-1", "EipAddress": "47.236.1.2"},
        )
        assert allocate(bench).id == "eip-1"

    @pytest.mark.parametrize("code", ["QuotaExceeded.Eip", "InsufficientBalance", "OrderFailed"])
    def test_a_business_refusal_is_final(self, bench: Any, code: str) -> None:
        bench.server.answer("AllocateEipAddress", bench.error(400, code))
        with pytest.raises(CloudError) as caught:
            allocate(bench)
        assert caught.value.verdict is Verdict.PERMANENT
        assert caught.value.fix
        assert len(bench.server.calls) == 1


class TestFind:
    def test_reads_all_pages_and_compares_the_tags_itself(self, bench: Any) -> None:
        other = {**ITEM, "AllocationId": "eip-2", "Tags": {"Tag": [{"Key": "raynest", "Value": "other"}]}}
        bare = {**ITEM, "AllocationId": "eip-3", "Tags": {}}
        last = {**ITEM, "AllocationId": "eip-4"}
        bench.server.answer(
            "DescribeEipAddresses", page(bench, ITEM, other, bare, total=4), page(bench, last, total=4)
        )
        assert [eip.id for eip in bench.cloud.network.find_eips(TAGS)] == ["eip-1", "eip-4"]
        assert [call.query["PageNumber"] for call in bench.server.calls] == ["1", "2"]
        assert bench.server.calls[0].query["Tag.1.Key"] == "raynest"

    def test_none(self, bench: Any) -> None:
        bench.server.answer("DescribeEipAddresses", page(bench))
        assert bench.cloud.network.find_eips(TAGS) == []

    def test_an_answer_without_a_count_is_not_taken_for_none(self, bench: Any) -> None:
        bench.server.answer("DescribeEipAddresses", dict(bench.ok))
        with pytest.raises(CloudError) as caught:
            bench.cloud.network.find_eips(TAGS)
        assert "TotalCount" in caught.value.why

    def test_by_id(self, bench: Any) -> None:
        bench.server.answer("DescribeEipAddresses", page(bench, ITEM))
        assert bench.cloud.network.get_eip("eip-1") == EIP
        assert bench.server.calls[0].query["AllocationId"] == "eip-1"

    def test_released(self, bench: Any) -> None:
        bench.server.answer(
            "DescribeEipAddresses", page(bench), bench.error(404, "InvalidAllocationId.NotFound")
        )
        assert bench.cloud.network.get_eip("eip-1") is None
        assert bench.cloud.network.get_eip("eip-1") is None

    def test_a_status_of_the_wrong_kind_is_refused(self, bench: Any) -> None:
        bench.server.answer("DescribeEipAddresses", page(bench, {**ITEM, "Status": 123}))
        with pytest.raises(CloudError) as caught:
            bench.cloud.network.get_eip("eip-1")
        assert "EipAddresses.EipAddress[0].Status is no text but int" in caught.value.why

    def test_tags_of_the_wrong_kind_are_refused(self, bench: Any) -> None:
        bench.server.answer("DescribeEipAddresses", page(bench, {**ITEM, "Tags": {"Tag": "x"}}))
        with pytest.raises(CloudError) as caught:
            bench.cloud.network.get_eip("eip-1")
        assert caught.value.verdict is Verdict.UNKNOWN


class TestRelease:
    def test_sends_id_and_region(self, bench: Any) -> None:
        bench.server.answer("ReleaseEipAddress", dict(bench.ok))
        bench.cloud.network.release_eip("eip-1")
        assert bench.server.calls[0].query == {"RegionId": "ap-southeast-1", "AllocationId": "eip-1"}

    def test_gone_is_done(self, bench: Any) -> None:
        bench.server.answer("ReleaseEipAddress", bench.error(404, "InvalidAllocationId.NotFound"))
        bench.cloud.network.release_eip("eip-1")
        assert len(bench.server.calls) == 1

    def test_between_two_states_it_waits(self, bench: Any) -> None:
        bench.server.answer("ReleaseEipAddress", bench.error(400, "IncorrectEipStatus"), dict(bench.ok))
        bench.cloud.network.release_eip("eip-1")
        assert len(bench.server.calls) == 2

    def test_a_prepaid_one_stays(self, bench: Any) -> None:
        bench.server.answer("ReleaseEipAddress", bench.error(400, "Forbidden.ChargeTypeIsPrepaid"))
        with pytest.raises(CloudError) as caught:
            bench.cloud.network.release_eip("eip-1")
        assert "prepaid" in caught.value.why
        assert not caught.value.access

    def test_taking_it_off(self, bench: Any) -> None:
        bench.server.answer("UnassociateEipAddress", dict(bench.ok))
        bench.cloud.network.unassociate_eip("eip-1", "token-2")
        assert bench.server.calls[0].query["ClientToken"] == "token-2"


class TestEgress:
    def gateway(self, bench: Any, *items: Any) -> None:
        bench.server.answer(
            "DescribeNatGateways",
            {**bench.ok, "TotalCount": len(items), "NatGateways": {"NatGateway": list(items)}},
        )

    def test_snat_for_the_vswitch(self, bench: Any) -> None:
        self.gateway(
            bench,
            {"NatGatewayId": "ngw-0", "Status": "Deleting", "SnatTableIds": {"SnatTableId": ["stb-0"]}},
            {"NatGatewayId": "ngw-1", "Status": "Available", "SnatTableIds": {"SnatTableId": ["stb-1"]}},
        )
        entry = {"SourceVSwitchId": "vsw-1", "SourceCIDR": "192.168.0.0/24", "SnatIp": "47.9.9.9"}
        bench.server.answer(
            "DescribeSnatTableEntries",
            {**bench.ok, "TotalCount": 1, "SnatTableEntries": {"SnatTableEntry": [entry]}},
        )
        found = bench.cloud.network.egress("vpc-1", ["vsw-1"])
        assert (found.ok, found.cause) == (True, "by SNAT through 47.9.9.9")
        assert [call.query["SnatTableId"] for call in bench.server.asked("DescribeSnatTableEntries")] == [
            "stb-1"
        ]
        assert bench.server.calls[0].query["VpcId"] == "vpc-1"

    def test_no_gateway(self, bench: Any) -> None:
        self.gateway(bench)
        found = bench.cloud.network.egress("vpc-1", ["vsw-1"])
        assert found.ok is False
        assert "vpc-1 has no NAT gateway" in found.cause

    def test_denied_is_not_known(self, bench: Any) -> None:
        bench.server.answer("DescribeNatGateways", bench.error(403, "Forbidden.RAM"))
        found = bench.cloud.network.egress("vpc-1", ["vsw-1"])
        assert (found.ok, found.cause) == (None, "Not known: vpc:DescribeNatGateways is denied.")

    def test_a_broken_service_is_an_error(self, bench: Any) -> None:
        bench.server.answer("DescribeNatGateways", bench.error(500, "InternalError"))
        with pytest.raises(CloudError):
            bench.cloud.network.egress("vpc-1", ["vsw-1"])

    @pytest.mark.parametrize(
        ("entries", "vswitches", "ok"),
        [
            ([], ["vsw-1"], False),
            ([SnatEntry("vsw-2", "", "1.1.1.1")], ["vsw-1"], False),
            ([SnatEntry("vsw-1", "", "1.1.1.1")], ["vsw-1", "vsw-2"], False),
            (
                [SnatEntry("vsw-1", "", "1.1.1.1"), SnatEntry("vsw-2", "", "1.1.1.1")],
                ["vsw-1", "vsw-2"],
                True,
            ),
            ([SnatEntry("", "0.0.0.0/0", "1.1.1.1")], ["vsw-1"], True),
            ([SnatEntry("", "10.0.0.0/8", "1.1.1.1")], ["vsw-1"], None),
            ([SnatEntry("vsw-1", "", "1.1.1.1")], [], True),
            ([], [], False),
        ],
    )
    def test_judging(self, entries: list[SnatEntry], vswitches: list[str], ok: bool | None) -> None:
        found = judge("vpc-1", vswitches, entries, gateways=1)
        assert found.ok is ok
        assert found.cause
