"""The Table form of objects, which `kubectl get` asks for and prints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from raynest_pipeline.sandbox.kube.kinds import Column, Kind
from raynest_pipeline.sandbox.kube.selectors import lookup

Object = dict[str, Any]

_NAME_HELP = (
    "Name must be unique within a namespace. Is required when creating resources, although some resources "
    "may allow a client to request the generation of an appropriate name automatically. Name is primarily "
    "intended for creation idempotence and configuration definition. Cannot be updated. More info: "
    "https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"
)


def table(kind: Kind, objects: list[Object], revision: str, *, include: str = "Metadata") -> Object:
    """A meta.k8s.io/v1 Table. `include` is the request's includeObject: None, Metadata or Object."""
    columns = kind.columns or (Column("Age", "metadata.creationTimestamp", "date"),)
    definitions = [_definition(Column("Name", "metadata.name"), kind)]
    definitions += [_definition(column, kind) for column in columns]
    rows = []
    for obj in objects:
        cells = [obj["metadata"]["name"], *(_cell(column, obj) for column in columns)]
        row: Object = {"cells": cells}
        if include == "Object":
            row["object"] = obj
        elif include == "Metadata":
            meta = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = meta | {"metadata": obj["metadata"]}
        rows.append(row)
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision}}
    return head | {"columnDefinitions": definitions, "rows": rows}


def _definition(column: Column, kind: Kind) -> Object:
    is_name = column.path == "metadata.name"
    help_text = _NAME_HELP if is_name else ""
    if kind.custom and not is_name:
        help_text = f"Custom resource definition column (in JSONPath format): .{column.path}"
    return {
        "name": column.name,
        "type": column.type,
        "format": "name" if is_name else "",
        "description": help_text,
        "priority": column.priority,
    }


def _cell(column: Column, obj: Object) -> Any:
    if column.path.startswith("@"):
        return _COMPUTED[column.path](obj)
    value = lookup(obj, column.path)
    if column.type == "date":
        return age(value) if value else "<unknown>"
    if value is None:
        return None if column.type == "integer" else ""
    return value if column.type == "integer" else str(value)


def age(moment: str) -> str:
    """How long ago, as kubectl prints it: `5s`, `3m20s`, `7h`, `12d`."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{days}d"


def _statuses(obj: Object) -> list[Object]:
    return list(lookup(obj, "status.containerStatuses") or [])


def _ready(obj: Object) -> str:
    total = len(lookup(obj, "spec.containers") or [])
    return f"{sum(1 for status in _statuses(obj) if status.get('ready'))}/{total}"


def _pod_status(obj: Object) -> str:
    """The reason kubectl shows instead of the phase: a waiting or terminated container's, or Terminating."""
    shown = str(lookup(obj, "status.reason") or lookup(obj, "status.phase") or "Unknown")
    begun = lookup(obj, "status.initContainerStatuses") or []
    # An init container that has done its work says nothing about the pod.
    waiting = [one for one in begun if lookup(one, "state.terminated.exitCode") != 0]
    for status in [*waiting, *_statuses(obj)]:
        state = status.get("state", {})
        reason = lookup(state, "waiting.reason") or lookup(state, "terminated.reason")
        shown = str(reason or shown)
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else shown


def _restarts(obj: Object) -> int:
    return sum(int(status.get("restartCount", 0)) for status in _statuses(obj))


def _ports(obj: Object) -> str:
    ports = lookup(obj, "spec.ports") or []
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports) or "<none>"


def _external(obj: Object) -> str:
    balancers = lookup(obj, "status.loadBalancer.ingress") or []
    addresses = [str(one.get("ip") or one.get("hostname")) for one in balancers]
    if lookup(obj, "spec.type") == "LoadBalancer" and not addresses:
        return "<pending>"
    return ",".join(addresses) or "<none>"


def _node(obj: Object) -> str:
    conditions = lookup(obj, "status.conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    shown = "Ready" if ready else "NotReady"
    return f"{shown},SchedulingDisabled" if lookup(obj, "spec.unschedulable") else shown


def _deployment(obj: Object) -> str:
    return f"{lookup(obj, 'status.readyReplicas') or 0}/{lookup(obj, 'spec.replicas') or 0}"


def _seen(obj: Object) -> str:
    last = lookup(obj, "series.lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    return age(last) if last else "<unknown>"


def _involved(obj: Object) -> str:
    about = obj.get("involvedObject", {})
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


_COMPUTED = {
    "@deployment": _deployment,
    "@external": _external,
    "@involved": _involved,
    "@node": _node,
    "@ports": _ports,
    "@ready": _ready,
    "@restarts": _restarts,
    "@seen": _seen,
    "@status": _pod_status,
}
