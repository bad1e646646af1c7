"""What a RayService's status says, for every KubeRay release from 1.2 to 1.7, and whether that is ready.

Pure and tolerant: `parse` takes any JSON object. The rules are those of facts: kuberay-and-serve.md,
2.2, 2.3 and 2.7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from raynest_pipeline.kube.kinds import mapping, mappings, moment, name_of, namespace_of, text
from raynest_pipeline.kube.rayservice.wording import last_line

FAILED_REASONS = frozenset({"InitializingTimeout", "ValidationFailed"})
"""Reasons of Ready=False that no waiting changes."""
SUSPENDED_REASONS = frozenset({"SuspendInProgress", "SuspendComplete"})

_STARTING = frozenset({"NOT_STARTED", "DEPLOYING"})
_SETTLED = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})
"""Deployment statuses that serve: with one GPU and max_replicas 2 it is UPSCALING for ever."""


@dataclass(frozen=True)
class Condition:
    """A Kubernetes condition."""

    type: str
    status: str
    """True | False | Unknown"""
    reason: str = ""
    message: str = ""
    observed_generation: int | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class DeploymentStatus:
    """A Serve deployment."""

    name: str
    status: str
    """UPDATING | HEALTHY | UNHEALTHY | DEPLOY_FAILED | UPSCALING | DOWNSCALING"""
    message: str = ""


@dataclass(frozen=True)
class AppStatus:
    """A Serve application."""

    name: str
    status: str
    """NOT_STARTED | DEPLOYING | DEPLOY_FAILED | RUNNING | UNHEALTHY | DELETING"""
    message: str = ""
    deployments: tuple[DeploymentStatus, ...] = ()

    @property
    def serving(self) -> bool:
        """Whether it is RUNNING and each of its deployments serves."""
        return self.status == "RUNNING" and all(d.status in _SETTLED for d in self.deployments)

    @property
    def worst_message(self) -> str:
        """The message that says most: of a failed deployment, else of any deployment, else its own."""
        failed = [d.message for d in self.deployments if d.message and d.status not in _SETTLED]
        other = [d.message for d in self.deployments if d.message]
        return next(iter([*failed, *other]), self.message)


@dataclass(frozen=True)
class ClusterStatus:
    """The active or the pending half of a status: one RayCluster and the applications on it."""

    name: str = ""
    """Name of the RayCluster; "" when there is none. It can't be constructed: releases differ."""
    apps: tuple[AppStatus, ...] = ()
    """Empty whenever the head isn't ready or nobody asked it: neither healthy nor failed."""
    conditions: tuple[Condition, ...] = ()
    """Of the RayCluster; may be stale here, the RayCluster object has the fresh ones."""
    head_service: str = ""
    head_pod: str = ""
    ready_workers: int = 0
    desired_workers: int = 0


@dataclass(frozen=True)
class RayServiceStatus:
    """A RayService's status."""

    name: str
    namespace: str
    generation: int
    observed_generation: int | None
    deleting: bool
    service_status: str
    """"Running" or "" from 1.3 on; before, e.g. WaitForServeDeploymentReady."""
    conditions: tuple[Condition, ...]
    """Empty up to 1.2."""
    active: ClusterStatus
    pending: ClusterStatus
    serve_endpoints: int | None

    def condition(self, type: str) -> Condition | None:
        """The condition of a type."""
        return next((condition for condition in self.conditions if condition.type == type), None)

    @property
    def cluster(self) -> ClusterStatus:
        """The active cluster, else the pending one."""
        return self.active if self.active.name else self.pending

    @property
    def upgrading(self) -> bool:
        """Whether a second cluster is being prepared beside the active one, or in its place."""
        condition = self.condition("UpgradeInProgress")
        return bool(self.active.name and self.pending.name) or (
            condition is not None and condition.status == "True"
        )


