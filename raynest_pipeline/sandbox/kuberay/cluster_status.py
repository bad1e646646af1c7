"""A RayCluster's status, computed from its pods (KubeRay's calculateStatus)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import naming, objects, quantities, services

#: The status of a cluster that doesn't exist, as Go serialises its zero value.
EMPTY = {"desiredCPU": "0", "desiredGPU": "0", "desiredMemory": "0", "desiredTPU": "0", "head": {}}


def compute(cluster: Object, pods: Sequence[Object]) -> dict[str, Any]:
    """The new status; `lastUpdateTime` is the old one's until something else differs."""
    old = cluster.get("status") or {}
    status: dict[str, Any] = {**desired(cluster["spec"])}
    heads = [pod for pod in pods if _is(pod, "head")]
    workers = [pod for pod in pods if _is(pod, "worker")]
    available = sum(1 for pod in workers if pod["status"].get("phase") in ("Running", "Pending"))
    ready = sum(1 for pod in workers if running_and_ready(pod))
    for key, count in (("availableWorkerReplicas", available), ("readyWorkerReplicas", ready)):
        if count:
            status[key] = count
    status["endpoints"] = {name: str(port) for name, port in sorted(services.head_ports(cluster).items())}
    status["head"] = _head(cluster, heads)
    status["conditions"] = _conditions(old, heads, workers, wanted(cluster["spec"]))
    if _all_ready(heads, workers, wanted(cluster["spec"])) or old.get("state") == "ready":
        status["state"] = "ready"
        times = old.get("stateTransitionTimes") or {}
        status["stateTransitionTimes"] = times if "ready" in times else {"ready": objects.now()}
    status["observedGeneration"] = cluster["metadata"].get("generation", 1)
    before = {key: value for key, value in old.items() if key != "lastUpdateTime"}
    status["lastUpdateTime"] = old.get("lastUpdateTime") if status == before else objects.now()
    return status


def desired(spec: dict[str, Any]) -> dict[str, Any]:
    """The resources and worker counts that a cluster's spec adds up to, from the containers' requests."""
    groups = spec.get("workerGroupSpecs") or []
    parts = [_group_requests(spec["headGroupSpec"])]
    for group in groups:
        parts += [_group_requests(group)] * replicas(group)
    total = quantities.add(parts)
    zero = Decimal(0)
    found: dict[str, Any] = {
        "desiredCPU": quantities.show(total.get("cpu", zero)),
        "desiredGPU": quantities.show(total.get(quantities.GPU, zero)),
        "desiredMemory": quantities.show(total.get("memory", zero), binary=True),
        "desiredTPU": "0",
    }
    counts = {
        "desiredWorkerReplicas": wanted(spec),
        "minWorkerReplicas": sum(_bound(group, "minReplicas", 0) for group in groups),
        "maxWorkerReplicas": sum(_bound(group, "maxReplicas", 2**31 - 1) for group in groups),
    }
    return found | {key: value for key, value in counts.items() if value}


def wanted(spec: dict[str, Any]) -> int:
    """How many worker pods the spec asks for."""
    return sum(replicas(group) for group in spec.get("workerGroupSpecs") or ())


def replicas(group: dict[str, Any]) -> int:
    """Worker pods of one group: replicas within minReplicas and maxReplicas, times numOfHosts."""
    if group.get("suspend"):
        return 0
    low = int(group.get("minReplicas") or 0)
    given = group.get("maxReplicas")
    high = 2**31 - 1 if given is None else int(given)
    count = int(group["replicas"]) if group.get("replicas") is not None else low
    return max(low, min(count, high)) * int(group.get("numOfHosts") or 1)


def _bound(group: dict[str, Any], key: str, default: int) -> int:
    value = group.get(key)
    return int(default if value is None else value) * int(group.get("numOfHosts") or 1)


def _group_requests(group: dict[str, Any]) -> dict[str, Decimal]:
    containers = group["template"]["spec"]["containers"]
    return quantities.add(quantities.container_requests(each) for each in containers)


def running_and_ready(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running" and objects.is_true(pod, "Ready")


def _is(pod: Object, node_type: str) -> bool:
    return objects.labels_of(pod).get(naming.NODE_TYPE) == node_type


def _all_ready(heads: Sequence[Object], workers: Sequence[Object], count: int) -> bool:
    everyone = [*heads, *workers]
    return bool(heads) and len(workers) >= count and all(running_and_ready(pod) for pod in everyone)


def _head(cluster: Object, heads: Sequence[Object]) -> dict[str, str]:
    found: dict[str, str] = {}
    if heads:
        address = (heads[0].get("status") or {}).get("podIP")
        if address:
            # A headless service has no address of its own: KubeRay shows the pod's.
            found |= {"podIP": address, "serviceIP": address}
        found["podName"] = objects.name_of(heads[0])
    found["serviceName"] = naming.head_service(objects.name_of(cluster))
    return dict(sorted(found.items()))


def _conditions(
    old: dict[str, Any], heads: Sequence[Object], workers: Sequence[Object], count: int
) -> list[dict[str, Any]]:
    conditions: list[dict[str, Any]] = copy.deepcopy(old.get("conditions") or [])
    objects.set_condition(conditions, head_ready(heads[0] if heads else None))
    provisioned = any(
        each["type"] == "RayClusterProvisioned" and each["status"] == "True" for each in conditions
    )
    if not provisioned:
        done = _all_ready(heads, workers, count)
        objects.set_condition(
            conditions,
            {
                "type": "RayClusterProvisioned",
                "status": "True" if done else "False",
                "reason": "AllPodRunningAndReadyFirstTime" if done else "RayClusterPodsProvisioning",
                "message": "All Ray Pods are ready for the first time"
                if done
                else "RayCluster Pods are being provisioned for first time",
            },
        )
    for kind in ("RayClusterSuspended", "RayClusterSuspending"):
        objects.set_condition(conditions, {"type": kind, "status": "False", "reason": kind, "message": ""})
    return conditions


def head_ready(head: Object | None) -> dict[str, Any]:
    """The HeadPodReady condition; a container that waits lends it its reason, such as ImagePullBackOff."""
    found: dict[str, Any] = {"type": "HeadPodReady", "status": "False", "reason": "Unknown", "message": ""}
    if head is None:
        return {**found, "reason": "HeadPodNotFound", "message": "Head Pod not found"}
    ready = objects.condition(head, "Ready")
    if ready is None:
        return found
    found |= {"status": ready["status"], "message": ready.get("message", "")}
    if ready["status"] == "True":
        return {**found, "reason": "HeadPodRunningAndReady"}
    found["reason"] = ready.get("reason", "Unknown")
    if found["reason"] == "ContainersNotReady":
        for each in head["status"].get("containerStatuses") or ():
            waiting = (each.get("state") or {}).get("waiting")
            if waiting:
                found["reason"] = waiting["reason"]
                found["message"] += f"; {each['name']}: {waiting.get('message', '')}"
    return found
