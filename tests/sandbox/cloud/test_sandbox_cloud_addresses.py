"""Elastic IP addresses and NAT gateways, and the ECS catalogue: stock and prices."""

from __future__ import annotations

from typing import Any

import pytest
from sandbox_account import REGION, Account, Refused


def refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def found(account: Account, **filters: Any) -> list[str]:
    """The ids of the addresses that match."""
    body = account.ask("vpc", "DescribeEipAddresses", RegionId=REGION, PageSize=100, **filters)
    assert body["TotalCount"] == len(body["EipAddresses"]["EipAddress"])
    return [each["AllocationId"] for each in body["EipAddresses"]["EipAddress"]]


def test_an_allocated_address_is_described_with_the_rpc_double_nesting(account: Account) -> None:
    eip_id = account.allocate(Name="mine", **{"Tag.1.Key": "owner", "Tag.1.Value": "me"})
    address = account.eip(eip_id)
    assert address is not None
    assert address["Status"] == "Available"
    assert address["Tags"] == {"Tag": [{"Key": "owner", "Value": "me"}]}
    assert (address["Bandwidth"], address["InternetChargeType"]) == ("100", "PayByTraffic")
    assert account.owned() == ["eip"]


def test_the_default_is_charged_by_bandwidth(account: Account) -> None:
    eip_id = account.ask("vpc", "AllocateEipAddress", RegionId=REGION)["AllocationId"]
    address = account.eip(eip_id)
    assert address is not None
    assert (address["Bandwidth"], address["InternetChargeType"]) == ("5", "PayByBandwidth")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"InternetChargeType": "Free"}, "InvalidParameter.InternetChargeType"),
        ({"Bandwidth": "0"}, "InvalidParameter.Bandwidth"),
        ({"Bandwidth": "201"}, "InvalidParameter.Bandwidth"),
        ({"InternetChargeType": "PayByBandwidth", "Bandwidth": "501"}, "InvalidParameter.Bandwidth"),
        ({"InstanceChargeType": "PrePaid"}, "OrderFailed"),
        ({"RegionId": ""}, "MissingParameter"),
        ({"RegionId": "mars-1"}, "InvalidRegionId.NotFound"),
    ],
)
def test_a_wrong_allocation_is_refused_and_costs_nothing(
    account: Account, params: dict[str, str], code: str
) -> None:
    assert refusal(lambda: account.allocate(**params)).code == code
    assert account.owned() == []


def test_the_same_token_allocates_once(account: Account) -> None:
    first = account.allocate(ClientToken="eip-1")
    assert account.allocate(ClientToken="eip-1") == first
    assert account.allocate(ClientToken="eip-2") != first
    # The product's own spelling.
    assert refusal(lambda: account.allocate(ClientToken="eip-1", Bandwidth="50")).code == "TokenVerfiy.Failed"


def test_without_a_token_a_repeated_call_buys_again(account: Account) -> None:
    assert account.allocate() != account.allocate()
    assert account.owned() == ["eip", "eip"]


def test_a_token_is_one_per_action(account: Account) -> None:
    account.create(token="same")
    assert account.allocate(ClientToken="same")


def test_a_token_survives_a_restart(account: Account) -> None:
    first = account.allocate(ClientToken="eip-1")
    account.restart()
    assert account.allocate(ClientToken="eip-1") == first


def test_addresses_can_be_filtered(account: Account) -> None:
    first = account.allocate(Name="one", **{"Tag.1.Key": "owner", "Tag.1.Value": "me"})
    second = account.allocate(Name="two", **{"Tag.1.Key": "owner", "Tag.1.Value": "you"})
    assert found(account) == [first, second]
    assert found(account, AllocationId=f"{second},eip-0") == [second]
    assert found(account, EipName="one") == [first]
    assert found(account, Status="InUse") == []
    assert found(account, **{"Tag.1.Key": "owner"}) == [first, second]
    assert found(account, **{"Tag.1.Key": "owner", "Tag.1.Value": "you"}) == [second]
    assert found(account, EipAddress="127.0.0.1", AssociatedInstanceType="Nat") == []
    many = ",".join(f"eip-{number}" for number in range(51))
    assert refusal(lambda: found(account, AllocationId=many)).code == "InvalidParameter.AllocationId"


