"""The scheduler's arithmetic: which node takes a pod, and the sentence when none does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import quantities

_NO_VICTIMS = "No preemption victims found for incoming pod"
_NO_HELP = "Preemption is not helpful for scheduling"


@dataclass(frozen=True)
class NodeView:
    """A node as the scheduler sees it; `free` is allocatable less the requests of the pods on it."""

    name: str
    free: Mapping[str, Decimal]
    pods_left: int = 110
    taints: Sequence[Mapping[str, str]] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    unschedulable: bool = False


def view(node: Object, pods: Iterable[Object], *, without_gpu: bool = False) -> NodeView:
    """A node's room, given all pods; `without_gpu` plays a device plugin that is gone."""
    name = node["metadata"]["name"]
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    free = {key: quantities.parse(amount) for key, amount in allocatable.items()}
    if without_gpu:
        free[quantities.GPU] = Decimal(0)
    running = [pod for pod in pods if _occupies(pod, name)]
    for key, amount in quantities.add(quantities.pod_requests(pod["spec"]) for pod in running).items():
        free[key] = free.get(key, Decimal(0)) - amount
    spec = node.get("spec") or {}
    return NodeView(
        name=name,
        free=free,
        pods_left=int(free.pop("pods", Decimal(110))) - len(running),
        taints=spec.get("taints") or (),
        labels=node["metadata"].get("labels") or {},
        unschedulable=bool(spec.get("unschedulable")),
    )


def _occupies(pod: Object, node: str) -> bool:
    ended = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return pod["spec"].get("nodeName") == node and not ended


def place(spec: Mapping[str, Any], nodes: Sequence[NodeView]) -> tuple[str | None, str]:
    """(node, "") for the emptiest node that fits, or (None, the scheduler's message)."""
    reasons: Counter[str] = Counter()
    preemption: Counter[str] = Counter()
    fitting = []
    for node in nodes:
        found = refusals(spec, node)
        if not found:
            fitting.append(node)
            continue
        reasons.update(found)
        wanting = found[0].startswith(("Insufficient", "Too many"))
        preemption[_NO_VICTIMS if wanting else _NO_HELP] += 1
    if fitting:
        return max(fitting, key=lambda node: (node.free.get("cpu", Decimal(0)), node.name)).name, ""
    if not nodes:
        return None, "no nodes available to schedule pods"
    where = f"0/{len(nodes)} nodes are available"
    return None, f"{where}: {_listed(reasons)}. preemption: {where}: {_listed(preemption)}."


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def refusals(spec: Mapping[str, Any], node: NodeView) -> list[str]:
    """Why a node doesn't take a pod, in the scheduler's words; empty when it does."""
    selector = spec.get("nodeSelector") or {}
    if any(node.labels.get(key) != value for key, value in selector.items()):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if node.unschedulable:
        return ["node(s) were unschedulable"]
    for taint in node.taints:
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not tolerated(
            taint, spec.get("tolerations") or ()
        ):
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    if node.pods_left <= 0:
        return ["Too many pods"]
    asked = quantities.pod_requests(spec)
    return [
        f"Insufficient {name}"
        for name, amount in sorted(asked.items())
        if amount > 0 and amount > node.free.get(name, Decimal(0))
    ]


def tolerated(taint: Mapping[str, str], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the tolerations covers the taint (k8s.io/component-helpers' rule)."""
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        key = toleration.get("key")
        exists = toleration.get("operator", "Equal") == "Exists"
        if not key:
            if exists:
                return True
        elif key == taint["key"] and (exists or toleration.get("value", "") == taint.get("value", "")):
            return True
    return False
