"""What Compute Nest answers, as values. Field names and samples: facts, section 3."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.alibaba.answers import Answer, rpc
from raynest_pipeline.alibaba.computenest import (
    CloudResource,
    DeployCheck,
    MissingPermission,
    Provision,
    Service,
    ServiceInstance,
)

_ENABLED = {"Enabled": True, "EnabledByDefault": True, "Disabled": False}
ROS = "ros"
"""LogSource of the stack's own events."""
_SECRET_PARAMETERS = frozenset({"LoginPassword"})


@dataclass(frozen=True)
class LogLine:
    """A line of a service instance's log."""

    timestamp: str
    status: str
    resource: str
    content: str
    source: str = ""
    """computeNest | ros"""

    @property
    def failed(self) -> bool:
        """Whether it tells of a failure."""
        text = f"{self.status} {self.content}".lower()
        return any(word in text for word in ("fail", "error", "denied", "forbidden"))

    def __str__(self) -> str:
        return " ".join(part for part in (self.timestamp, self.status, self.resource, self.content) if part)


def service(answer: Answer, name: str, template_name: str) -> Service:
    """GetService. Of the service's names, one per language, `name` is kept if it is one of them."""
    metadata = Answer(rpc(answer).json_object("DeployMetadata"), answer.operation, "DeployMetadata.")
    templates = {
        item.required("Name"): item.texts("AllowedRegions") for item in metadata.children("TemplateConfigs")
    }
    names = [item.text("Name") for item in answer.children("ServiceInfos")]
    return Service(
        service_id=answer.required("ServiceId"),
        version=answer.required("Version"),
        name=name if name in names else next((each for each in names if each), ""),
        template_names=tuple(templates),
        allowed_regions=templates.get(template_name, ()),
    )


def service_ids(answer: Answer, name: str) -> tuple[list[str], str]:
    """ListServices: the ids of services of exactly this name in any language, and the next token."""
    items = rpc(answer).children("Services")
    ids = [
        item.required("ServiceId")
        for item in items
        if name in (info.text("Name") for info in item.children("ServiceInfos"))
    ]
    return ids, answer.text("NextToken")


def instances(answer: Answer, name: str, *, first: bool) -> tuple[list[ServiceInstance], str]:
    """ListServiceInstances: those of exactly this name, and the next token. `first`: of the first page."""
    items = rpc(answer).children("ServiceInstances")
    if first and not items and answer.integer("TotalCount") and not answer.text("NextToken"):
        # Believing it would buy a second instance.
        raise answer.bad("ServiceInstances", "is empty, but TotalCount is not 0")
    return [instance(item) for item in items if item.text("Name") == name], answer.text("NextToken")


def instance(item: Answer) -> ServiceInstance:
    """GetServiceInstance, or an element of ListServiceInstances."""
    parameters = item.json_object("Parameters")
    region = parameters.get("RegionId")
    stacks = item.json_list("Resources")
    about = item.child("Service")
    return ServiceInstance(
        id=item.required("ServiceInstanceId"),
        name=item.text("Name"),
        status=item.required("Status"),
        status_detail=item.text("StatusDetail"),
        progress=item.integer("Progress"),
        tags=item.tags("Tags"),
        parameters={key: value for key, value in parameters.items() if key not in _SECRET_PARAMETERS},
        outputs={key: _as_text(value) for key, value in item.json_object("Outputs").items()},
        stack_ids=tuple(
            stack["StackId"]
            for stack in stacks
            if isinstance(stack, Mapping) and _is_text(stack.get("StackId"))
        ),
        created=item.moment("CreateTime"),
        service_version=about.text("Version"),
        template_name=item.text("TemplateName"),
        deploy_region=region if isinstance(region, str) else "",
    )


def resources(answer: Answer) -> tuple[list[CloudResource], str]:
    """ListServiceInstanceResources, and the next token."""
    return [_resource(item) for item in rpc(answer).children("Resources")], answer.text("NextToken")


def log_lines(answer: Answer, source: str) -> list[LogLine]:
    """ListServiceInstanceLogs of one source."""
    return [
        LogLine(
            timestamp=item.text("Timestamp"),
            status=item.text("Status"),
            resource=" ".join(part for part in (item.text("ResourceType"), item.text("ResourceId")) if part),
            content=item.text("Content"),
            source=source,
        )
        for item in rpc(answer).children("ServiceInstancesLogs")
    ]


def most_telling_first(lines: Sequence[LogLine]) -> list[str]:
    """Nothing twice; the cause before its consequences.

    First the failed resources of the stack, oldest first: the first one took the others down. Then the other
    failures, then the rest, newest first.
    """
    oldest = sorted(lines, key=lambda line: line.timestamp)
    causes = [line for line in oldest if line.failed and line.source == ROS]
    others = [line for line in reversed(oldest) if line not in causes]
    ordered = causes + sorted(others, key=lambda line: not line.failed)
    return list(dict.fromkeys(map(str, ordered)))


def missing_permissions(answer: Answer) -> list[MissingPermission]:
    """GenerateServicePolicy."""
    return [
        MissingPermission(
            product=item.text("ServiceName"),
            actions=item.texts("Action"),
            resource=item.text("Resource") or "*",
        )
        for item in rpc(answer).children("MissingPolicy")
    ]


def provisions(answer: Answer) -> list[Provision]:
    """GetServiceProvisions."""
    return [_provision(item) for item in rpc(answer).children("ServiceProvisions")]


def failed_checks(answer: Answer) -> list[DeployCheck]:
    """CheckServiceDeployable: those that did not pass. A passed one has the Value "true"."""
    return [
        DeployCheck(
            kind=item.required("Type"),
            message=item.text("Message"),
            value=item.text("Value"),
            skippable=bool(item.flag("Skippable")),
        )
        for item in rpc(answer).children("CheckResults")
        if item.text("Value").lower() != "true"
    ]


def _resource(item: Answer) -> CloudResource:
    arn = item.required("ResourceARN")
    return CloudResource(
        arn=arn,
        product_code=item.text("ProductCode"),
        type=arn.rpartition(":")[2].rpartition("/")[0],
        status=item.text("Status"),
    )


def _provision(item: Answer) -> Provision:
    enabled = _ENABLED.get(item.text("Status"))
    url = item.text("EnableURL")
    for commodity in item.children("CommodityProvisions"):
        if commodity.text("Status") == "Disabled":
            enabled, url = False, url or commodity.text("EnableURL")
    roles = item.child("RoleProvision")
    return Provision(
        name=item.required("ServiceName"),
        enabled=enabled,
        status_reason=item.text("StatusReason"),
        enable_url=url,
        missing_roles=tuple(
            role.required("RoleName") for role in roles.children("Roles") if role.flag("Created") is False
        ),
        authorization_url=roles.text("AuthorizationURL"),
    )


def _as_text(value: Any) -> str:
    # A command's output ends with a line break.
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
