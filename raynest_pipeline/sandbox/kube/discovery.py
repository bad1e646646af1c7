"""What a client can find out about the API: versions, groups, resources, OpenAPI documents."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from typing import Any

from raynest_pipeline.sandbox.kube.kinds import Kind, Registry
from raynest_pipeline.sandbox.kube.schema import Schema

Document = dict[str, Any]

# A fixed release: the one whose answers were recorded.
VERSION: Document = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "8e16b12fda5b1dccc41a6de48b3e356cc7d5048b",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.26.10",
    "compiler": "gc",
    "platform": "linux/amd64",
}

_SUBRESOURCES = {
    "log": ("Pod", ("get",)),
    "status": ("", ("get", "patch", "update")),
}
_PROXY_VERBS = ("create", "delete", "get", "patch", "update")


def answer(registry: Registry, path: str, host: str) -> Document | None:
    """The discovery document at a path, or None if there is none."""
    path = path.rstrip("/")
    if path == "/version":
        return VERSION
    if path == "/api":
        address = {"clientCIDR": "0.0.0.0/0", "serverAddress": host}
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [address]}
    if path == "/apis":
        groups = [_group(name) for name in registry.groups()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "/openapi/v3":
        return _openapi_index(registry)
    if path == "/openapi/v2":
        info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
        return {"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}
    if path.startswith("/openapi/v3/"):
        kinds = _kinds_below(registry, path.removeprefix("/openapi/v3"))
        return openapi(kinds) if kinds else None
    if path.startswith("/apis/") and path.count("/") == 2:
        name = path.removeprefix("/apis/")
        found = _group(name) if name in registry.groups() else None
        return {"kind": "APIGroup", "apiVersion": "v1", **found} if found else None
    kinds = _kinds_below(registry, path)
    return _resources(kinds) if kinds else None


def _kinds_below(registry: Registry, path: str) -> list[Kind]:
    return [kind for kind in registry.kinds if _prefix(kind) == path]


def _prefix(kind: Kind) -> str:
    return f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"


def _group(name: str) -> Document:
    version = {"groupVersion": f"{name}/v1", "version": "v1"}
    return {"name": name, "versions": [version], "preferredVersion": version}


def _resources(kinds: list[Kind]) -> Document:
    resources: list[Document] = []
    for kind in kinds:
        resource: Document = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            resource["shortNames"] = list(kind.short_names)
        if kind.custom or kind.plural in ("deployments", "pods", "services"):
            resource["categories"] = ["all"]
        if kind.custom:
            # As apiserver computes it; kind by kind the recorded values.
            digest = hashlib.sha256(f"{kind.group}/{kind.version}/{kind.kind}".encode()).digest()
            resource["storageVersionHash"] = base64.b64encode(digest[:8]).decode()
        resources.append(resource)
        resources += [_subresource(kind, name) for name in kind.subresources]
    group_version = kinds[0].api_version
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }


def _subresource(kind: Kind, name: str) -> Document:
    own_kind, verbs = _SUBRESOURCES.get(name, (f"{kind.kind}ProxyOptions", _PROXY_VERBS))
    return {
        "name": f"{kind.plural}/{name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": own_kind or kind.kind,
        "verbs": list(verbs),
    }


@lru_cache(maxsize=8)
def _openapi_index(registry: Registry) -> Document:
    paths = {}
    for prefix in dict.fromkeys(_prefix(kind) for kind in registry.kinds):
        document = json.dumps(openapi(_kinds_below(registry, prefix)), sort_keys=True)
        digest = hashlib.sha512(document.encode()).hexdigest().upper()
        paths[prefix.removeprefix("/")] = {"serverRelativeURL": f"/openapi/v3{prefix}?hash={digest}"}
    return {"paths": paths}


def openapi(kinds: list[Kind]) -> Document:
    """The OpenAPI v3 document of one group version: for each kind its schema, and the write operations
    with the `fieldValidation` parameter, by which kubectl knows that the server validates."""
    schemas: dict[str, Schema] = {}
    paths: Document = {}
    for kind in kinds:
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        name = f"{'.'.join(reversed(kind.group.split('.'))) or 'io.k8s.api.core'}.{kind.version}.{kind.kind}"
        schemas[name] = kind.schema | {"x-kubernetes-group-version-kind": [gvk]}
        reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
        ok = {"description": "OK", "content": {"application/json": reference}}
        options = [_query(option) for option in ("dryRun", "fieldManager", "fieldValidation")]
        scope = "/namespaces/{namespace}" if kind.namespaced else ""
        one = f"{_prefix(kind)}{scope}/{kind.plural}/{{name}}"
        operation = {"responses": {"200": ok}, "x-kubernetes-group-version-kind": gvk}
        paths[one] = {
            "get": operation | {"x-kubernetes-action": "get"},
            "put": operation | {"x-kubernetes-action": "put", "parameters": options},
            "patch": operation | {"x-kubernetes-action": "patch", "parameters": [*options, _query("force")]},
        }
    info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _query(name: str) -> Document:
    kind = "boolean" if name == "force" else "string"
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def openapi_v2_protobuf() -> bytes:
    """A minimal gnostic Document: kubectl unmarshals /openapi/v2 as protobuf, and merges JSON-wise what it
    doesn't find there. Field 1 is `swagger`, field 2 `info` (title, version)."""
    info = _text(1, "Kubernetes") + _text(2, VERSION["gitVersion"])
    return _text(1, "2.0") + bytes([2 << 3 | 2, len(info)]) + info


def _text(field: int, value: str) -> bytes:
    encoded = value.encode()
    return bytes([field << 3 | 2, len(encoded)]) + encoded
