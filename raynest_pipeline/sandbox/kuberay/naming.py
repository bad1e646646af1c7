"""Names, labels and hashes as KubeRay forms them (facts: utils.go, service.go, 2.4 and 2.6)."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object
from raynest_pipeline.sandbox.kuberay import objects
from raynest_pipeline.sandbox.kuberay.release import Release

CLUSTER = "ray.io/cluster"
NODE_TYPE = "ray.io/node-type"
GROUP = "ray.io/group"
IDENTIFIER = "ray.io/identifier"
SERVE = "ray.io/serve"
ORIGIN_NAME = "ray.io/originated-from-cr-name"
ORIGIN_KIND = "ray.io/originated-from-crd"
HASH = "ray.io/hash-without-replicas-and-workers-to-delete"
GROUP_COUNT = "ray.io/num-worker-groups"
VERSION = "ray.io/kuberay-version"
HEAD_GROUP = "headgroup"
APP = {"app.kubernetes.io/created-by": "kuberay-operator", "app.kubernetes.io/name": "kuberay"}


def cluster_name(service: str, release: Release) -> str:
    """A new random RayCluster name: `<svc>-raycluster-<5>` up to 1.3, `<svc>-<5>` from 1.4."""
    return f"{service}{release.cluster_infix}{objects.suffix()}"


def head_service(owner: str) -> str:
    """The head Service's name, for a RayCluster or a RayService."""
    return f"{owner}-head-svc"


def serve_service(rayservice: str) -> str:
    return f"{rayservice}-serve-svc"


def origin(rayservice: Object) -> dict[str, str]:
    """The labels that lead from a child back to its RayService."""
    return {ORIGIN_NAME: objects.name_of(rayservice), ORIGIN_KIND: "RayService"}


def cluster_spec(rayservice: Object) -> dict[str, Any]:
    """spec.rayClusterConfig, as its own copy."""
    return copy.deepcopy(rayservice["spec"].get("rayClusterConfig") or {})


def spec_hash(spec: dict[str, Any], release: Release, *, groups: int | None = None) -> str:
    """The hash whose change means a new RayCluster.

    Replica counts and workersToDelete are left out, and tolerations and schedulingGates too where the release
    says so. `groups`: only the first so many worker groups, to see whether groups were merely appended.
    """
    muted = copy.deepcopy(spec)
    muted["workerGroupSpecs"] = (muted.get("workerGroupSpecs") or [])[:groups]
    muted.pop("upgradeStrategy", None)
    for group in muted["workerGroupSpecs"]:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(key, None)
        strategy = group.get("scaleStrategy") or {}
        strategy.pop("workersToDelete", None)
        if not strategy:
            group.pop("scaleStrategy", None)
    for group in [muted.get("headGroupSpec") or {}, *muted["workerGroupSpecs"]]:
        template = group.get("template") or {}
        if not template.get("metadata"):
            template.pop("metadata", None)  # Go's zero value: absent and empty are the same
        if release.hash_ignores_tolerations:
            pod = template.get("spec") or {}
            pod.pop("tolerations", None)
            pod.pop("schedulingGates", None)
    text = json.dumps(muted, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return base64.b32hexencode(digest).decode()
