"""Before anything is bought: who am I, may I, is it enough, is it in stock, what does it cost.

Reads only. A check that refuses stops the purchase; a check that could not be made says so and lets go on
(except the price, unless `allow_unknown_price`): "unknown" must never read as "missing".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import Service
from raynest_pipeline.alibaba.ecs import InstanceType
from raynest_pipeline.alibaba.password import generate_password
from raynest_pipeline.alibaba.price import Price
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.chain.parameters import template_parameters
from raynest_pipeline.errors import RefusedError, RemoteError
from raynest_pipeline.settings import Settings

POLICIES = (
    "AliyunCSFullAccess",
    "AliyunECSFullAccess",
    "AliyunVPCFullAccess",
    "AliyunROSFullAccess",
    "AliyunComputeNestUserFullAccess",
)
"""The walkthrough's five policies for a RAM user: a hint when something is denied, no proof."""

_WORKER_LINE = re.compile(r"worker|nodepool|ecs_?instance", re.IGNORECASE)
"""The workers' line in an estimate, e.g. `AckOrAcsClusterModule.EcsInstanceWorker` (facts, 2.2)."""

Outcome = Literal["pass", "refuse", "unknown"]


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    outcome: Outcome
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All answers."""

    checks: tuple[Check, ...]
    zone_id: str = ""
    price: Price | None = None
    service: Service | None = None
    caller: Caller | None = None

    @property
    def refusals(self) -> tuple[Check, ...]:
        """What stands against buying."""
        return tuple(check for check in self.checks if check.outcome == "refuse")

    def raise_if_refused(self) -> None:
        """Raise when anything stands against buying.

        Raises:
            RefusedError: Names every reason.
        """
        if self.refusals:
            raise RefusedError(
                "Nothing was bought: " + "; ".join(check.message for check in self.refusals) + ".",
                fix=" ".join(dict.fromkeys(check.fix for check in self.refusals if check.fix)),
            )


def run_preflight(settings: Settings, cloud: Cloud) -> Report:
    """Answer all questions about buying the cluster that the settings describe.

    Raises:
        AccessError: No credentials, or wrong ones.
        CloudError: The service cannot be found, or the cloud cannot be reached at all.
    """
    caller = cloud.identity.caller()
    service = cloud.instances.resolve_service()
    checks = [
        Check("identity", "pass", f"{caller.identity_type} {caller.name} of account {caller.account_id}"),
        _region(settings, service),
    ]
    zone_id = settings.alibaba.zone_id or ""
    price = None
    if settings.alibaba.existing_cluster_id is None:
        checks.append(_guarded("worker_spec", lambda: _worker_spec(settings, cloud)))
        in_stock = _zones_in_stock(settings, cloud)
        checks.append(_stock(settings, in_stock))
        zone_id = zone_id or next(iter(in_stock or ()), "")
    parameters = template_parameters(settings.alibaba, zone_id=zone_id, password=generate_password())
    checks.append(_guarded("permissions", lambda: _permissions(cloud, caller, service, parameters)))
    checks.append(_guarded("activation", lambda: _activation(cloud, service, parameters)))
    if settings.alibaba.existing_cluster_id is None:
        price, check = _price(settings, cloud, service, parameters, zone_id)
        checks.append(check)
        if price is not None:
            checks.append(_guarded("balance", lambda: _balance(cloud, service, price.amount)))
    return Report(tuple(checks), zone_id=zone_id, price=price, service=service, caller=caller)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that the cloud would not answer is unknown, not failed."""
    try:
        return check()
    except RemoteError as error:
        return Check(name, "unknown", f"{name} could not be checked: {error.what} {error.why}".rstrip())


def _region(settings: Settings, service: Service) -> Check:
    region = settings.alibaba.region_id
    if service.allowed_regions and region not in service.allowed_regions:
        allowed = ", ".join(service.allowed_regions)
        return Check(
            "region",
            "refuse",
            f"the service {service.name} cannot be deployed in {region}",
            f"Set alibaba.region_id to one of: {allowed}.",
        )
    return Check(
        "region", "pass", f"{service.name} {service.version} ({service.service_id}) deploys in {region}"
    )


