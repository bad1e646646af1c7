"""A pod's status as the kubelet writes it, at each step of its life."""

from __future__ import annotations

import copy
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import objects

_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """A container state."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(started: str, code: int, reason: str) -> dict[str, Any]:
    """A container state; `code` as the runtime reports it (137 = killed)."""
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason,
            "startedAt": started,
            "finishedAt": objects.now(),
        }
    }


def unschedulable(pod: Object, message: str) -> dict[str, Any]:
    """Pending, with PodScheduled=False."""
    status: dict[str, Any] = {"phase": "Pending", "qosClass": qos(pod), "conditions": _kept(pod)}
    entry = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    objects.set_condition(status["conditions"], entry)
    return status


def scheduled(pod: Object, node_ip: str, pod_ip: str) -> dict[str, Any]:
    """Pending on a node, nothing pulled yet."""
    status: dict[str, Any] = {
        "phase": "Pending",
        "qosClass": qos(pod),
        "conditions": _kept(pod),
        "hostIP": node_ip,
        "hostIPs": [{"ip": node_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": objects.now(),
    }
    objects.set_condition(status["conditions"], {"type": "PodScheduled", "status": "True"})
    bound = {**pod, "status": status}
    if _init_container(pod) is None:
        return running(bound, state=waiting("ContainerCreating"))
    starting = waiting("PodInitializing")
    return running(bound, initialized=False, init=starting, state=starting)


def running(
    pod: Object,
    *,
    state: dict[str, Any],
    initialized: bool = True,
    init: dict[str, Any] | None = None,
    ready: bool = False,
    restarts: int = 0,
    last: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The status of a pod on a node. `state`: its container's; `init`: its init container's."""
    status: dict[str, Any] = copy.deepcopy(pod.get("status") or {})
    status["phase"] = "Running" if initialized and (restarts or "waiting" not in state) else "Pending"
    conditions = status.setdefault("conditions", [])
    objects.set_condition(conditions, {"type": "PodReadyToStartContainers", "status": "True"})
    name = pod["spec"]["containers"][0]["name"]
    not_ready = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{name}]"}
    not_initialized = {"reason": "ContainersNotInitialized"}
    waiting_for = _init_container(pod)
    if waiting_for:
        message = f"containers with incomplete status: [{waiting_for['name']}]"
        not_initialized["message"] = message
    for kind, true, why in (
        ("Initialized", initialized, not_initialized),
        ("Ready", ready, not_ready),
        ("ContainersReady", ready, not_ready),
    ):
        entry = {"type": kind, "status": "True" if true else "False", **({} if true else why)}
        objects.set_condition(conditions, entry)
    conditions.sort(key=lambda each: _CONDITIONS.index(each["type"]))
    status["containerStatuses"] = [
        _container(pod["spec"]["containers"][0], state, ready, restarts, last or {})
    ]
    if waiting_for:
        init_state = init or {}
        done = "terminated" in init_state
        status["initContainerStatuses"] = [_container(waiting_for, init_state, done, 0, {})]
    return status


def ended(pod: Object, reason: str, message: str, state: dict[str, Any]) -> dict[str, Any]:
    """Failed for good, such as evicted."""
    status = running(pod, state=state)
    return {**status, "phase": "Failed", "reason": reason, "message": message}


def _container(
    spec: dict[str, Any], state: dict[str, Any], ready: bool, restarts: int, last: dict[str, Any]
) -> dict[str, Any]:
    image = spec.get("image", "")
    return {
        "name": spec["name"],
        "state": state,
        "lastState": last,
        "ready": ready,
        "restartCount": restarts,
        "image": image,
        "imageID": "" if "waiting" in state else image,
        "started": "running" in state,
    }


def _init_container(pod: Object) -> dict[str, Any] | None:
    found = pod["spec"].get("initContainers") or ()
    return dict(found[-1]) if found else None


def _kept(pod: Object) -> list[dict[str, Any]]:
    return copy.deepcopy((pod.get("status") or {}).get("conditions") or [])


def qos(pod: Object) -> str:
    """Guaranteed, Burstable or BestEffort."""
    containers = pod["spec"]["containers"]
    resources = [container.get("resources") or {} for container in containers]
    if not any(each.get("limits") or each.get("requests") for each in resources):
        return "BestEffort"
    for each in resources:
        limits, requests = each.get("limits") or {}, each.get("requests") or {}
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                return "Burstable"
    return "Guaranteed"