def test_an_address_of_another_region_is_not_seen(account: Account) -> None:
    elsewhere = account.allocate(RegionId="cn-hangzhou")
    assert found(account) == []
    given = {"RegionId": REGION, "AllocationId": elsewhere}
    assert (
        refusal(lambda: account.ask("vpc", "ReleaseEipAddress", **given)).code
        == "InvalidAllocationId.NotFound"
    )


def test_releasing_is_asynchronous_and_ends_in_not_found(account: Account) -> None:
    eip_id = account.allocate()
    given = {"RegionId": REGION, "AllocationId": eip_id}
    account.ask("vpc", "ReleaseEipAddress", **given)
    assert account.eip(eip_id)["Status"] == "Releasing"  # type: ignore[index]
    assert account.owned() == ["eip"]
    account.pass_time(0.3)
    assert account.eip(eip_id) is None
    assert account.owned() == []
    error = refusal(lambda: account.ask("vpc", "ReleaseEipAddress", **given))
    assert (error.status, error.code) == (404, "InvalidAllocationId.NotFound")


def test_a_release_goes_on_after_a_restart(account: Account) -> None:
    eip_id = account.allocate()
    account.ask("vpc", "ReleaseEipAddress", RegionId=REGION, AllocationId=eip_id)
    account.restart()
    account.pass_time(0.3)
    assert account.owned() == []


def test_an_address_that_is_free_can_not_be_unbound(account: Account) -> None:
    given = {"RegionId": REGION, "AllocationId": account.allocate()}
    assert refusal(lambda: account.ask("vpc", "UnassociateEipAddress", **given)).code == "IncorrectEipStatus"


def test_the_nat_gateway_has_its_own_address_which_carries_the_owner_s_tags(account: Account) -> None:
    _, cluster_id = account.deploy()
    cluster = account.cloud.world.clusters[cluster_id]
    (nat_eip,) = found(account, **{"Tag.1.Key": "raynest", "Tag.1.Value": "ray-one"})
    address = account.eip(nat_eip)
    assert address is not None
    assert (address["InstanceType"], address["InstanceId"]) == ("Nat", cluster.ids["nat"])
    given = {"RegionId": REGION, "AllocationId": nat_eip}
    for action in ("ReleaseEipAddress", "UnassociateEipAddress"):
        assert refusal(lambda a=action: account.ask("vpc", a, **given)).code == "IncorrectEipStatus"


def test_the_workers_reach_the_internet_through_the_nat_gateway(account: Account) -> None:
    _, cluster_id = account.deploy()
    cluster = account.roa("GET", f"/clusters/{cluster_id}")
    body = account.ask("vpc", "DescribeNatGateways", RegionId=REGION, VpcId=cluster["vpc_id"])
    (gateway,) = body["NatGateways"]["NatGateway"]
    assert gateway["Status"] == "Available"
    (table,) = gateway["SnatTableIds"]["SnatTableId"]
    body = account.ask("vpc", "DescribeSnatTableEntries", RegionId=REGION, SnatTableId=table)
    (entry,) = body["SnatTableEntries"]["SnatTableEntry"]
    assert entry["SourceVSwitchId"] == cluster["vswitch_ids"][0]
    assert entry["SnatIp"] == "203.0.113.10"
    assert (
        refusal(lambda: account.ask("vpc", "DescribeSnatTableEntries", RegionId=REGION)).code
        == "MissingParameter"
    )


def test_an_existing_vpc_brings_no_egress(account: Account) -> None:
    given = {"VpcOption": "ExistingVPC", "VpcId": "vpc-mine", "VSwitchId": "vsw-mine"}
    _, cluster_id = account.deploy(**given)
    assert account.roa("GET", f"/clusters/{cluster_id}")["vpc_id"] == "vpc-mine"
    body = account.ask("vpc", "DescribeNatGateways", RegionId=REGION, VpcId="vpc-mine")
    assert body["NatGateways"]["NatGateway"] == []
    assert found(account) == []
    assert "nat_gateway" not in account.owned()


