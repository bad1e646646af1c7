"""An in-memory account, on a clock that tests turn. The typed ports to it are in chain_ports.

It keeps the cloud's promises: the same ClientToken with the same arguments gives the first answer again,
with other arguments a permanent error; an address in use cannot be released; deployments, bindings and
deletions take time. Its `killer` ends the "process" at any remote call, sleep or file write.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from chain_clock import FakeClock, Killer, cloud_error

from raynest_pipeline.alibaba.computenest import DeployCheck, MissingPermission, Provision, Service
from raynest_pipeline.alibaba.cs import ClusterResource
from raynest_pipeline.alibaba.ecs import InstanceType, ZoneStock
from raynest_pipeline.alibaba.egress import Egress
from raynest_pipeline.alibaba.price import Price
from raynest_pipeline.alibaba.sts import Caller
from raynest_pipeline.chain.parameters import address_tags
from raynest_pipeline.errors import Verdict

T = TypeVar("T")
DEPLOY_SECONDS, TASK_SECONDS, DELETE_SECONDS = 40.0, 12.0, 25.0


@dataclass
class BoughtInstance:
    """A service instance; its state follows the clock."""

    id: str
    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]
    made_at: float
    cluster_id: str
    fate: str = "Deployed"
    detail: str = ""
    deleted_at: float | None = None
    undeletable: bool = False
    region: str = ""


@dataclass
class BoughtEip:
    """An address; `bound_to` is a cluster id."""

    id: str
    ip: str
    tags: Mapping[str, str]
    made_at: float
    bound_to: str = ""
    releasing: bool = False


@dataclass
class Binding:
    """A task that binds or unbinds; done TASK_SECONDS after its start."""

    id: str
    cluster_id: str
    eip_id: str
    started: float
    fails: str = ""
    applied: bool = False


@dataclass
class World:
    """Everything there is. Change its fields to set a scene."""

    killer: Killer = field(default_factory=Killer)
    instances: dict[str, BoughtInstance] = field(default_factory=dict)
    eips: dict[str, BoughtEip] = field(default_factory=dict)
    tasks: dict[str, Binding] = field(default_factory=dict)
    tokens: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    bought: list[str] = field(default_factory=list)
    """Ids, in the order of purchase."""
    calls: list[str] = field(default_factory=list)
    faults: dict[str, list[BaseException]] = field(default_factory=dict)
    """Raised by the next calls of that name, before they have an effect."""
    lost: dict[str, list[BaseException]] = field(default_factory=dict)
    """Raised by the next calls of that name, after they had their effect."""
    listing_delay: float = 0.0
    """Seconds until what was bought shows up in a list."""
    deploy_fate: str = "Deployed"
    bind_failure: str = ""
    foreign_endpoint: str = ""
    """An address bound to the clusters by somebody else."""
    cluster_state: str = "running"
    # What the readers answer:
    caller: Caller = Caller("RAMUser", "1234", "acs:ram::1234:user/ada", "ada")
    service: Service = Service("service-1", "3", "Ray社区版", ("容器集群版",), ("ap-southeast-1",))
    machine: InstanceType | None = InstanceType("ecs.gn7i-c8g1.2xlarge", 8, 30.0, 1, 24.0, "NVIDIA A10")
    stock: list[ZoneStock] = field(
        default_factory=lambda: [
            ZoneStock("ap-southeast-1a", False, "WithoutStock"),
            ZoneStock("ap-southeast-1b", True, "WithStock"),
        ]
    )
    missing: list[MissingPermission] | None = field(default_factory=list)
    policies: set[str] | None = None
    provisions: list[Provision] = field(default_factory=lambda: [Provision("CS", True)])
    estimate: Price | None = Price(Decimal("19.09"), "CNY", False)
    workers_price: Price | None = Price(Decimal("18.07"), "CNY", False)
    deployable: list[DeployCheck] | None = field(default_factory=list)
    egress: Egress = Egress(True, "by SNAT through 8.8.4.4")
    resources_listed: bool = True
    stack_listed: bool = True
    logs: list[str] = field(default_factory=list)
    kubeconfig_token: str = "s3cr3t"
    cluster_resources: list[ClusterResource] = field(default_factory=list)
    # What they were told:
    passwords: list[str] = field(default_factory=list)
    unassociations: list[str] = field(default_factory=list)
    """ClientTokens."""

    def __post_init__(self) -> None:
        self.clock = FakeClock(self.killer)
        from chain_ports import cloud_of

        self.cloud = cloud_of(self)

    # -- what tests ask -----------------------------------------------------------------------------

    def alive(self) -> list[str]:
        """Ids of what costs money now."""
        running = [i.id for i in self.instances.values() if self.status_of(i) != "Deleted"]
        return running + [eip.id for eip in self.eips.values()]

    def purchases(self, prefix: str) -> list[str]:
        return [item for item in self.bought if item.startswith(prefix)]

    def add_instance(self, name: str, *, ours: bool = True, **more: Any) -> BoughtInstance:
        """An instance that was deployed long ago, not counted as a purchase of ours."""
        tags = {"raynest": name} if ours else {"owner": "somebody"}
        number = len(self.instances) + 1
        made = BoughtInstance(f"si-{number:020x}", name, tags, {}, -1000.0, f"c{number:032x}", **more)
        self.instances[made.id] = made
        return made

    def add_eip(self, name: str = "raynest", *, bound_to: str = "", ours: bool = True) -> BoughtEip:
        number = len(self.eips) + 1
        tags = address_tags(name) if ours else {}
        made = BoughtEip(f"eip-x{number}", f"47.9.0.{number}", tags, -1000.0, bound_to)
        self.eips[made.id] = made
        return made

    def nat_addresses(self) -> list[BoughtEip]:
        """The NAT gateways' addresses: they come and go with their stack, and carry its tags."""
        return [
            BoughtEip(f"eip-nat-{i.id}", "47.8.8.8", i.tags, i.made_at, bound_to="nat gateway")
            for i in self.instances.values()
            if self.status_of(i) in ("Deployed", "Deleting")
        ]

    # -- how it moves ---------------------------------------------------------------------------------

    def call(self, name: str, effect: Callable[[], T]) -> T:
        """One remote call: it may be killed before it, after it, and fail on demand."""
        self.killer.point(f"before {name}")
        self.calls.append(name)
        self._advance()
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        result = effect()
        if self.lost.get(name):
            raise self.lost[name].pop(0)
        self.killer.point(f"after {name}")
        return result

    def once(self, action: str, token: str, arguments: Any, effect: Callable[[], str]) -> str:
        """At most once per ClientToken."""
        assert token and len(token) <= 64 and token.isascii(), token
        known = self.tokens.get((action, token))
        if known is None:
            known = self.tokens[action, token] = (repr(arguments), effect())
        if known[0] != repr(arguments):
            raise cloud_error(Verdict.PERMANENT, "IdempotentParameterMismatch", status=400)
        return known[1]

    def status_of(self, item: BoughtInstance) -> str:
        now = self.clock.seconds
        if item.deleted_at is not None:
            if now < item.deleted_at + DELETE_SECONDS:
                return "Deleting"
            return "DeletedFailed" if item.undeletable else "Deleted"
        return item.fate if now >= item.made_at + DEPLOY_SECONDS else "Deploying"

    def endpoint_of(self, cluster_id: str) -> str:
        bound = next((e.ip for e in self.eips.values() if e.bound_to == cluster_id), "")
        host = bound or self.foreign_endpoint
        return f"https://{host}:6443" if host else ""

    def eip_status(self, item: BoughtEip) -> str:
        if any(t.eip_id == item.id and not t.applied for t in self.tasks.values()):
            return "Unassociating" if item.bound_to else "Associating"
        return "InUse" if item.bound_to else "Available"

    def _advance(self) -> None:
        now = self.clock.seconds
        for task in self.tasks.values():
            if not task.applied and now >= task.started + TASK_SECONDS:
                task.applied = True
                if task.fails:
                    continue
                for eip in self.eips.values():
                    if eip.id == task.eip_id:
                        eip.bound_to = "" if eip.bound_to else task.cluster_id
        self.eips = {key: eip for key, eip in self.eips.items() if not eip.releasing}