class ReadyState(StrEnum):
    """How ready a RayService is, by its status alone."""

    READY = "ready"
    PENDING = "pending"
    FAILED = "failed"
    """It will not recover by itself: the operator never repairs a failed application."""
    DEGRADED = "degraded"
    """It was ready and serves badly or not at all now; give it a minute before repairing."""
    UNKNOWN = "unknown"
    """Nothing can be concluded: no reason to redeploy."""


@dataclass(frozen=True)
class Readiness:
    """A verdict and its reason in words."""

    state: ReadyState
    cause: str


def parse(ray_service: Mapping[str, Any]) -> RayServiceStatus:
    """Read a RayService; what is absent or of another shape counts as not said. Never raises."""
    metadata = mapping(ray_service.get("metadata"))
    status = mapping(ray_service.get("status"))
    endpoints = status.get("numServeEndpoints")
    return RayServiceStatus(
        name=name_of(ray_service),
        namespace=namespace_of(ray_service),
        generation=_count(metadata.get("generation")),
        observed_generation=_optional_count(status.get("observedGeneration")),
        deleting=bool(metadata.get("deletionTimestamp")),
        service_status=text(status.get("serviceStatus")),
        conditions=conditions_of(status),
        active=_cluster(status.get("activeServiceStatus")),
        pending=_cluster(status.get("pendingServiceStatus")),
        serve_endpoints=_optional_count(endpoints),
    )