def test_the_walkthrough_s_worker_has_the_published_specification(account: Account) -> None:
    given = {"InstanceTypes.1": "ecs.gn7i-c8g1.2xlarge", "InstanceTypes.2": "ecs.unknown"}
    (kind,) = account.ask("ecs", "DescribeInstanceTypes", **given)["InstanceTypes"]["InstanceType"]
    assert (kind["CpuCoreCount"], kind["MemorySize"], kind["GPUAmount"]) == (8, 30.0, 1)
    assert (kind["GPUSpec"], kind["GPUMemorySize"]) == ("NVIDIA A10", 24.0)
    assert kind["InstanceTypeFamily"] == "ecs.gn7i"


def test_all_types_are_listed_without_a_filter_but_not_more_than_ten_asked(account: Account) -> None:
    kinds = account.ask("ecs", "DescribeInstanceTypes")["InstanceTypes"]["InstanceType"]
    assert any(kind["GPUAmount"] == 0 for kind in kinds)
    many = {f"InstanceTypes.{number}": "x" for number in range(1, 12)}
    assert (
        refusal(lambda: account.ask("ecs", "DescribeInstanceTypes", **many)).code
        == "InvalidParameter.InstanceTypes"
    )


def stock(account: Account, **params: str) -> dict[str, str]:
    """Zone -> stock category of the A10 type."""
    given = {
        "RegionId": REGION,
        "DestinationResource": "InstanceType",
        "InstanceType": "ecs.gn7i-c8g1.2xlarge",
    }
    body = account.ask("ecs", "DescribeAvailableResource", **{**given, **params})
    return {
        zone["ZoneId"]: zone["AvailableResources"]["AvailableResource"][0]["SupportedResources"][
            "SupportedResource"
        ][0]["StatusCategory"]
        for zone in body["AvailableZones"]["AvailableZone"]
    }


def test_stock_differs_by_zone_and_by_fault(account: Account) -> None:
    a, b, c = (f"{REGION}{letter}" for letter in "abc")
    assert stock(account) == {a: "WithStock", b: "WithoutStock", c: "WithStock"}
    assert stock(account, ZoneId=b) == {b: "WithoutStock"}
    account.faults.set("sold_out", zone=a)
    assert stock(account) == {a: "WithoutStock", b: "WithoutStock", c: "WithStock"}
    account.faults.clear()
    assert stock(account)[a] == "WithStock"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"ZoneId": "nowhere"}, "InvalidZoneId.NotFound"),
        ({"RegionId": "mars-1"}, "InvalidRegionId.NotFound"),
        ({"InstanceType": "ecs.unknown"}, "InvalidInstanceType.NotFound"),
        ({"DestinationResource": "SystemDisk"}, "InvalidParameter.DestinationResource"),
    ],
)
def test_stock_of_something_else_is_refused(account: Account, params: dict[str, str], code: str) -> None:
    assert refusal(lambda: stock(account, **params)).code == code


def test_a_price_is_instance_and_disk_times_amount(account: Account) -> None:
    given = {
        "RegionId": REGION,
        "InstanceType": "ecs.gn7i-c8g1.2xlarge",
        "SystemDisk.Category": "cloud_essd",
        "SystemDisk.Size": "1024",
        "Amount": "2",
        "PriceUnit": "Hour",
    }
    price = account.ask("ecs", "DescribePrice", **given)["PriceInfo"]["Price"]
    assert price["Currency"] == "CNY"
    assert price["TradePrice"] == pytest.approx(2 * (18.065 + 1024 * 0.0014))
    details = price["DetailInfos"]["DetailInfo"]
    assert sum(each["TradePrice"] for each in details) == pytest.approx(price["TradePrice"])


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, "MissingParameter"),
        ({"InstanceType": "ecs.unknown"}, "InvalidInstanceType.NotFound"),
        ({"InstanceType": "ecs.g7.xlarge", "PriceUnit": "Month"}, "InvalidParameter.PriceUnit"),
        (
            {"InstanceType": "ecs.g7.xlarge", "SystemDisk.Category": "tape"},
            "InvalidParameter.SystemDisk.Category",
        ),
        ({"InstanceType": "ecs.g7.xlarge", "SystemDisk.Size": "9"}, "InvalidParameter.SystemDisk.Size"),
    ],
)
def test_a_price_of_something_else_is_refused(account: Account, params: dict[str, str], code: str) -> None:
    assert refusal(lambda: account.ask("ecs", "DescribePrice", RegionId=REGION, **params)).code == code
