"""Why a RayService is not ready, in words a person can act on: the ladder of facts 2.7, rung by rung."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from raynest_pipeline.kube.client import KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.kinds import mapping, moment, name_of, namespace_of, text
from raynest_pipeline.kube.rayservice.evidence import Evidence, cluster_pods, gather
from raynest_pipeline.kube.rayservice.known import APPLICATION, CREATING, PULLING, match
from raynest_pipeline.kube.rayservice.pods import PodTrouble, dispensable, pull_progress, summary, trouble
from raynest_pipeline.kube.rayservice.status import FAILED_REASONS, AppStatus, conditions_of, judge
from raynest_pipeline.kube.rayservice.wording import last_line, tail

__all__ = ["Diagnosis", "cluster_pods", "conclude", "diagnose", "pull_progress"]

_OPERATOR_PATIENCE = timedelta(seconds=60)
_LOG_LINES = 8
_WARNINGS = 3
_REFUSALS = frozenset({"InvalidRayServiceSpec", "InvalidRayServiceMetadata", "FailedToCreateRayCluster"})
_STARTS = frozenset({"", "HeadPodNotFound", "ContainersNotReady", "ContainerCreating", "PodInitializing"})
"""Reasons of HeadPodReady=False that only say that it is not up yet."""
_STARTING = "it is starting"


@dataclass(frozen=True)
class Diagnosis:
    """A cause with what supports it."""

    cause: str
    evidence: list[str]
    """Lines: the server's own words, in the order in which they help."""
    fix: str
    hopeless: bool = False
    """Waiting does not help. Never set by an application's message: that may be of before a repair."""
    crashed: tuple[str, str] | None = None
    """(pod, container) whose log tells more."""


def diagnose(client: KubeClient, ray_service: Mapping[str, Any], *, now: datetime | None = None) -> Diagnosis:
    """Find the cause. What cannot be read is said among the evidence; it raises nothing for that."""
    found = conclude(gather(client, ray_service), now=now or datetime.now(UTC))
    if found.crashed is None:
        return found
    pod, container = found.crashed
    lines = _log_tail(client, namespace_of(ray_service), pod, container)
    return replace(found, evidence=[*found.evidence, *(f"log of {pod}: {line}" for line in lines)])


def conclude(evidence: Evidence, *, now: datetime) -> Diagnosis:
    """The ladder, on what was gathered. Pure."""
    rungs: tuple[Callable[[Evidence, datetime], Diagnosis | None], ...] = (
        _by_service,
        _by_clusters,
        _by_pods,
        _by_applications,
        _by_silence,
    )
    for rung in rungs:
        found = rung(evidence, now)
        if found is not None:
            return replace(found, evidence=[*found.evidence, *_context(evidence, found.evidence)])
    cause = judge(evidence.status).cause or _STARTING
    return Diagnosis(cause, _context(evidence, []), "")


def _by_service(evidence: Evidence, now: datetime) -> Diagnosis | None:
    ready = evidence.status.condition("Ready")
    if ready is not None and ready.status == "False" and ready.reason in FAILED_REASONS:
        fix = (
            "Correct the manifest."
            if ready.reason == "ValidationFailed"
            else "Run `raynest up` again: it deletes the RayService and makes it anew, which alone helps now."
        )
        return Diagnosis(f"KubeRay gave up: {ready.reason}", [ready.message], fix, hopeless=True)
    if evidence.status.cluster.name:
        return None
    for event in reversed(evidence.events):
        if text(event.get("reason")) in _REFUSALS:
            message = text(event.get("message"))
            known = match(CREATING[:1], message)
            return Diagnosis(
                known.cause if known else f"KubeRay does not accept it: {text(event.get('reason'))}",
                [message],
                known.fix if known else "Correct the manifest as the message says.",
                hopeless=text(event.get("reason")).startswith("Invalid"),
            )
    return None


def _by_clusters(evidence: Evidence, now: datetime) -> Diagnosis | None:
    for cluster in evidence.clusters:
        for condition in conditions_of(mapping(cluster.get("status"))):
            where = f"RayCluster {name_of(cluster)}: {condition.type} {condition.reason}: {condition.message}"
            if condition.type == "ReplicaFailure" and condition.status == "True":
                created = match(CREATING, condition.message)
                cause = created.cause if created else condition.reason
                return Diagnosis(cause, [where], created.fix if created else "")
            told = condition.type == "HeadPodReady" and condition.status == "False"
            if told and condition.reason not in _STARTS and not _head_pod(evidence, cluster):
                known = match(PULLING, condition.message) if "Pull" in condition.reason else None
                return Diagnosis(
                    known.cause if known else f"the head pod is not ready: {condition.reason}",
                    [where],
                    known.fix if known else "See `kubectl describe pod` of the head pod.",
                    hopeless=bool(known and known.hopeless),
                )
    return None


