"""What should be on the cluster: raynest's own RayService, or a user's manifest, and what goes with it."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raynest_pipeline.kube.client import RAY_SERVICE, KubeClient
from raynest_pipeline.kube.kinds import Object, mapping, mappings, text
from raynest_pipeline.kube.rayservice import manifest
from raynest_pipeline.kube.rayservice.manifest import UserManifest
from raynest_pipeline.settings import Settings

HASH_ANNOTATION = "raynest/manifest-hash"
"""On the RayService: what was applied, without the redeploy nonce, so that drift can be seen."""
CLUSTER_ANNOTATION = "raynest/cluster-hash"
"""On the RayService: the cluster's specification that was applied, without its replica counts."""

KEPT_KINDS = frozenset({"Namespace", "CustomResourceDefinition"})
"""Applied but never deleted: what isn't ours would go with them."""

_COUNTS = ("replicas", "minReplicas", "maxReplicas")


@dataclass(frozen=True)
class Desired:
    """What should be on the cluster."""

    objects: Sequence[Object]
    """In the order to apply; the RayService is the last."""
    notes: tuple[str, ...] = ()
    marked: bool = True
    """Whether the digest goes into the applications' environment: not into a user's own text."""

    @property
    def digest(self) -> str:
        """Of everything that would be applied."""
        return _digest(list(self.objects))

    def ray_service(self, nonce: str | None) -> Object:
        """The RayService to apply, with its digest and the nonce."""
        obj = copy.deepcopy(self.objects[-1])
        if self.marked:
            obj = manifest.with_variables(obj, {manifest.MANIFEST_VARIABLE: self.digest})
        if nonce:
            obj = manifest.with_nonce(obj, nonce)
        metadata = dict(obj["metadata"])
        metadata["annotations"] = {
            **(metadata.get("annotations") or {}),
            HASH_ANNOTATION: self.digest,
            CLUSTER_ANNOTATION: _cluster_digest(obj),
        }
        return {**obj, "metadata": metadata}


def of_settings(settings: Settings, client: KubeClient, namespace: str) -> Desired:
    """raynest's own, for this very cluster.

    Raises:
        KubeError: The cluster doesn't tell what it can.
    """
    return Desired(
        manifest.build_manifest(
            settings,
            serving_files=manifest.source_files(),
            token_auth=_token_auth(settings, client),
            namespace=namespace,
        )
    )


def of_user(loaded: UserManifest) -> Desired:
    """A user's own objects: only labelled, so that `down` finds them all."""
    labels = manifest.owner_labels(str(loaded.ray_service["metadata"]["name"]))
    others = [obj for obj in loaded.objects if obj is not loaded.ray_service]
    objects = [_labelled(obj, labels) for obj in (*others, loaded.ray_service)]
    return Desired(objects, loaded.notes, marked=False)


def _labelled(obj: Object, labels: Mapping[str, str]) -> Object:
    if obj["kind"] in KEPT_KINDS:
        return obj
    metadata = {**obj["metadata"], "labels": {**(obj["metadata"].get("labels") or {}), **labels}}
    return {**obj, "metadata": metadata}


def _token_auth(settings: Settings, client: KubeClient) -> bool:
    wanted = settings.ray_service.token_auth
    if wanted != "auto":
        return wanted == "on"
    # KubeRay offers it from 1.5.1; an older one would refuse the whole manifest for the unknown field.
    return client.declares(RAY_SERVICE, ("spec", "rayClusterConfig", "authOptions"))


def is_ours(obj: Mapping[str, Any]) -> bool:
    """Whether raynest applied it: the field manager is our tag in Kubernetes."""
    managers = mapping(obj.get("metadata")).get("managedFields")
    return any(m.get("manager") == "raynest" and m.get("operation") == "Apply" for m in mappings(managers))


def changed_counts(live: Mapping[str, Any], goal: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Worker group -> its changed replica counts, when two RayServices' clusters differ in nothing else.

    KubeRay then neither makes a new RayCluster nor passes the counts on to the running one (facts 2.4).

    Args:
        live: As it is on the cluster.
        goal: What `Desired.ray_service` returned.
    """
    if _annotation(live, CLUSTER_ANNOTATION) != _annotation(goal, CLUSTER_ANNOTATION):
        return {}
    before = {group.get("groupName"): group for group in _groups(live)}
    scaled = mapping(mapping(goal.get("spec")).get("rayClusterConfig")).get("enableInTreeAutoscaling")
    # With Ray's autoscaler the number itself is its business; ours are the limits.
    ours = _COUNTS[1:] if scaled else _COUNTS
    counts = {}
    for group in _groups(goal):
        old = before.get(group.get("groupName"), {})
        changed = {key: group[key] for key in ours if key in group and group[key] != old.get(key)}
        if changed:
            counts[text(group.get("groupName"))] = changed
    return counts


def with_counts(ray_cluster: Mapping[str, Any], counts: Mapping[str, Mapping[str, Any]]) -> Object:
    """What to apply to a RayCluster so that its worker groups have these counts."""
    metadata = ray_cluster["metadata"]
    groups = mappings(mapping(ray_cluster.get("spec")).get("workerGroupSpecs"))
    return {
        "apiVersion": ray_cluster["apiVersion"],
        "kind": ray_cluster["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        # The whole list: it is atomic to a server-side apply.
        "spec": {
            "workerGroupSpecs": [
                {**group, **counts.get(text(group.get("groupName")), {})} for group in groups
            ]
        },
    }


def _groups(ray_service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    config = mapping(mapping(ray_service.get("spec")).get("rayClusterConfig"))
    return mappings(config.get("workerGroupSpecs"))


def _annotation(obj: Mapping[str, Any], name: str) -> object:
    return mapping(mapping(obj.get("metadata")).get("annotations")).get(name)


def _cluster_digest(ray_service: Mapping[str, Any]) -> str:
    """Of the cluster's specification without the replica counts.

    Of what is applied, not of what the server has: the operator writes empty fields and other spellings of
    quantities back into that.
    """
    groups = [{key: group[key] for key in group if key not in _COUNTS} for group in _groups(ray_service)]
    return _digest({**ray_service["spec"]["rayClusterConfig"], "workerGroupSpecs": groups})


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
