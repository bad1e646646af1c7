"""The RayService controller: RayClusters, Serve applications, Services, status."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import naming, objects, service_status, services
from raynest_pipeline.sandbox.kuberay.rayclusters import ensure
from raynest_pipeline.sandbox.kuberay.release import Release
from raynest_pipeline.sandbox.kuberay.serve_apps import COMPONENT, ServeApps
from raynest_pipeline.sandbox.kuberay.service_status import Side

_DELETION_DELAY_S = 60.0
_TIMEOUT_ANNOTATION = "ray.io/initializing-timeout"


class RayServices:
    """One pass per RayService and period, as KubeRay's Reconcile. Serve really runs the applications."""

    def __init__(
        self,
        store: Store,
        release: Release,
        apps: ServeApps,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._release = release
        self._apps = apps
        self._clock = clock
        # When each RayCluster that is neither active nor pending is to be deleted, by uid.
        self._doomed: dict[str, float] = {}

    async def reconcile(self, rayservice: Object) -> None:
        """One pass. Raises ApiError where a write is refused and DashboardError where Ray doesn't answer:
        the status then stays as it was, and the next pass tries again."""
        if objects.is_terminating(rayservice):
            self._finalize(rayservice)
            return
        problem = validate(rayservice)
        if problem is not None:
            self._refuse(rayservice, problem)
            return
        if self._release.finalizer and self._adopt(rayservice):
            return
        self._clean_up(rayservice)
        if service_status.is_timed_out(rayservice):
            return
        active, pending, changed = self._clusters(rayservice)
        for side in (active, pending):
            if side.cluster is not None:
                await self._apps.label_head(rayservice, side.cluster)
        active, pending = await self._serve(rayservice, active, pending)
        if not changed and self._needs_new(rayservice, active, pending):
            pending = Side(naming.cluster_name(objects.name_of(rayservice), self._release))
        self._write_status(rayservice, active, pending)

    async def _serve(self, rayservice: Object, active: Side, pending: Side) -> tuple[Side, Side]:
        """Both sides with their applications' statuses; a pending one that is all RUNNING is promoted.

        While there is a pending cluster, only that is asked and submitted to.
        """
        cluster = pending.cluster or active.cluster
        if cluster is None or (cluster is active.cluster and self._needs_new(rayservice, active, pending)):
            return active, pending
        ready, applications = await self._apps.reconcile(rayservice, cluster)
        side = Side(objects.name_of(cluster), cluster, applications)
        if ready:
            self._point_services(rayservice, cluster)
            return side, Side()
        if cluster is pending.cluster:
            return active, side
        return side, pending

    # --- deletion, validation, adoption

    def _finalize(self, rayservice: Object) -> None:
        finalizer = self._release.finalizer
        if finalizer not in (rayservice["metadata"].get("finalizers") or ()):
            return
        owned = self._owned(rayservice)
        for cluster in owned:
            if not objects.is_terminating(cluster):
                self._delete_cluster(rayservice, cluster)
        if not self._owned(rayservice):
            rayservice["metadata"]["finalizers"].remove(finalizer)
            self._store.update("rayservices", rayservice, manager=objects.MANAGER)

    def _refuse(self, rayservice: Object, problem: tuple[str, str]) -> None:
        reason, message = problem
        text = f"{objects.namespace_of(rayservice)}/{objects.name_of(rayservice)}: {message}"
        self._event(rayservice, reason, text, "Warning")
        if self._release.validation_condition:
            self._put_status(rayservice, service_status.invalid(rayservice, message))

    def _adopt(self, rayservice: Object) -> bool:
        """Add the finalizer, with the empty fields that Go writes back; True when it wasn't there yet."""
        finalizers = rayservice["metadata"].setdefault("finalizers", [])
        if self._release.finalizer in finalizers:
            return False
        finalizers.append(self._release.finalizer)
        config = rayservice["spec"]["rayClusterConfig"]
        for group in config.get("workerGroupSpecs") or ():
            group.setdefault("scaleStrategy", {})
            group["template"].setdefault("metadata", {})
        config["headGroupSpec"]["template"].setdefault("metadata", {})
        self._store.update("rayservices", rayservice, manager=objects.MANAGER)
        return True

    # --- clusters

    def _owned(self, rayservice: Object) -> list[Object]:
        labels = f"{naming.ORIGIN_NAME}={objects.name_of(rayservice)},{naming.ORIGIN_KIND}=RayService"
        found = self._store.list("rayclusters", objects.namespace_of(rayservice), labels=labels)
        return [each for each in found if objects.owner_uid(each) == objects.uid_of(rayservice)]

    def _clean_up(self, rayservice: Object) -> None:
        """Delete the clusters that are neither active nor pending, after the delay."""
        status = rayservice.get("status") or {}
        kept = {_name(status, "activeServiceStatus"), _name(status, "pendingServiceStatus")}
        delay = _DELETION_DELAY_S
        if self._release.deletion_delay_field:
            given = rayservice["spec"].get("rayClusterDeletionDelaySeconds")
            delay = _DELETION_DELAY_S if given is None else float(given)
        dangling = [each for each in self._owned(rayservice) if objects.name_of(each) not in kept]
        for cluster in dangling:
            due = self._doomed.setdefault(objects.uid_of(cluster), self._clock() + delay)
            if self._clock() >= due and not objects.is_terminating(cluster):
                self._delete_cluster(rayservice, cluster)

    def _delete_cluster(self, rayservice: Object, cluster: Object) -> None:
        namespace, name = objects.namespace_of(cluster), objects.name_of(cluster)
        self._store.delete("rayclusters", namespace, name)
        self._doomed.pop(objects.uid_of(cluster), None)
        self._apps.forget(cluster)
        self._event(rayservice, "DeletedRayCluster", f"Deleted the RayCluster {namespace}/{name}")

    def _clusters(self, rayservice: Object) -> tuple[Side, Side, bool]:
        """(active, pending, whether a RayCluster was created or updated in this pass)."""
        status = rayservice.get("status") or {}
        sides = []
        for key in ("activeServiceStatus", "pendingServiceStatus"):
            name = _name(status, key)
            found = None
            if name:
                found = self._store.get("rayclusters", objects.namespace_of(rayservice), name)
            sides.append(Side(name, found))
        active, pending = sides
        if pending.name and pending.cluster is None:
            return active, Side(pending.name, self._create(rayservice, pending.name)), True
        for side in (active, pending):
            if side.cluster is not None and self._update_in_place(rayservice, side.cluster):
                return active, pending, True
        return active, pending, False

    def _create(self, rayservice: Object, name: str) -> Object:
        cluster = self._goal(rayservice, name)
        made = self._store.create("rayclusters", cluster, manager=objects.MANAGER)
        where = f"{objects.namespace_of(made)}/{name}"
        self._event(rayservice, "CreatedRayCluster", f"Created the RayCluster {where}")
        return made

    def _goal(self, rayservice: Object, name: str) -> Object:
        spec = naming.cluster_spec(rayservice)
        metadata = rayservice["metadata"]
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": {**(metadata.get("labels") or {}), **naming.origin(rayservice)},
                "annotations": {
                    **_user_annotations(metadata),
                    naming.HASH: naming.spec_hash(spec, self._release),
                    naming.GROUP_COUNT: str(len(spec.get("workerGroupSpecs") or ())),
                    naming.VERSION: f"v{self._release.version}",
                },
                "ownerReferences": [objects.owner_reference(rayservice)],
            },
            "spec": spec,
        }

    def _appended(self, rayservice: Object, cluster: Object) -> bool:
        """Whether the spec differs from a cluster's only by worker groups appended at its end."""
        annotations = cluster["metadata"].get("annotations") or {}
        spec = naming.cluster_spec(rayservice)
        before = int(annotations.get(naming.GROUP_COUNT, 0))
        if len(spec.get("workerGroupSpecs") or ()) <= before:
            return False
        return naming.spec_hash(spec, self._release, groups=before) == annotations.get(naming.HASH)

    def _update_in_place(self, rayservice: Object, cluster: Object) -> bool:
        if not self._appended(rayservice, cluster):
            return False
        goal = self._goal(rayservice, objects.name_of(cluster))
        cluster["spec"] = goal["spec"]
        cluster["metadata"]["annotations"] = goal["metadata"]["annotations"]
        self._store.update("rayclusters", cluster, manager=objects.MANAGER)
        where = f"{objects.namespace_of(cluster)}/{objects.name_of(cluster)}"
        self._event(rayservice, "UpdatedRayCluster", f"Updated the active RayCluster {where}")
        return True

    def _needs_new(self, rayservice: Object, active: Side, pending: Side) -> bool:
        current = pending.cluster or active.cluster
        if current is None:
            return not pending.name
        kind = (rayservice["spec"].get("upgradeStrategy") or {}).get("type")
        if kind not in (None, "", "NewCluster", "NewClusterWithIncrementalUpgrade"):
            return False
        goal = naming.spec_hash(naming.cluster_spec(rayservice), self._release)
        known = (current["metadata"].get("annotations") or {}).get(naming.HASH)
        return goal != known and not self._appended(rayservice, current)

    # --- services and status

    def _point_services(self, rayservice: Object, cluster: Object) -> None:
        for build in (services.rayservice_head_service, services.serve_service):
            wanted = build(rayservice, cluster)
            done = ensure(self._store, "services", wanted)
            if done:
                verb = done.capitalize()
                where = f"{objects.namespace_of(wanted)}/{objects.name_of(wanted)}"
                self._event(rayservice, f"{verb}Service", f"{verb} the service {where}")

    def _write_status(self, rayservice: Object, active: Side, pending: Side) -> None:
        annotations = rayservice["metadata"].get("annotations") or {}
        timeout = None
        if self._release.initializing_timeout and _TIMEOUT_ANNOTATION in annotations:
            timeout = service_status.parse_duration(annotations[_TIMEOUT_ANNOTATION])
        status = service_status.compute(
            rayservice, active, pending, self._endpoints(rayservice), timeout=timeout
        )
        if service_status.differs(rayservice.get("status") or {}, status):
            self._put_status(rayservice, status)
            if any(each["reason"] == "InitializingTimeout" for each in status["conditions"]):
                message = status["conditions"][0]["message"]
                self._event(rayservice, "RayServiceInitializingTimeout", message, "Warning")

    def _put_status(self, rayservice: Object, status: dict[str, Any]) -> None:
        before = {k: v for k, v in (rayservice.get("status") or {}).items() if k != "lastUpdateTime"}
        if before == {k: v for k, v in status.items() if k != "lastUpdateTime"}:
            return
        self._store.update_status(
            "rayservices",
            objects.namespace_of(rayservice),
            objects.name_of(rayservice),
            {**status, "lastUpdateTime": objects.now()},
            manager=objects.MANAGER,
        )

    def _endpoints(self, rayservice: Object) -> int:
        wanted = (rayservice["spec"].get("serveService") or {}).get("metadata") or {}
        name = wanted.get("name") or naming.serve_service(objects.name_of(rayservice))
        found = self._store.get("endpoints", objects.namespace_of(rayservice), name)
        return sum(len(subset.get("addresses") or ()) for subset in (found or {}).get("subsets") or ())

    def _event(self, rayservice: Object, reason: str, message: str, kind: str = "Normal") -> None:
        objects.event(self._store, rayservice, reason, message, kind, component=COMPONENT)


def _name(status: dict[str, Any], key: str) -> str:
    return str((status.get(key) or {}).get("rayClusterName") or "")


def _user_annotations(metadata: dict[str, Any]) -> dict[str, str]:
    annotations = metadata.get("annotations") or {}
    return {key: value for key, value in annotations.items() if not key.startswith("kubectl.kubernetes.io/")}


def validate(rayservice: Object) -> tuple[str, str] | None:
    """(event reason, message) for what KubeRay's validation refuses, or None."""
    name = objects.name_of(rayservice)
    if len(name) > 47:
        return "InvalidRayServiceMetadata", "RayService name should be no more than 47 characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        message = "RayService name should be a valid DNS1035 label: must start with a letter"
        return "InvalidRayServiceMetadata", message
    head = naming.cluster_spec(rayservice).get("headGroupSpec") or {}
    if not ((head.get("template") or {}).get("spec") or {}).get("containers"):
        return "InvalidRayServiceSpec", "headGroupSpec should have at least one container"
    if ((head.get("headService") or {}).get("metadata") or {}).get("name"):
        message = "spec.rayClusterConfig.headGroupSpec.headService.metadata.name should not be set"
        return "InvalidRayServiceSpec", message
    return None