def _worker_spec(settings: Settings, cloud: Cloud) -> Check:
    wanted = settings.alibaba
    machine = cloud.machines.instance_type(wanted.worker_instance_type)
    fix = "Choose a larger alibaba.worker_instance_type (e.g. ecs.gn7i-c8g1.2xlarge) or worker_disk_gib."
    if machine is None:
        return Check("worker_spec", "refuse", f"there is no machine type {wanted.worker_instance_type}", fix)
    lacks = [
        f"{name} {have:g} < {need:g}"
        for name, have, need in (
            ("vCPUs", machine.vcpus, wanted.min_vcpus),
            ("memory (GiB)", machine.memory_gib, wanted.min_memory_gib),
            ("GPUs", machine.gpus, wanted.min_gpus),
            ("GPU memory (GiB)", machine.gpu_memory_gib, wanted.min_gpu_memory_gib if wanted.min_gpus else 0),
            ("system disk (GiB)", wanted.worker_disk_gib, wanted.min_disk_gib),
        )
        if have < need
    ]
    if lacks:
        return Check("worker_spec", "refuse", f"{machine.id} is not enough: " + ", ".join(lacks), fix)
    if problem := _too_few_gpus(settings, machine):
        return problem
    return Check("worker_spec", "pass", f"{_spec(machine)}, {wanted.worker_disk_gib} GiB disk")


