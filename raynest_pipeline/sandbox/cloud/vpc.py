"""VPC: elastic IP addresses and NAT gateways."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.context import Call, Handler, new_id
from raynest_pipeline.sandbox.cloud.engine import RELEASE_S
from raynest_pipeline.sandbox.cloud.errors import CloudError, invalid
from raynest_pipeline.sandbox.cloud.wire import has_tags, page_by_number, tag_list, utc
from raynest_pipeline.sandbox.cloud.world import Cluster, Eip, Purchase

_CHARGES = ("PayByBandwidth", "PayByTraffic")


def allocate_eip_address(call: Call) -> dict[str, Any]:
    """AllocateEipAddress: bought at once, charged by bandwidth unless told otherwise."""
    return call.once(call.params.text("ClientToken"), lambda: _allocate(call), mismatch="TokenVerfiy.Failed")


def _allocate(call: Call) -> dict[str, Any]:
    region = _region(call)
    charge = call.params.text("InternetChargeType", "PayByBandwidth")
    if charge not in _CHARGES:
        raise invalid("InternetChargeType", f"must be one of {', '.join(_CHARGES)}")
    if call.params.text("InstanceChargeType", "PostPaid") != "PostPaid":
        raise CloudError(400, "OrderFailed", "A prepaid address can't be ordered in the sandbox.")
    bandwidth = call.params.integer("Bandwidth", 5, 1, 200 if charge == "PayByTraffic" else 500)
    eip = Eip(
        id=new_id("eip-t4n", 18),
        # The emulated API server listens on this machine alone.
        ip="127.0.0.1",
        name=call.params.text("Name"),
        region=region,
        created=call.now,
        bandwidth=str(bandwidth),
        charge=charge,
        tags=call.params.tags(),
    )
    call.world.eips[eip.id] = eip
    price = str(catalog.EIP_PRICE)
    call.world.purchases.append(Purchase("eip", eip.id, eip.name, call.now, price))
    return {"AllocationId": eip.id, "EipAddress": eip.ip, "OrderId": 0, "ResourceGroupId": "rg-acfmsandbox"}


def describe_eip_addresses(call: Call) -> dict[str, Any]:
    """DescribeEipAddresses by AllocationId (comma list), EipName, Status, associated instance or tags."""
    region, text, wanted = _region(call), call.params.text, call.params.tags()
    ids = [each for each in text("AllocationId").split(",") if each]
    if len(ids) > 50:
        raise invalid("AllocationId", "has more than 50 entries")
    found = [
        _address(eip)
        for eip in call.world.eips.values()
        if eip.region == region
        and (not ids or eip.id in ids)
        and text("EipName") in ("", eip.name)
        and text("EipAddress") in ("", eip.ip)
        and text("Status") in ("", eip.status)
        and text("AssociatedInstanceId") in ("", eip.instance_id)
        and text("AssociatedInstanceType") in ("", eip.instance_type)
        and has_tags(eip.tags, wanted)
    ]
    page, number, size = page_by_number(found, call.params)
    return {
        "TotalCount": len(found),
        "PageNumber": number,
        "PageSize": size,
        "EipAddresses": {"EipAddress": page},
    }


def _address(eip: Eip) -> dict[str, Any]:
    return {
        "AllocationId": eip.id,
        "IpAddress": eip.ip,
        "Status": eip.status,
        "InstanceId": eip.instance_id,
        "InstanceType": eip.instance_type,
        "RegionId": eip.region,
        "InstanceRegionId": eip.region if eip.instance_id else "",
        "Bandwidth": eip.bandwidth,
        "InternetChargeType": eip.charge,
        "ChargeType": "PostPaid",
        "Name": eip.name,
        "AllocationTime": utc(eip.created),
        "DeletionProtection": False,
        "BusinessStatus": "Normal",
        "OperationLocks": {"LockReason": []},
        "Tags": {"Tag": tag_list(eip.tags)},
    }


def unassociate_eip_address(call: Call) -> dict[str, Any]:
    """UnassociateEipAddress: refused for an API server's address, which only its cluster may give back."""
    eip = _find(call)
    if eip.instance_type == "SlbInstance":
        message = f"{eip.id} is the public endpoint of a cluster's API server; unbind it through the cluster."
        raise CloudError(400, "InvalidOperation.ApiServerEip", message)
    raise CloudError(400, "IncorrectEipStatus", f"The address {eip.id} is {eip.status}; it can't be unbound.")


