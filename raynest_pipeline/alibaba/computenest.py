"""Compute Nest as the chain sees it: values, and the port that both SDKs stand behind.

The user side (`alibabacloud-computenest20210601`) is what the walkthrough's five policies grant; the
supplier side (`alibabacloud-computenestsupplier20210521`) is for whoever publishes the service. The
port's implementation is in `computenest_sdk`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from raynest_pipeline.alibaba.price import Price

STATUS_DEPLOYED = "Deployed"
STATUS_FAILED = "DeployedFailed"
STATUS_DELETING = "Deleting"
STATUS_DELETED = "Deleted"
STATUS_DELETE_FAILED = "DeletedFailed"
STATUS_STOPPED = "Stopped"
STATUS_START_FAILED = "StartFailed"
"""It and Stopped: an instance that StartServiceInstance can start (facts, section 3)."""


@dataclass(frozen=True)
class Service:
    """A Compute Nest service, at one version."""

    service_id: str
    version: str
    name: str
    template_names: tuple[str, ...]
    allowed_regions: tuple[str, ...]
    """Regions in which the settings' template may be deployed; empty when the service names none."""


@dataclass(frozen=True)
class ServiceInstance:
    """A deployed (or failed, or half-made) service."""

    id: str
    name: str
    status: str
    """Created, Deploying, DeployedFailed, Deployed, Upgrading, Deleting, DeletedFailed; others exist."""
    status_detail: str = ""
    progress: int | None = None
    """Percent. Never wait for 100: a Deployed instance may say 90."""
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What it was made with, without LoginPassword."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """The template's outputs; `Instruction` is the Ray dashboard's address."""
    stack_ids: tuple[str, ...] = ()
    """ROS stacks behind it."""
    created: datetime | None = None
    service_version: str = ""
    template_name: str = ""
    deploy_region: str = ""
    """Where the cluster is, which is not where the control plane is; "" when the answer doesn't say."""


@dataclass(frozen=True)
class CloudResource:
    """A cloud resource that belongs to a service instance."""

    arn: str
    """arn:acs:<product>:<region>:<account>:<type>/<id>"""
    product_code: str
    type: str
    """The part of the ARN before the id, e.g. `cluster`; "" when the ARN has another shape."""
    status: str

    @property
    def id(self) -> str:
        """The last part of the ARN, e.g. the cluster id."""
        return self.arn.rpartition("/")[2] if "/" in self.arn else ""


@dataclass(frozen=True)
class MissingPermission:
    """Actions of one product that the caller may not do."""

    product: str
    actions: tuple[str, ...]
    resource: str = "*"


@dataclass(frozen=True)
class Provision:
    """Whether a product that the service needs is activated, and its roles are granted."""

    name: str
    enabled: bool | None
    """None: the product could not say."""
    status_reason: str = ""
    enable_url: str = ""
    missing_roles: tuple[str, ...] = ()
    authorization_url: str = ""


@dataclass(frozen=True)
class DeployCheck:
    """One check (account balance, quota) before a deployment."""

    kind: str
    """Balance | Quota"""
    message: str
    value: str = ""
    skippable: bool = False


class ServiceInstances(Protocol):
    """The part of Compute Nest that raynest needs. Every method raises `CloudError`."""

    def resolve_service(self) -> Service:
        """The service that the settings name, at the version they name or the one online.

        Raises:
            CloudError: gone, when there is none of that name or it lacks the template.
        """
        ...

    def find_instances(self, name: str) -> list[ServiceInstance]:
        """All instances of exactly this name that aren't Deleted, newest first."""
        ...

    def get_instance(self, instance_id: str) -> ServiceInstance | None:
        """One instance; None when it was never there or is Deleted."""
        ...

    def create_instance(
        self,
        name: str,
        service: Service,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        client_token: str,
        *,
        dry_run: bool = False,
    ) -> str:
        """Begin a deployment; returns the instance id ("" for a dry run). Same token, same instance."""
        ...

    def delete_instance(self, instance_id: str, client_token: str) -> None:
        """Begin the deletion. One that is gone already counts as done."""
        ...

    def resources(self, instance_id: str) -> list[CloudResource]:
        """The cloud resources it is made of."""
        ...

    def instance_logs(self, instance_id: str) -> list[str]:
        """Lines of its deployment logs, the most telling first: the cause, other failures, the newest."""
        ...

    def missing_permissions(
        self, service: Service, parameters: Mapping[str, Any]
    ) -> list[MissingPermission] | None:
        """What the caller may not do but must, to create one. None: not known, the reader is denied."""
        ...

    def provisions(self, service: Service, parameters: Mapping[str, Any] | None = None) -> list[Provision]:
        """Products the service needs, activated or not."""
        ...

    def estimate_cost(self, service: Service, parameters: Mapping[str, Any]) -> Price | None:
        """List price per hour. None: the answer has no price in it."""
        ...

    def check_deployable(self, service: Service, post_paid_amount: Decimal) -> Sequence[DeployCheck] | None:
        """What stands against it (balance, quota); empty: nothing. None: this side has no such call."""
        ...
