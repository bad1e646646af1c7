"""The defaults of built-in kinds that clients rely on, and what admission gives a new object."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

Object = dict[str, Any]

_POD: Object = {
    "dnsPolicy": "ClusterFirst",
    "enableServiceLinks": True,
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "terminationGracePeriodSeconds": 30,
}

_SERVICE: Object = {"internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "type": "ClusterIP"}

# A pod survives its node's trouble for five minutes (the DefaultTolerationSeconds admission plugin).
_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def fill(plural: str, obj: Object) -> None:
    """Set the defaults of a kind, in place."""
    filler = _FILLERS.get(plural)
    if filler is not None:
        filler(obj)


def _fill_namespace(obj: Object) -> None:
    name = obj["metadata"].get("name", "")
    obj["metadata"].setdefault("labels", {}).setdefault("kubernetes.io/metadata.name", name)
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    obj.setdefault("status", {}).setdefault("phase", "Active")


def _fill_secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None) or {}
    if plain:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}


def _fill_service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    for key, value in _SERVICE.items():
        spec.setdefault(key, value)
    for port in spec.get("ports", ()):
        port.setdefault("targetPort", port.get("port"))
    obj.setdefault("status", {}).setdefault("loadBalancer", {})


def _fill_pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    for key, value in _POD.items():
        spec.setdefault(key, value)
    for container in spec.get("containers", ()):
        _, colon, tag = str(container.get("image", "")).rpartition(":")
        latest = not colon or tag == "latest"
        container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def assign_service(obj: Object) -> None:
    """A cluster address, of one IP family."""
    spec = obj["spec"]
    if "clusterIP" not in spec:
        spec["clusterIP"] = _cluster_ip(obj["metadata"]["uid"])
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")


def _cluster_ip(uid: str) -> str:
    # From the uid: the same object keeps its address, and no table of free addresses is needed.
    low, high = hashlib.sha256(uid.encode()).digest()[:2]
    return f"172.21.{low}.{max(1, min(high, 254))}"


def assign_pod(obj: Object) -> None:
    """Priority, the default tolerations and the quality-of-service class."""
    spec = obj["spec"]
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for key in _TOLERATED:
        if not any(one.get("key") in (key, None) for one in tolerations):
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )
    obj["status"].setdefault("qosClass", _quality(spec))


def _quality(spec: Object) -> str:
    resources = [container["resources"] for container in spec.get("containers", ())]
    asked = [key for one in resources for key in ("requests", "limits") if one.get(key)]
    if not asked:
        return "BestEffort"
    limits = [one.get("limits", {}) for one in resources]
    guaranteed = all(
        {"cpu", "memory"} <= set(limit) and one.get("requests", limit) == limit
        for one, limit in zip(resources, limits, strict=True)
    )
    return "Guaranteed" if guaranteed else "Burstable"


_FILLERS = {
    "namespaces": _fill_namespace,
    "pods": _fill_pod,
    "secrets": _fill_secret,
    "services": _fill_service,
}