def _head_pod(evidence: Evidence, cluster: Mapping[str, Any]) -> bool:
    """Whether the head pod itself can be seen: it then says more than the condition made from it."""
    for pod in evidence.pods:
        labels = mapping(mapping(pod.get("metadata")).get("labels"))
        if labels.get("ray.io/cluster") == name_of(cluster) and labels.get("ray.io/node-type") == "head":
            return True
    return False


def _by_pods(evidence: Evidence, now: datetime) -> Diagnosis | None:
    spare = dispensable(evidence.pods, evidence.clusters)
    needed = (pod for pod in evidence.pods if name_of(pod) not in spare)
    problems = (trouble(pod, now=now, events=evidence.pod_events) for pod in needed)
    found = [problem for problem in problems if problem is not None]
    if not found:
        return None
    # A pod that cannot run outweighs one that did and crashed: the latter may be a consequence.
    worst = max(found, key=lambda problem: (problem.hopeless, not problem.crashed))
    if worst.lacks_gpu and evidence.status.active.name and evidence.status.pending.name:
        return _waits_for_old_gpu(evidence, worst)
    return Diagnosis(
        worst.cause,
        [f"pod {worst.pod}: {worst.message}"],
        worst.fix,
        hopeless=worst.hopeless,
        crashed=(worst.pod, worst.crashed) if worst.crashed else None,
    )


def _waits_for_old_gpu(evidence: Evidence, worst: PodTrouble) -> Diagnosis:
    old, new = evidence.status.active.name, evidence.status.pending.name
    return Diagnosis(
        f"the new RayCluster {new} waits for a GPU that the old one, {old}, still holds",
        [f"pod {worst.pod}: {worst.message}"],
        f"Add a GPU node, or take a short outage: kubectl delete raycluster {old}.",
        hopeless=worst.hopeless,
    )


def _by_applications(evidence: Evidence, now: datetime) -> Diagnosis | None:
    for app in (*evidence.status.pending.apps, *evidence.status.active.apps):
        if app.serving:
            continue
        message = app.worst_message
        if not message:
            continue
        known = match(APPLICATION, message)
        line = last_line(message)
        failed = "failed to start" if app.status == "DEPLOY_FAILED" else f"is {app.status}"
        return Diagnosis(
            known.cause if known else f"application {app.name} {failed}: {line}",
            _application_evidence(app),
            known.fix if known else "The message is the application's own; see its log in the Ray dashboard.",
        )
    return None


def _application_evidence(app: AppStatus) -> list[str]:
    lines = [f"application {app.name}: {app.status}"]
    for deployment in app.deployments:
        said = last_line(deployment.message)
        if said:
            lines.append(f"deployment {deployment.name}: {deployment.status}: {said}")
    if len(lines) == 1 and app.message:
        lines += tail(app.message, 2)
    return lines


def _by_silence(evidence: Evidence, now: datetime) -> Diagnosis | None:
    """No status at all: the operator does not run, or may not write."""
    if mapping(evidence.ray_service.get("status")):
        return None
    created = moment(mapping(evidence.ray_service.get("metadata")).get("creationTimestamp"))
    if created is None or now - created < _OPERATOR_PATIENCE:
        return None
    return Diagnosis(
        "the KubeRay operator has not looked at it",
        [f"no status {int((now - created).total_seconds())} s after its creation"],
        "Check that the operator runs, watches this namespace, and may write rayservices/status.",
    )


def _context(evidence: Evidence, said: list[str]) -> list[str]:
    """What helps beside the finding: the service's condition, the latest warnings, the pods."""
    lines = []
    ready = evidence.status.condition("Ready")
    if ready is not None and ready.status != "True":
        lines.append(f"RayService: Ready={ready.status} {ready.reason}: {ready.message}")
    latest: dict[tuple[str, str], str] = {}
    for event in evidence.warnings:
        about = text(mapping(event.get("involvedObject")).get("name"))
        reason = text(event.get("reason"))
        latest.pop((about, reason), None)
        latest[(about, reason)] = f"event on {about}: {reason}: {last_line(text(event.get('message')))}"
    lines += list(latest.values())[-_WARNINGS:]
    lines += [summary(pod) for pod in evidence.pods]
    lines += [f"not readable: {problem}" for problem in evidence.unreadable]
    return [line for line in lines if line not in said]


def _log_tail(client: KubeClient, namespace: str, pod: str, container: str) -> list[str]:
    for previous in (True, False):
        try:
            log = client.pod_logs(namespace, pod, container=container, tail=_LOG_LINES, previous=previous)
        except KubeError:
            continue  # There is no previous run, or the pod is gone.
        if log.strip():
            return tail(log, _LOG_LINES)
    return []
