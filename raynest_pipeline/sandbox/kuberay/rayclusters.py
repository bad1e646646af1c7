"""The RayCluster controller: its head Service, its pods, its token, its status."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import cluster_status, naming, objects, pods, services
from raynest_pipeline.sandbox.kuberay.release import Release

_COMPONENT = "raycluster-controller"


class RayClusters:
    """Brings each RayCluster's children to what its spec says. Synchronous: it only writes objects."""

    def __init__(self, store: Store, release: Release) -> None:
        self._store = store
        self._release = release

    def reconcile(self, cluster: Object) -> None:
        """One pass over one RayCluster. Raises ApiError where the API server refuses a write."""
        if objects.is_terminating(cluster):
            return
        self._ensure_token(cluster)
        ensure(self._store, "services", services.cluster_head_service(cluster))
        self._reconcile_pods(cluster)
        status = cluster_status.compute(cluster, self._pods(cluster))
        self._store.update_status(
            "rayclusters",
            objects.namespace_of(cluster),
            objects.name_of(cluster),
            status,
            manager=objects.MANAGER,
        )

    def _pods(self, cluster: Object) -> list[Object]:
        labels = f"{naming.CLUSTER}={objects.name_of(cluster)}"
        found = self._store.list("pods", objects.namespace_of(cluster), labels=labels)
        return [pod for pod in found if not objects.is_terminating(pod)]

    def _ensure_token(self, cluster: Object) -> None:
        name = pods.token_secret(cluster, self._release)
        own = not (cluster["spec"].get("authOptions") or {}).get("secretName")
        if name is None or not own:
            return
        if self._store.get("secrets", objects.namespace_of(cluster), name) is None:
            token = base64.b64encode(secrets.token_urlsafe(32).encode()).decode()
            secret = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "namespace": objects.namespace_of(cluster),
                    "labels": {naming.CLUSTER: objects.name_of(cluster)},
                    "ownerReferences": [objects.owner_reference(cluster)],
                },
                "type": "Opaque",
                "data": {pods.TOKEN_KEY: token},
            }
            self._store.create("secrets", secret, manager=objects.MANAGER)
            self._event(cluster, "CreatedSecret", f"Created Secret {_key(secret)}")

    def _reconcile_pods(self, cluster: Object) -> None:
        # A pod that failed for good goes; its successor is made in the next pass, when it's really gone.
        present = self._pods(cluster)
        failed = [pod for pod in present if pod["status"].get("phase") in ("Failed", "Succeeded")]
        for pod in failed:
            self._delete(cluster, pod, f"Pod status: {pod['status']['phase']}")
        groups = cluster["spec"].get("workerGroupSpecs") or []
        heads = _of_group(present, naming.HEAD_GROUP)
        if not heads:
            self._create(cluster, pods.head_pod(cluster, self._release), "Head")
        for group in groups:
            self._reconcile_group(cluster, group, _of_group(present, str(group["groupName"])), failed)
        known = {naming.HEAD_GROUP, *(str(group["groupName"]) for group in groups)}
        for pod in present:
            if objects.labels_of(pod).get(naming.GROUP) not in known:
                self._delete(cluster, pod, "its worker group is gone")

    def _reconcile_group(
        self, cluster: Object, group: dict[str, Any], present: Sequence[Object], failed: Sequence[Object]
    ) -> None:
        doomed = set((group.get("scaleStrategy") or {}).get("workersToDelete") or ())
        for pod in present:
            if objects.name_of(pod) in doomed and pod not in failed:
                self._delete(cluster, pod, "it is listed in workersToDelete")
        # Failed pods still count in this pass: their successors come in the next.
        left = [pod for pod in present if objects.name_of(pod) not in doomed]
        missing = cluster_status.replicas(group) - len(left)
        for _ in range(missing):
            self._create(cluster, pods.worker_pod(cluster, group, self._release), "Worker")
        for pod in left[:-missing] if missing < 0 else ():
            if pod not in failed:
                self._delete(cluster, pod, "there are more replicas than wanted")

    def _create(self, cluster: Object, pod: Object, kind: str) -> None:
        made = self._store.create("pods", pod, manager=objects.MANAGER)
        self._event(cluster, f"Created{kind}Pod", f"Created {kind.lower()} Pod {_key(made)}")

    def _delete(self, cluster: Object, pod: Object, why: str) -> None:
        self._store.delete("pods", objects.namespace_of(pod), objects.name_of(pod))
        kind = "Head" if objects.labels_of(pod).get(naming.NODE_TYPE) == "head" else "Worker"
        self._event(cluster, f"Deleted{kind}Pod", f"Deleted {kind.lower()} Pod {_key(pod)}; {why}")

    def _event(self, cluster: Object, reason: str, message: str) -> None:
        objects.event(self._store, cluster, reason, message, component=_COMPONENT)


def _of_group(present: Sequence[Object], group: str) -> list[Object]:
    return [pod for pod in present if objects.labels_of(pod).get(naming.GROUP) == group]


def _key(obj: Object) -> str:
    return f"{objects.namespace_of(obj)}/{objects.name_of(obj)}"


def ensure(store: Store, resource: str, wanted: Object) -> str:
    """Create an object, or bring its labels, annotations and spec in line: "created", "updated" or ""."""
    namespace, name = objects.namespace_of(wanted), objects.name_of(wanted)
    found = store.get(resource, namespace, name)
    if found is None:
        store.create(resource, wanted, manager=objects.MANAGER)
        return "created"
    same = all(found["spec"].get(key) == value for key, value in wanted["spec"].items())
    if same:
        return ""
    found["spec"] |= wanted["spec"]
    store.update(resource, found, manager=objects.MANAGER)
    return "updated"
