"""Kinds of Kubernetes objects that raynest reads or writes, and small readings of any object."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""
Objects = list[Object]


@dataclass(frozen=True)
class Kind:
    """A kind of object, as in a manifest's first two lines."""

    api_version: str
    """Group and version, e.g. ray.io/v1; the core group is "v1"."""
    kind: str

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> "Kind":
        """The kind of an object."""
        return cls(str(obj.get("apiVersion", "")), str(obj.get("kind", "")))


NAMESPACE = Kind("v1", "Namespace")
NODE = Kind("v1", "Node")
POD = Kind("v1", "Pod")
SERVICE = Kind("v1", "Service")
SECRET = Kind("v1", "Secret")
CONFIG_MAP = Kind("v1", "ConfigMap")
EVENT = Kind("v1", "Event")
RAY_SERVICE = Kind("ray.io/v1", "RayService")
RAY_CLUSTER = Kind("ray.io/v1", "RayCluster")


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a JSON object, else an empty one: servers leave fields out."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The JSON objects in `value` if it is a list, else none."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def text(value: object) -> str:
    """`value` if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def name_of(obj: Mapping[str, Any]) -> str:
    """metadata.name, or ""."""
    return text(mapping(obj.get("metadata")).get("name"))


def namespace_of(obj: Mapping[str, Any]) -> str:
    """metadata.namespace, or ""."""
    return text(mapping(obj.get("metadata")).get("namespace"))


def moment(value: object) -> datetime | None:
    """A Kubernetes timestamp (RFC 3339, with or without microseconds) in UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def event_time(event: Mapping[str, Any]) -> datetime:
    """When an event last happened; events.k8s.io recorders (KubeRay 1.7) set only eventTime and series."""
    candidates = (
        mapping(event.get("series")).get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        mapping(event.get("metadata")).get("creationTimestamp"),
    )
    for candidate in candidates:
        if (parsed := moment(candidate)) is not None:
            return parsed
    return datetime.min.replace(tzinfo=UTC)
