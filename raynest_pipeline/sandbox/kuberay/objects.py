"""Small common ground for reading and writing Kubernetes objects."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Object, Store

MANAGER = "kuberay-operator"
KUBELET = "kubelet"
SCHEDULER = "default-scheduler"

# The alphabet of Kubernetes' generated names: no vowels and no look-alikes.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def now() -> str:
    """The time in the API's format, UTC to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(stamp: str) -> float:
    """Seconds between an API timestamp and now."""
    parsed = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (datetime.now(UTC) - parsed).total_seconds()


def suffix(length: int = 5) -> str:
    """A random name suffix as the API server makes them."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def name_of(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    return str(obj["metadata"]["namespace"])


def uid_of(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def labels_of(obj: Object) -> dict[str, str]:
    return dict(obj["metadata"].get("labels") or {})


def is_terminating(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def owner_reference(owner: Object) -> dict[str, Any]:
    """A controller's reference, as controller-runtime's SetControllerReference writes it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owner_uid(obj: Object) -> str | None:
    """The uid of the controller that owns this object, or None."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels satisfy a Service's selector (an empty one selects nothing)."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def event(
    store: Store, involved: Object, reason: str, message: str, kind: str = "Normal", *, component: str
) -> None:
    """Report something about an object; nothing where its namespace is gone or going."""
    try:
        store.emit_event(involved, reason, message, kind, component=component)
    except ApiError as error:
        if error.code not in (403, 404):
            raise


def condition(obj: Object, kind: str) -> dict[str, Any] | None:
    """A status condition by its type."""
    for each in (obj.get("status") or {}).get("conditions") or ():
        if each.get("type") == kind:
            return dict(each)
    return None


def is_true(obj: Object, kind: str) -> bool:
    """Whether a status condition is there and "True"."""
    found = condition(obj, kind)
    return found is not None and found.get("status") == "True"


def set_condition(conditions: list[dict[str, Any]], new: Mapping[str, Any]) -> None:
    """Put a condition in place; lastTransitionTime moves only when the status does (apimachinery's rule)."""
    for old in conditions:
        if old["type"] == new["type"]:
            moved = old.get("status") != new.get("status")
            stamp = now() if moved else old.get("lastTransitionTime", now())
            old.clear()
            old.update(new, lastTransitionTime=stamp)
            return
    conditions.append({**new, "lastTransitionTime": now()})
