"""What the API server does to an object on its way into the store: identity, defaults, validation."""

from __future__ import annotations

import random
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from raynest_pipeline.sandbox.kube import defaults, errors, schema
from raynest_pipeline.sandbox.kube.kinds import Kind
from raynest_pipeline.sandbox.kube.values import copied

Object = dict[str, Any]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_START = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# The letters of generated names: no vowels, so that no words come out (as in k8s.io/apimachinery).
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"

# Identity is the server's: what a client sends for these is replaced.
_KEPT_ON_UPDATE = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
    "resourceVersion",
)


def now() -> str:
    """The time as metav1.Time prints it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """The time as metav1.MicroTime prints it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def has_generation(kind: Kind) -> bool:
    """Does the server count the changes of this kind's objects in metadata.generation?"""
    return kind.custom or kind.plural in ("pods", "deployments")


def identified(kind: Kind, obj: Object) -> Object:
    """A copy with the identity of a new object."""
    fresh = copied(obj)
    metadata = {key: value for key, value in fresh.get("metadata", {}).items() if value is not None}
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = metadata["generateName"] + "".join(random.choices(_SUFFIX, k=5))
    for key in _KEPT_ON_UPDATE:
        metadata.pop(key, None)
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
    if has_generation(kind):
        metadata["generation"] = 1
    return fresh | {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def new_object(kind: Kind, obj: Object) -> Object:
    """A copy with the identity of a new object, admitted under the kind's rules. 422 when invalid."""
    fresh = identified(kind, obj)
    if kind.has_status:
        fresh.pop("status", None)
    return admitted(kind, fresh)


def admitted(kind: Kind, obj: Object) -> Object:
    """Pruned, defaulted, validated. Raises 422 Invalid."""
    whole: Object = schema.defaulted(schema.pruned(obj, kind.schema), kind.schema)
    defaults.fill(kind.plural, whole)
    whole |= {"apiVersion": kind.api_version, "kind": kind.kind}
    causes = [*_name_causes(kind, whole), *schema.violations(_without_status(whole), kind.schema)]
    if causes and kind.custom and any(cause["reason"] == "FieldValueRequired" for cause in causes):
        # The CRDs carry CEL rules, which aren't run on a broken object; the server says so, always last.
        why = "some validation rules were not checked because the object was invalid; "
        why += "correct the existing errors to complete validation"
        invalid = f"Invalid value: null: {why}"
        causes.append({"reason": "FieldValueInvalid", "message": invalid, "field": "<nil>"})
    if causes:
        raise errors.invalid(kind.kind, kind.group, whole["metadata"].get("name", ""), causes)
    return whole


def _without_status(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key != "status"}


def _name_causes(kind: Kind, obj: Object) -> list[errors.Cause]:
    name = obj["metadata"].get("name", "")
    if not name:
        message = "Required value: name or generateName is required"
        return [{"reason": "FieldValueRequired", "message": message, "field": "metadata.name"}]
    pattern, longest = _SUBDOMAIN, 253
    if kind.plural in ("namespaces",):
        pattern, longest = _LABEL, 63
    if kind.plural == "services":
        pattern, longest = _LABEL_START, 63
    if pattern.fullmatch(name) and len(name) <= longest:
        return []
    what = "RFC 1123 subdomain" if pattern is _SUBDOMAIN else "RFC 1123 label"
    if pattern is _LABEL_START:
        what = "DNS-1035 label"
    message = (
        f'Invalid value: "{name}": a lowercase {what} must consist of lower case alphanumeric characters'
        + (" or '-'" if pattern is not _SUBDOMAIN else ", '-' or '.'")
        + ", and must start and end with an alphanumeric character"
    )
    return [{"reason": "FieldValueInvalid", "message": message, "field": "metadata.name"}]


def replacement(kind: Kind, live: Object, obj: Object) -> Object:
    """The object that an update leaves: the client's, with the server's identity and (if a subresource)
    status; a change outside metadata and status raises the generation."""
    fresh = copied(obj)
    metadata = fresh.setdefault("metadata", {})
    for key in _KEPT_ON_UPDATE:
        metadata.pop(key, None)
        if key in live["metadata"]:
            metadata[key] = copied(live["metadata"][key])
    metadata |= {"name": live["metadata"]["name"]}
    if kind.namespaced:
        metadata["namespace"] = live["metadata"]["namespace"]
    if not metadata.get("finalizers"):
        metadata.pop("finalizers", None)
    if kind.has_status:
        fresh.pop("status", None)
        if "status" in live:
            fresh["status"] = copied(live["status"])
    if kind.plural == "services":
        _keep_addresses(live, fresh)
    whole = admitted(kind, fresh)
    _no_new_finalizers(kind, live, whole)
    if has_generation(kind) and content(whole) != content(live):
        whole["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
    return whole


def content(obj: Object) -> Object:
    """What generation counts: everything but metadata and status."""
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}


def _keep_addresses(live: Object, fresh: Object) -> None:
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if key in live.get("spec", {}):
            fresh.setdefault("spec", {}).setdefault(key, live["spec"][key])


def _no_new_finalizers(kind: Kind, live: Object, fresh: Object) -> None:
    if not live["metadata"].get("deletionTimestamp"):
        return
    held = live["metadata"].get("finalizers", [])
    extra = [one for one in fresh["metadata"].get("finalizers", []) if one not in held]
    if extra:
        listed = ", ".join(f'"{one}"' for one in extra)
        message = "Forbidden: no new finalizers can be added if the object is being deleted, found new "
        message += f"finalizers []string{{{listed}}}"
        cause = {"reason": "FieldValueForbidden", "message": message, "field": "metadata.finalizers"}
        raise errors.invalid(kind.kind, kind.group, live["metadata"]["name"], [cause])


def assign(kind: Kind, obj: Object) -> None:
    """What the server adds to a new built-in object once its creator's fields are on record: unowned."""
    if kind.plural == "services":
        defaults.assign_service(obj)
    elif kind.plural == "pods":
        defaults.assign_pod(obj)
