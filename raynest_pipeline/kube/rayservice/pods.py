"""What a pod's status says about why it does not run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from raynest_pipeline.kube.kinds import event_time, mapping, mappings, name_of, text
from raynest_pipeline.kube.rayservice.known import PULLING, SCHEDULING, match
from raynest_pipeline.kube.rayservice.status import Condition, conditions_of

PATIENCE = timedelta(minutes=10)
"""A node autoscaler brings a node in this time, if it ever does."""

_PULL_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable"})
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_GENERIC_FIX = "See `kubectl describe pod`."


@dataclass(frozen=True)
class PodTrouble:
    """Why a pod does not run."""

    pod: str
    cause: str
    message: str
    fix: str
    hopeless: bool = False
    crashed: str = ""
    """The container whose log tells more, "" when none has run."""
    lacks_gpu: bool = False


def trouble(
    pod: Mapping[str, Any], *, now: datetime, events: Sequence[Mapping[str, Any]] = ()
) -> PodTrouble | None:
    """The first trouble of a pod, or None when it runs or is on its way.

    Args:
        pod: The pod.
        now: Tells how long it has waited.
        events: Events of the namespace; while an image is backed off, only they say what failed.
    """
    status = mapping(pod.get("status"))
    failed = _pull_failure(pod, events)
    return _evicted(pod, status) or _unschedulable(pod, status, now) or _containers(pod, status, failed)


def dispensable(pods: Sequence[Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the pods whose trouble keeps nothing from being served: those that are being deleted, and the
    pending workers of a RayCluster that scales itself and has as many running as it needs at the least.

    Ray's autoscaler leaves a pod that no node takes where it is, also when the load is gone.
    """
    spare = {name_of(pod) for pod in pods if mapping(pod.get("metadata")).get("deletionTimestamp")}
    for cluster in clusters:
        spec = mapping(cluster.get("spec"))
        for group in mappings(spec.get("workerGroupSpecs")) if spec.get("enableInTreeAutoscaling") else ():
            wanted = (name_of(cluster), text(group.get("groupName")))
            members = [pod for pod in pods if _group_of(pod) == wanted and name_of(pod) not in spare]
            phases = {name_of(pod): text(mapping(pod.get("status")).get("phase")) for pod in members}
            if sum(phase == "Running" for phase in phases.values()) >= int(group.get("minReplicas") or 0):
                spare |= {name for name, phase in phases.items() if phase == "Pending"}
    return spare


def _group_of(pod: Mapping[str, Any]) -> tuple[str, str]:
    labels = mapping(mapping(pod.get("metadata")).get("labels"))
    return text(labels.get("ray.io/cluster")), text(labels.get("ray.io/group"))


def summary(pod: Mapping[str, Any]) -> str:
    """One line: name, node, phase, and what each container does."""
    status = mapping(pod.get("status"))
    states = []
    for container in _statuses(status):
        kind, state = next(iter(mapping(container.get("state")).items()), ("unknown", {}))
        reason = text(mapping(state).get("reason"))
        states.append(f"{text(container.get('name'))} {reason or kind}")
    node = text(mapping(pod.get("spec")).get("nodeName")) or "no node"
    phase = text(status.get("phase")) or "no phase"
    return f"pod {name_of(pod)} on {node}: {phase}" + (f" ({', '.join(states)})" if states else "")


def pull_progress(
    events: Sequence[Mapping[str, Any]], pods: Sequence[Mapping[str, Any]], *, now: datetime | None = None
) -> str:
    """What is being pulled, e.g. "pulling image X on node Y for 3 min"; "" when nothing is.

    Args:
        events: core/v1 Events of the namespace, in any order.
        pods: The pods concerned; events about others are ignored.
        now: For tests.
    """
    at = now or datetime.now(UTC)
    nodes = {name_of(pod): text(mapping(pod.get("spec")).get("nodeName")) for pod in pods}
    running: dict[str, tuple[datetime, str]] = {}
    for event in sorted(events, key=event_time):
        pod = text(mapping(event.get("involvedObject")).get("name"))
        if pod not in nodes:
            continue
        if event.get("reason") == "Pulling":
            running[pod] = (event_time(event), text(event.get("message")))
        elif event.get("reason") in ("Pulled", "Failed", "BackOff"):
            running.pop(pod, None)
    if not running:
        return ""
    pod, (since, message) = min(running.items(), key=lambda item: item[1][0])
    image = message.removeprefix("Pulling image ").strip('"') or "an image"
    node = f" on node {nodes[pod]}" if nodes[pod] else ""
    more = f" (and {len(running) - 1} more)" if len(running) > 1 else ""
    return f"pulling image {image}{node} for {_duration(at - since)}{more}"


