"""All of the cloud in one hand."""

from dataclasses import dataclass

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.alibaba.computenest import ServiceInstances
from raynest_pipeline.alibaba.computenest_sdk import service_instances
from raynest_pipeline.alibaba.cs import Clusters
from raynest_pipeline.alibaba.ecs import Machines
from raynest_pipeline.alibaba.ram import Policies
from raynest_pipeline.alibaba.ros import Stacks
from raynest_pipeline.alibaba.sts import Identity
from raynest_pipeline.alibaba.vpc import Network
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Clock


@dataclass(frozen=True)
class Cloud:
    """The products that the chain uses. Making one contacts nothing and imports no SDK."""

    access: CloudAccess
    instances: ServiceInstances
    clusters: Clusters
    network: Network
    machines: Machines
    identity: Identity
    policies: Policies
    stacks: Stacks

    @classmethod
    def from_settings(cls, settings: Settings, clock: Clock, *, patience_seconds: float = 60.0) -> "Cloud":
        """All products for these settings.

        Raises:
            AccessError: There are no credentials, or the environment would print secrets.
        """
        access = CloudAccess.from_settings(settings.alibaba, clock=clock, patience_seconds=patience_seconds)
        return cls(
            access=access,
            instances=service_instances(access, settings.alibaba),
            clusters=Clusters(access),
            network=Network(access),
            machines=Machines(access),
            identity=Identity(access),
            policies=Policies(access),
            stacks=Stacks(access),
        )