def conditions_of(status: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions of any object's status."""
    return tuple(
        Condition(
            type=text(item.get("type")),
            status=text(item.get("status")),
            reason=text(item.get("reason")),
            message=text(item.get("message")),
            observed_generation=_optional_count(item.get("observedGeneration")),
            since=moment(item.get("lastTransitionTime")),
        )
        for item in mappings(status.get("conditions"))
    )


def parse_applications(applications: object, *, deployments_key: str) -> tuple[AppStatus, ...]:
    """Applications by name, of a RayService (serveDeploymentStatuses) or the dashboard (deployments)."""
    return tuple(
        AppStatus(
            name=str(name),
            status=text(mapping(app).get("status")),
            message=text(mapping(app).get("message")),
            deployments=tuple(
                DeploymentStatus(
                    str(key), text(mapping(value).get("status")), text(mapping(value).get("message"))
                )
                for key, value in mapping(mapping(app).get(deployments_key)).items()
            ),
        )
        for name, app in mapping(applications).items()
    )


def judge(status: RayServiceStatus, *, generation: int | None = None, apps: Sequence[str] = ()) -> Readiness:
    """Judge by the status alone; the caller still asks Serve itself (/-/routes, an image).

    Args:
        status: What `parse` returned.
        generation: The generation that must have been seen; default: the object's own.
        apps: Applications that must run; default: all that the status names.
    """
    ready = status.condition("Ready")
    if status.deleting:
        return Readiness(ReadyState.PENDING, "it is being deleted")
    return (
        _final(ready)
        or _failed_application(status)
        or _lagging(status, ready, generation if generation is not None else status.generation)
        or _not_serving(status, ready)
        or _applications(status, apps)
    )


def _final(ready: Condition | None) -> Readiness | None:
    if ready is None:
        return None
    if ready.reason in FAILED_REASONS and ready.status == "False":
        return Readiness(ReadyState.FAILED, f"{ready.reason}: {ready.message}".rstrip(": "))
    if ready.reason in SUSPENDED_REASONS:
        return Readiness(ReadyState.PENDING, "it is suspended (spec.suspend)")
    return None


def _failed_application(status: RayServiceStatus) -> Readiness | None:
    for app in (*status.active.apps, *status.pending.apps):
        if app.status == "DEPLOY_FAILED":
            return Readiness(ReadyState.FAILED, f"application {app.name}: DEPLOY_FAILED{_last_line(app)}")
    for app in status.active.apps:
        if app.status == "UNHEALTHY":
            return Readiness(ReadyState.DEGRADED, f"application {app.name}: UNHEALTHY{_last_line(app)}")
    return None


def _lagging(status: RayServiceStatus, ready: Condition | None, generation: int) -> Readiness | None:
    """Best effort: while it initializes, the observed generation may lag for long, and that is no fault."""
    seen = ready.observed_generation if ready else None
    if ready is not None and ready.status == "True" and seen is not None and seen < generation:
        return Readiness(ReadyState.PENDING, "the operator has not seen the last change yet")
    if status.upgrading:
        heir = status.pending.name or "(not yet named)"
        return Readiness(ReadyState.PENDING, f"an upgrade is in progress: RayCluster {heir} is to take over")
    return None


def _not_serving(status: RayServiceStatus, ready: Condition | None) -> Readiness | None:
    if ready is None:
        # Up to KubeRay 1.2 there are no conditions, only this word.
        if status.service_status == "Running":
            return None
        if status.service_status:
            return Readiness(ReadyState.PENDING, f"service status {status.service_status}")
        return Readiness(ReadyState.UNKNOWN, "the operator has written no status yet")
    if ready.status == "True":
        return None
    if ready.reason == "ZeroServeEndpoints":
        if any(app.status in _STARTING for app in status.active.apps):
            # It is being rebuilt: to rebuild it once more would only begin anew.
            return Readiness(ReadyState.PENDING, _progress(status))
        return Readiness(ReadyState.DEGRADED, "it was ready, but no pod serves any more (ZeroServeEndpoints)")
    return Readiness(ReadyState.PENDING, _progress(status) or ready.message or ready.reason or "not ready")


def _applications(status: RayServiceStatus, names: Sequence[str]) -> Readiness:
    found = {app.name: app for app in status.active.apps}
    if not found:
        return Readiness(
            ReadyState.UNKNOWN, "the status names no application: the Ray head has not answered the operator"
        )
    for name in names or found:
        app = found.get(name)
        if app is None:
            return Readiness(ReadyState.PENDING, f"application {name} is not there yet")
        if not app.serving:
            state = ReadyState.PENDING if app.status != "RUNNING" else _deployment_state(app)
            return Readiness(state, f"application {name}: {_describe(app)}")
    endpoints = status.serve_endpoints
    served = f" on {endpoints} endpoints" if endpoints else ""
    return Readiness(ReadyState.READY, f"{', '.join(names or found)} running{served}")


def _deployment_state(app: AppStatus) -> ReadyState:
    bad = {d.status for d in app.deployments} & {"UNHEALTHY", "DEPLOY_FAILED"}
    return ReadyState.DEGRADED if bad else ReadyState.PENDING


def _progress(status: RayServiceStatus) -> str:
    """What an initializing service is busy with."""
    waiting = [app for app in status.cluster.apps if not app.serving]
    if waiting:
        return "; ".join(f"application {app.name}: {_describe(app)}" for app in waiting)
    return ""


def _describe(app: AppStatus) -> str:
    parts = [f"{d.name} {d.status}" for d in app.deployments if d.status not in _SETTLED]
    details = f" ({', '.join(parts)})" if parts else ""
    return f"{app.status or 'no status'}{details}{_last_line(app)}"


def _last_line(app: AppStatus) -> str:
    line = last_line(app.worst_message)
    return f": {line}" if line else ""


def _cluster(value: object) -> ClusterStatus:
    status = mapping(value)
    cluster = mapping(status.get("rayClusterStatus"))
    head = mapping(cluster.get("head"))
    return ClusterStatus(
        name=text(status.get("rayClusterName")),
        apps=parse_applications(status.get("applicationStatuses"), deployments_key="serveDeploymentStatuses"),
        conditions=conditions_of(cluster),
        head_service=text(head.get("serviceName")),
        head_pod=text(head.get("podName")),
        ready_workers=_count(cluster.get("readyWorkerReplicas")),
        desired_workers=_count(cluster.get("desiredWorkerReplicas")),
    )


def _optional_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(value: object) -> int:
    return _optional_count(value) or 0
