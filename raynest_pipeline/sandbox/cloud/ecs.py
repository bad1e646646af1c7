"""ECS: instance types, stock and prices. Lists come double-nested, as the RPC style has them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.context import Call, Handler
from raynest_pipeline.sandbox.cloud.deployment import out_of_stock
from raynest_pipeline.sandbox.cloud.errors import CloudError, invalid


def describe_instance_types(call: Call) -> dict[str, Any]:
    """DescribeInstanceTypes: an unknown type is simply not in the answer."""
    wanted = call.params.items("InstanceTypes")
    if len(wanted) > 10:
        raise invalid("InstanceTypes", "has more than 10 entries")
    found = [
        {
            "InstanceTypeId": kind.id,
            "InstanceTypeFamily": kind.family,
            "CpuCoreCount": kind.cpu,
            "MemorySize": kind.memory_gib,
            "GPUAmount": kind.gpus,
            "GPUSpec": kind.gpu_model,
            "GPUMemorySize": kind.gpu_memory_gib,
            "CpuArchitecture": "X86",
            "InstanceFamilyLevel": "EnterpriseLevel",
        }
        for kind in catalog.INSTANCE_TYPES.values()
        if not wanted or kind.id in wanted
    ]
    return {"NextToken": "", "InstanceTypes": {"InstanceType": found}}


def describe_available_resource(call: Call) -> dict[str, Any]:
    """DescribeAvailableResource: the stock of instance types by zone."""
    region = call.params.required("RegionId")
    if region not in catalog.ZONES:
        raise CloudError(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")
    if call.params.required("DestinationResource") != "InstanceType":
        raise invalid("DestinationResource", "is not supported here; use InstanceType")
    zone, kind = call.params.text("ZoneId"), call.params.text("InstanceType")
    if zone and zone not in catalog.ZONES[region]:
        raise CloudError(404, "InvalidZoneId.NotFound", "The specified zone does not exist.")
    if kind and kind not in catalog.INSTANCE_TYPES:
        raise CloudError(404, "InvalidInstanceType.NotFound", "The specified instance type does not exist.")
    kinds = [kind] if kind else list(catalog.INSTANCE_TYPES)
    zones = [zone] if zone else catalog.ZONES[region]
    return {"AvailableZones": {"AvailableZone": [_stock(call, region, each, kinds) for each in zones]}}


def _stock(call: Call, region: str, zone: str, kinds: list[str]) -> dict[str, Any]:
    supported = []
    for kind in kinds:
        sold_out = out_of_stock(call.cloud, kind, zone)
        status, category = ("SoldOut", "WithoutStock") if sold_out else ("Available", "WithStock")
        supported.append({"Value": kind, "Status": status, "StatusCategory": category})
    none = all(each["Status"] == "SoldOut" for each in supported)
    resource = {"Type": "InstanceType", "SupportedResources": {"SupportedResource": supported}}
    return {
        "RegionId": region,
        "ZoneId": zone,
        "Status": "SoldOut" if none else "Available",
        "StatusCategory": "WithoutStock" if none else "WithStock",
        "AvailableResources": {"AvailableResource": [resource]},
    }


def describe_price(call: Call) -> dict[str, Any]:
    """DescribePrice: of Amount instances with their system disk, an hour."""
    if call.params.text("PriceUnit", "Hour") != "Hour":
        raise invalid("PriceUnit", "is not supported here; use Hour")
    kind = catalog.INSTANCE_TYPES.get(call.params.required("InstanceType"))
    if kind is None:
        raise CloudError(404, "InvalidInstanceType.NotFound", "The specified instance type does not exist.")
    category = call.params.text("SystemDisk.Category", "cloud_essd")
    if category not in catalog.DISK_PRICES:
        raise invalid("SystemDisk.Category", f"must be one of {', '.join(catalog.DISK_PRICES)}")
    size = call.params.integer("SystemDisk.Size", 40, 20, 2048)
    amount = call.params.integer("Amount", 1, 1, 1000)
    disk = catalog.DISK_PRICES[category] * size * amount
    details = [
        _money(kind.price * amount) | {"Resource": "instanceType"},
        _money(disk) | {"Resource": "systemDisk"},
    ]
    price = _money(kind.price * amount + disk)
    return {
        "PriceInfo": {
            "Price": {**price, "Currency": catalog.CURRENCY, "DetailInfos": {"DetailInfo": details}},
            "Rules": {"Rule": []},
        }
    }


def _money(amount: Decimal) -> dict[str, Any]:
    return {"OriginalPrice": float(amount), "TradePrice": float(amount), "DiscountPrice": 0.0}


HANDLERS: dict[str, Handler] = {
    "DescribeInstanceTypes": describe_instance_types,
    "DescribeAvailableResource": describe_available_resource,
    "DescribePrice": describe_price,
}