def _duration(length: timedelta) -> str:
    seconds = max(0, int(length.total_seconds()))
    return f"{seconds} s" if seconds < 90 else f"{round(seconds / 60)} min"


def _evicted(pod: Mapping[str, Any], status: Mapping[str, Any]) -> PodTrouble | None:
    if text(status.get("reason")) != "Evicted":
        return None
    message = text(status.get("message"))
    disk = "ephemeral-storage" in message or "disk" in message.lower()
    return PodTrouble(
        name_of(pod),
        "the node evicted the pod" + (": its disk is full" if disk else ""),
        message,
        "Use a larger system disk (alibaba.worker_disk_gib)." if disk else "Give the node more room.",
    )


def _unschedulable(pod: Mapping[str, Any], status: Mapping[str, Any], now: datetime) -> PodTrouble | None:
    scheduled = next((c for c in conditions_of(status) if c.type == "PodScheduled"), None)
    if scheduled is None or scheduled.status != "False" or scheduled.reason != "Unschedulable":
        return None
    known = match(SCHEDULING, scheduled.message)
    return PodTrouble(
        name_of(pod),
        known.cause if known else "no node takes the pod",
        scheduled.message,
        known.fix if known else _GENERIC_FIX,
        hopeless=_older(scheduled, now),
        lacks_gpu="nvidia.com/gpu" in scheduled.message,
    )


def _older(condition: Condition, now: datetime) -> bool:
    return condition.since is not None and now - condition.since > PATIENCE


def _pull_failure(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """What the last failed pull of a pod's image said, "" when nothing."""
    for event in sorted(events, key=event_time, reverse=True):
        message = text(event.get("message"))
        about = text(mapping(event.get("involvedObject")).get("name"))
        if event.get("reason") == "Failed" and about == name_of(pod) and "pull image" in message:
            return message
    return ""


def _containers(pod: Mapping[str, Any], status: Mapping[str, Any], failed: str) -> PodTrouble | None:
    for container in _statuses(status):
        found = _waiting(pod, container, failed) or _terminated(pod, container)
        if found is not None:
            return found
    return None


def _statuses(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from mappings(status.get("initContainerStatuses"))
    yield from mappings(status.get("containerStatuses"))


def _waiting(pod: Mapping[str, Any], container: Mapping[str, Any], failed: str) -> PodTrouble | None:
    waiting = mapping(mapping(container.get("state")).get("waiting"))
    reason, message = text(waiting.get("reason")), text(waiting.get("message"))
    name = text(container.get("name"))
    if reason in _PULL_REASONS:
        said = failed if failed and reason == "ImagePullBackOff" else message
        known = match(PULLING, f"{reason} {said}")
        image = text(container.get("image"))
        cause = f"{known.cause if known else reason}: {image}"
        return PodTrouble(
            name_of(pod),
            cause,
            f"{reason}: {said}".rstrip(": "),
            known.fix if known else _GENERIC_FIX,
            hopeless=bool(known and known.hopeless),
        )
    if reason in _CONFIG_REASONS:
        return PodTrouble(
            name_of(pod), f"container {name} cannot be created", f"{reason}: {message}", _GENERIC_FIX
        )
    if reason == "CrashLoopBackOff":
        return _terminated(pod, container) or PodTrouble(
            name_of(pod), f"container {name} crashes again and again", message, "See its log.", crashed=name
        )
    return None


def _terminated(pod: Mapping[str, Any], container: Mapping[str, Any]) -> PodTrouble | None:
    now = mapping(mapping(container.get("state")).get("terminated"))
    before = mapping(mapping(container.get("lastState")).get("terminated"))
    ended = now or before
    name, reason, code = text(container.get("name")), text(ended.get("reason")), ended.get("exitCode")
    if reason == "OOMKilled":
        group = text(mapping(mapping(pod.get("metadata")).get("labels")).get("ray.io/node-type"))
        setting = "ray_service.head_memory" if group == "head" else "ray_service.worker_memory"
        return PodTrouble(
            name_of(pod),
            f"container {name} ran out of memory (OOMKilled)",
            text(ended.get("message")) or f"exit code {code}",
            f"Raise {setting}.",
        )
    running = "running" in mapping(container.get("state"))
    # It has recovered from an earlier end, or it is an init container that did its work.
    if not ended or code == 0 or running:
        return None
    said = text(ended.get("message")) or reason
    return PodTrouble(
        name_of(pod),
        f"container {name} ended with exit code {code}",
        said,
        "Its log says why.",
        crashed=name,
    )
