"""What the emulated cloud sells: regions, zones, instance types, stock, prices and the service itself.

Specifications of ecs.gn7i follow the product pages; ecs.gn7i-c8g1.2xlarge at 18.065 CNY an hour (Singapore,
list, February 2025), the cluster, load balancer, NAT and address prices are those of the service's own price
preview. Other prices are made up in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

#: Where clusters can be created.
REGION = "ap-southeast-1"
ZONES: dict[str, tuple[str, ...]] = {
    "ap-southeast-1": ("ap-southeast-1a", "ap-southeast-1b", "ap-southeast-1c"),
    "cn-hangzhou": ("cn-hangzhou-h", "cn-hangzhou-i"),
}
CURRENCY = "CNY"

SERVICE_NAME = "Ray社区版"
SERVICE_ID = "service-5d2f1c86a0b94e7d8c31"
SERVICE_VERSION = "3"
TEMPLATE_NAME = "容器集群版"
SUPPLIER_UID = 1853370294850618
#: A service whose name contains the other's: a fuzzy search finds both.
OTHER_SERVICE_NAME = "Ray社区版-ECS单机"
OTHER_SERVICE_ID = "service-0b7e94d1f6a24c58b3e2"

CLUSTER_PRICE = Decimal("0.64")
LOAD_BALANCER_PRICE = Decimal("0.1")
NAT_PRICE = Decimal("0.184")
EIP_PRICE = Decimal("0.02")
TRAFFIC_PRICE_PER_GB = Decimal("0.8")
#: Per GiB and hour.
DISK_PRICES = {
    "cloud_essd": Decimal("0.0014"),
    "cloud_ssd": Decimal("0.0014"),
    "cloud_efficiency": Decimal("0.0005"),
}


@dataclass(frozen=True)
class InstanceType:
    """An ECS instance type. Memory and GPU memory (of one GPU) in GiB, price in CNY an hour."""

    id: str
    cpu: int
    memory_gib: float
    gpus: int
    gpu_model: str
    gpu_memory_gib: float
    price: Decimal
    #: The zones that have it in stock.
    zones: tuple[str, ...]

    @property
    def family(self) -> str:
        """ecs.gn7i-c8g1.2xlarge is of the family ecs.gn7i; ecs.g7.2xlarge of ecs.g7."""
        return ".".join(self.id.split(".")[:2]).split("-")[0]


def _type(
    id: str, cpu: int, memory: float, gpus: int, model: str, gpu_memory: float, price: str, zones: str
) -> InstanceType:
    stocked = tuple(f"ap-southeast-1{letter}" for letter in zones)
    return InstanceType(id, cpu, memory, gpus, model, gpu_memory, Decimal(price), stocked)


_A10 = ("NVIDIA A10", 24.0)

#: Instance types by id. Zone b has no A10 at all, as zones in life often don't.
INSTANCE_TYPES = {
    each.id: each
    for each in (
        _type("ecs.gn7i-c8g1.2xlarge", 8, 30.0, 1, *_A10, "18.065", "ac"),
        _type("ecs.gn7i-c16g1.4xlarge", 16, 60.0, 1, *_A10, "19.73", "ac"),
        _type("ecs.gn7i-c32g1.8xlarge", 32, 188.0, 1, *_A10, "24.9", "c"),
        _type("ecs.gn7i-c48g1.12xlarge", 48, 310.0, 1, *_A10, "31.4", "c"),
        _type("ecs.gn7i-c56g1.14xlarge", 56, 346.0, 1, *_A10, "34.6", ""),
        _type("ecs.gn7i-c32g1.16xlarge", 64, 376.0, 2, *_A10, "49.8", "a"),
        _type("ecs.gn6i-c4g1.xlarge", 4, 15.0, 1, "NVIDIA T4", 16.0, "11.2", "abc"),
        _type("ecs.gn6i-c8g1.2xlarge", 8, 31.0, 1, "NVIDIA T4", 16.0, "13.4", "abc"),
        _type("ecs.g7.xlarge", 4, 16.0, 0, "", 0.0, "1.5", "abc"),
        _type("ecs.g7.2xlarge", 8, 32.0, 0, "", 0.0, "3.0", "abc"),
    )
}


def worker_price(instance_type: InstanceType, disk_category: str, disk_gib: int) -> Decimal:
    """What one worker costs an hour, its system disk included."""
    return instance_type.price + DISK_PRICES[disk_category] * disk_gib