def release_eip_address(call: Call) -> dict[str, Any]:
    """ReleaseEipAddress: only of an address that is Available; gone a moment later."""
    eip = _find(call)
    if eip.status != "Available":
        raise CloudError(
            400, "IncorrectEipStatus", f"Current elastic IP status {eip.status} does not support this."
        )
    eip.status, eip.due = "Releasing", call.now + RELEASE_S * call.cloud.time_scale
    return {}


def describe_nat_gateways(call: Call) -> dict[str, Any]:
    """DescribeNatGateways of a VPC."""
    region, text = _region(call), call.params.text
    found = [
        {
            "NatGatewayId": cluster.ids["nat"],
            "Name": f"{cluster.name}-nat",
            "VpcId": cluster.ids["vpc"],
            "RegionId": cluster.region,
            "Status": "Available",
            "BusinessStatus": "Normal",
            "NatType": "Enhanced",
            "NetworkType": "internet",
            "CreationTime": utc(cluster.created),
            "SnatTableIds": {"SnatTableId": [cluster.ids["snat_table"]]},
            "ForwardTableIds": {"ForwardTableId": []},
            "IpLists": {
                "IpList": [{"AllocationId": cluster.ids["nat_eip"], "IpAddress": _nat_ip(call, cluster)}]
            },
        }
        for cluster in call.world.clusters.values()
        if cluster.ids["nat"]
        and cluster.region == region
        and text("VpcId") in ("", cluster.ids["vpc"])
        and text("NatGatewayId") in ("", cluster.ids["nat"])
    ]
    page, number, size = page_by_number(found, call.params)
    return {
        "TotalCount": len(found),
        "PageNumber": number,
        "PageSize": size,
        "NatGateways": {"NatGateway": page},
    }


def describe_snat_table_entries(call: Call) -> dict[str, Any]:
    """DescribeSnatTableEntries: the entry that lets the workers' vSwitch out."""
    region, text = _region(call), call.params.text
    if not text("SnatTableId") and not text("NatGatewayId"):
        raise CloudError(400, "MissingParameter", "SnatTableId or NatGatewayId is mandatory for this action.")
    found = [
        {
            "SnatEntryId": cluster.ids["snat_entry"],
            "SnatTableId": cluster.ids["snat_table"],
            "NatGatewayId": cluster.ids["nat"],
            "SnatIp": _nat_ip(call, cluster),
            "SourceVSwitchId": cluster.ids["vswitch"],
            "SourceCIDR": "192.168.0.0/24",
            "Status": "Available",
        }
        for cluster in call.world.clusters.values()
        if cluster.ids["nat"]
        and cluster.region == region
        and text("SnatTableId") in ("", cluster.ids["snat_table"])
        and text("NatGatewayId") in ("", cluster.ids["nat"])
        and text("SourceVSwitchId") in ("", cluster.ids["vswitch"])
    ]
    page, number, size = page_by_number(found, call.params)
    entries = {"SnatTableEntry": page}
    return {"TotalCount": len(found), "PageNumber": number, "PageSize": size, "SnatTableEntries": entries}


def _nat_ip(call: Call, cluster: Cluster) -> str:
    eip = call.world.eips.get(cluster.ids["nat_eip"])
    return eip.ip if eip else ""


def _region(call: Call) -> str:
    region = call.params.required("RegionId")
    if region not in catalog.ZONES:
        raise CloudError(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")
    return region


def _find(call: Call) -> Eip:
    allocation_id = call.params.required("AllocationId")
    eip = call.world.eips.get(allocation_id)
    region = call.params.text("RegionId")
    if eip is None or eip.status == "Releasing" or region not in ("", eip.region):
        message = f"The specified AllocationId {allocation_id} does not exist."
        raise CloudError(404, "InvalidAllocationId.NotFound", message)
    return eip


HANDLERS: dict[str, Handler] = {
    "AllocateEipAddress": allocate_eip_address,
    "DescribeEipAddresses": describe_eip_addresses,
    "UnassociateEipAddress": unassociate_eip_address,
    "ReleaseEipAddress": release_eip_address,
    "DescribeNatGateways": describe_nat_gateways,
    "DescribeSnatTableEntries": describe_snat_table_entries,
}