def _too_few_gpus(settings: Settings, machine: InstanceType) -> Check | None:
    """Replicas that no node has room for would wait for ever, for what has just been bought."""
    service, nodes = settings.ray_service, settings.alibaba.worker_count
    each = service.gpus_per_replica
    if service.manifest is not None or each == 0:
        return None
    room = nodes * (machine.gpus // each)
    if service.most_replicas <= room:
        return None
    if machine.gpus < each:
        return Check(
            "worker_spec",
            "refuse",
            f"ray_service.gpus_per_replica is {each}, but {machine.id} has {machine.gpus} GPUs",
            "Choose another alibaba.worker_instance_type, or lower ray_service.gpus_per_replica.",
        )
    which = "max_replicas" if service.max_replicas else "replicas"
    return Check(
        "worker_spec",
        "refuse",
        f"ray_service.{which} is {service.most_replicas}, with {each} GPUs each, but {nodes} x {machine.id} "
        f"({machine.gpus} GPUs) have room for {room}",
        f"Raise alibaba.worker_count, or lower ray_service.{which}.",
    )


def _spec(machine: InstanceType) -> str:
    gpus = f", {machine.gpus}x {machine.gpu_name}" if machine.gpus else ""
    return f"{machine.id}: {machine.vcpus} vCPU, {machine.memory_gib:g} GiB{gpus}"


def _zones_in_stock(settings: Settings, cloud: Cloud) -> list[str] | None:
    wanted = settings.alibaba
    try:
        zones = cloud.machines.zones_in_stock(
            wanted.region_id, wanted.worker_instance_type, wanted.worker_disk_category
        )
    except RemoteError:
        # Reading the stock may be denied; the purchase itself will tell.
        return None
    return [zone.zone_id for zone in zones if zone.available]


def _stock(settings: Settings, in_stock: list[str] | None) -> Check:
    wanted = settings.alibaba
    if in_stock is None:
        if wanted.zone_id:
            return Check("stock", "unknown", "the stock could not be looked up")
        return Check("stock", "refuse", "no zone could be looked up", "Set alibaba.zone_id.")
    if not in_stock:
        return Check(
            "stock",
            "refuse",
            f"{wanted.worker_instance_type} is sold out in every zone of {wanted.region_id}",
            "Try another alibaba.worker_instance_type or alibaba.region_id, or try again later.",
        )
    if wanted.zone_id and wanted.zone_id not in in_stock:
        return Check(
            "stock",
            "refuse",
            f"{wanted.worker_instance_type} is sold out in zone {wanted.zone_id}",
            f"Set alibaba.zone_id to one of {', '.join(in_stock)}, or leave it unset.",
        )
    return Check("stock", "pass", f"in stock in {', '.join(in_stock)}")


def _permissions(cloud: Cloud, caller: Caller, service: Service, parameters: dict[str, object]) -> Check:
    if caller.is_root:
        return Check("permissions", "pass", "the account itself may do everything")
    fix = f"Have these policies attached to {caller.name}: {', '.join(POLICIES)}."
    missing = cloud.instances.missing_permissions(service, parameters)
    if missing:
        actions = ", ".join(action for item in missing for action in item.actions)
        return Check("permissions", "refuse", f"{caller.name} lacks the permissions {actions}", fix)
    if missing is not None:
        return Check("permissions", "pass", "Compute Nest says that no permission is missing")
    attached = cloud.policies.attached_policies(caller)
    if attached is None:
        return Check("permissions", "unknown", f"{caller.name} may not read its own permissions", fix)
    absent = [policy for policy in POLICIES if policy not in attached]
    if absent and "AdministratorAccess" not in attached:
        return Check("permissions", "unknown", f"not attached by name: {', '.join(absent)}", fix)
    return Check("permissions", "pass", "the five policies are attached")


def _activation(cloud: Cloud, service: Service, parameters: dict[str, object]) -> Check:
    problems, links = [], []
    for item in cloud.instances.provisions(service, parameters):
        if item.enabled is False:
            problems.append(f"{item.name} is not activated")
            links.append(item.enable_url)
        if item.missing_roles:
            problems.append(f"{item.name} lacks the service roles {', '.join(item.missing_roles)}")
            links.append(item.authorization_url)
    if problems:
        opened = " ".join(dict.fromkeys(link for link in links if link))
        return Check(
            "activation",
            "refuse",
            "; ".join(problems),
            f"Authorize once in the console: {opened}".rstrip(": "),
        )
    return Check("activation", "pass", "every product is activated and its service roles are granted")


def _price(
    settings: Settings, cloud: Cloud, service: Service, parameters: dict[str, object], zone_id: str
) -> tuple[Price | None, Check]:
    price = _estimate(settings, cloud, service, parameters, zone_id)
    cap, currency = settings.alibaba.max_price_per_hour, settings.alibaba.price_currency
    if price is None or price.currency != currency:
        found = (
            f"the price is in {price.currency}, the cap in {currency}"
            if price
            else "the price could not be found out"
        )
        if settings.alibaba.allow_unknown_price:
            return price, Check("price", "unknown", found)
        fix = "Set alibaba.price_currency and max_price_per_hour, or allow_unknown_price: true to go on."
        return price, Check("price", "refuse", found, fix)
    text = describe_price(price)
    if price.amount > cap:
        fix = "Raise alibaba.max_price_per_hour, or choose fewer or smaller workers."
        return price, Check("price", "refuse", f"{text} is above the cap of {cap} {currency} per hour", fix)
    return price, Check("price", "pass", f"{text}, the cap is {cap} {currency}")


def _estimate(
    settings: Settings, cloud: Cloud, service: Service, parameters: dict[str, object], zone_id: str
) -> Price | None:
    """Compute Nest's estimate; what it lacks of the workers is their own list price.

    None: the workers' price, nearly all of the bill, is not known. A lower bound without it means nothing.
    """
    wanted = settings.alibaba
    whole = _price_or_none(lambda: cloud.instances.estimate_cost(service, parameters))
    workers = _price_or_none(
        lambda: cloud.machines.hourly_price(
            wanted.worker_instance_type,
            count=wanted.worker_count,
            disk_category=wanted.worker_disk_category,
            disk_gib=wanted.worker_disk_gib,
            zone_id=zone_id or None,
        )
    )
    if whole is None:
        # The cluster, its load balancers and the NAT gateway come on top.
        return workers and Price(workers.amount, workers.currency, True, workers.lines)
    if not whole.lower_bound:
        return whole
    comparable = workers if workers and workers.currency == whole.currency else None
    in_it = any(_WORKER_LINE.search(line.name) and not line.note for line in whole.lines)
    if comparable is None:
        return whole if in_it else None
    if not in_it:
        amount = whole.amount + comparable.amount
        return Price(amount, whole.currency, True, (*whole.lines, *comparable.lines))
    if comparable.amount > whole.amount:
        return Price(comparable.amount, whole.currency, True, (*whole.lines, *comparable.lines))
    return whole


def _price_or_none(inquiry: Callable[[], Price | None]) -> Price | None:
    try:
        return inquiry()
    except RemoteError:
        # Inquiring may itself be denied or broken; the caller decides what an unknown price means.
        return None


def describe_price(price: Price) -> str:
    """E.g. `at least 19.09 CNY per hour`."""
    return f"{'at least ' if price.lower_bound else ''}{price.amount:.2f} {price.currency} per hour"


def _balance(cloud: Cloud, service: Service, amount: Decimal) -> Check:
    problems = cloud.instances.check_deployable(service, amount)
    if problems is None:
        return Check("balance", "unknown", "this side of Compute Nest cannot check balance and quota")
    hard = [f"{item.kind}: {item.message}" for item in problems if not item.skippable]
    if hard:
        return Check("balance", "refuse", "; ".join(hard), "Top up the account or raise the quota.")
    return Check("balance", "pass", "balance and quota suffice")
