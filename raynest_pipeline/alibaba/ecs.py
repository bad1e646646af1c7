"""ECS (2014-05-26): machine types, zones in stock, list prices."""

from dataclasses import dataclass

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.answers import Answer, rpc
from raynest_pipeline.alibaba.price import Price, PriceLine, parse_amount, total

IN_STOCK = ("WithStock", "ClosedWithStock")
"""StatusCategory of what is sold now; the second for a little while longer."""


@dataclass(frozen=True)
class InstanceType:
    """What a machine type offers."""

    id: str
    vcpus: int
    memory_gib: float
    gpus: int
    gpu_memory_gib: float
    """As ECS reports it (its reference does not say whether per GPU)."""
    gpu_name: str


@dataclass(frozen=True)
class ZoneStock:
    """Whether a zone sells a machine type now."""

    zone_id: str
    available: bool
    stock: str
    """WithStock | ClosedWithStock | WithoutStock | ClosedWithoutStock"""


class Machines:
    """Machine types of the settings' region. Every method raises `CloudError`."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access

    def instance_type(self, type_id: str) -> InstanceType | None:
        """A machine type; None when there is none of that name."""
        return self._access.read(
            "ecs",
            "DescribeInstanceTypes",
            lambda client, models: client.describe_instance_types(
                models.DescribeInstanceTypesRequest(instance_types=[type_id])
            ),
            lambda answer: _instance_type(answer, type_id),
        )

    def zones_in_stock(self, region: str, type_id: str, disk_category: str) -> list[ZoneStock]:
        """The region's zones that know the type, by the hour, with such a system disk; in stock first."""
        return self._access.read(
            "ecs",
            "DescribeAvailableResource",
            lambda client, models: client.describe_available_resource(
                models.DescribeAvailableResourceRequest(
                    region_id=region,
                    destination_resource="InstanceType",
                    instance_type=type_id,
                    instance_charge_type="PostPaid",
                    system_disk_category=disk_category,
                    network_category="vpc",
                )
            ),
            lambda answer: _zones(answer, type_id),
            region=region,
        )

    def hourly_price(
        self, type_id: str, *, count: int, disk_category: str, disk_gib: int, zone_id: str | None = None
    ) -> Price | None:
        """List price per hour of `count` machines with their system disks. None: no price in the answer."""
        # One machine is asked for and multiplied: the API takes at most 1000.
        return self._access.read(
            "ecs",
            "DescribePrice",
            lambda client, models: client.describe_price(
                models.DescribePriceRequest(
                    region_id=self._access.region_id,
                    zone_id=zone_id,
                    resource_type="instance",
                    instance_type=type_id,
                    amount=1,
                    price_unit="Hour",
                    period=1,
                    system_disk=models.DescribePriceRequestSystemDisk(category=disk_category, size=disk_gib),
                )
            ),
            lambda answer: _price(answer, f"{count} x {type_id}", count),
        )


def _instance_type(answer: Answer, type_id: str) -> InstanceType | None:
    for item in rpc(answer).child("InstanceTypes").children("InstanceType"):
        if item.required("InstanceTypeId") == type_id:
            vcpus, memory = item.integer("CpuCoreCount"), item.number("MemorySize")
            if vcpus is None or memory is None:
                raise item.bad("CpuCoreCount or MemorySize", "is missing")
            return InstanceType(
                id=type_id,
                vcpus=vcpus,
                memory_gib=memory,
                gpus=item.integer("GPUAmount") or 0,
                gpu_memory_gib=item.number("GPUMemorySize") or 0.0,
                gpu_name=item.text("GPUSpec"),
            )
    return None


def _zones(answer: Answer, type_id: str) -> list[ZoneStock]:
    zones = [
        ZoneStock(
            zone_id=zone.required("ZoneId"),
            available=resource.text("Status") == "Available"
            and resource.text("StatusCategory") in ("", *IN_STOCK),
            stock=resource.text("StatusCategory"),
        )
        for zone in rpc(answer).child("AvailableZones").children("AvailableZone")
        for kind in zone.child("AvailableResources").children("AvailableResource")
        for resource in kind.child("SupportedResources").children("SupportedResource")
        if resource.text("Value") == type_id
    ]
    # "WithStock" before "ClosedWithStock", which is about to end.
    return sorted(zones, key=lambda zone: (not zone.available, zone.stock == "ClosedWithStock"))


def _price(answer: Answer, name: str, count: int) -> Price | None:
    price = rpc(answer).child("PriceInfo").child("Price")
    fields = {key: parse_amount(price.number(key)) for key in ("OriginalPrice", "TradePrice")}
    each = fields["TradePrice"] if fields["OriginalPrice"] is None else fields["OriginalPrice"]
    if each is None:
        return None
    return total([PriceLine(name, each * count, price.text("Currency"), "Hour")])
