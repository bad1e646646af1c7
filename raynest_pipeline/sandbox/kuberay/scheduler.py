"""The scheduler and the part of the kubelet that admits: pods get a node and an address, or a reason."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import objects, pod_status, quantities, scheduling
from raynest_pipeline.sandbox.state import NodeSpec


def node_object(node: NodeSpec, address: str) -> Object:
    """A Node as its kubelet would register it."""
    capacity = {
        "cpu": str(node.cpu),
        "memory": f"{int(node.memory_gib * 1024)}Mi",
        "ephemeral-storage": f"{node.disk_gib}Gi",
        "pods": "110",
    }
    if node.gpus:
        capacity[quantities.GPU] = str(node.gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": node.instance_type,
            },
        },
        "spec": {},
        "status": {
            "capacity": capacity,
            "allocatable": dict(capacity),
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": node.name},
            ],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "KubeletReady",
                    "message": "kubelet is posting ready status",
                    "lastHeartbeatTime": objects.now(),
                    "lastTransitionTime": objects.now(),
                }
            ],
        },
    }


class Scheduler:
    """Places pods on the Node objects of the store; a fault can take every node's GPUs away."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def register(self, nodes: Sequence[NodeSpec]) -> None:
        """Create the Nodes that aren't there yet."""
        for index, node in enumerate(nodes):
            if self._store.get("nodes", None, node.name) is None:
                made = node_object(node, f"10.0.0.{10 + index}")
                self._store.create("nodes", made, manager=objects.KUBELET)
                self._store.update_status("nodes", None, node.name, made["status"], manager=objects.KUBELET)

    def advertise(self) -> None:
        """Show on the Nodes whether their GPUs are on offer: allocatable follows the fault."""
        missing = self._gpu_is_missing()
        for node in self._store.list("nodes"):
            status = node.get("status") or {}
            gpus = (status.get("capacity") or {}).get(quantities.GPU)
            if gpus is not None:
                status["allocatable"] = {**status["allocatable"], quantities.GPU: "0" if missing else gpus}
                self._store.update_status(
                    "nodes", None, objects.name_of(node), status, manager=objects.KUBELET
                )

    def bind(self, pod: Object, pods: Iterable[Object]) -> Object | None:
        """The pod on its node, or None when no node takes it: then its status and an event say why."""
        everything = list(pods)
        missing = self._gpu_is_missing()
        views = [scheduling.view(node, everything, without_gpu=missing) for node in self._store.list("nodes")]
        node, message = scheduling.place(pod["spec"], views)
        namespace, name = objects.namespace_of(pod), objects.name_of(pod)
        if node is None:
            known = objects.condition(pod, "PodScheduled") or {}
            if known.get("message") != message:
                self._event(pod, "FailedScheduling", message, "Warning")
            status = pod_status.unschedulable(pod, message)
            self._store.update_status("pods", namespace, name, status, manager=objects.SCHEDULER)
            return None
        pod["spec"]["nodeName"] = node
        bound = self._store.update("pods", pod, manager=objects.SCHEDULER)
        self._event(pod, "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")
        status = pod_status.scheduled(bound, self._node_ip(node), _pod_ip(everything))
        return self._store.update_status("pods", namespace, name, status, manager=objects.KUBELET)

    def must_leave(self, pod: Object) -> str | None:
        """Why a pod that runs can't stay on its node, or None."""
        asked = quantities.pod_requests(pod["spec"]).get(quantities.GPU)
        if asked and self._gpu_is_missing():
            what = f"cannot allocate unhealthy devices {quantities.GPU}"
            return f"Allocate failed due to no healthy devices present; {what}"
        return None

    def _gpu_is_missing(self) -> bool:
        return self._faults.active("missing_gpu") is not None

    def _node_ip(self, name: str) -> str:
        node = self._store.get("nodes", None, name)
        for address in ((node or {}).get("status") or {}).get("addresses") or ():
            if address["type"] == "InternalIP":
                return str(address["address"])
        return "10.0.0.10"

    def _event(self, pod: Object, reason: str, message: str, kind: str = "Normal") -> None:
        objects.event(self._store, pod, reason, message, kind, component=objects.SCHEDULER)


def _pod_ip(pods: Iterable[Object]) -> str:
    taken = {(pod.get("status") or {}).get("podIP") for pod in pods}
    while True:
        address = f"10.244.{secrets.randbelow(250)}.{2 + secrets.randbelow(250)}"
        if address not in taken:
            return address
