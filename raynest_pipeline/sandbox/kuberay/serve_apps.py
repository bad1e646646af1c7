"""The Serve applications of a RayCluster: submitted, watched, and made to fail where a fault says so."""

from __future__ import annotations

from typing import Any

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import naming, objects, serve_config
from raynest_pipeline.sandbox.kuberay.dashboard import Dashboard, DashboardError
from raynest_pipeline.sandbox.kuberay.kubelet import Kubelet

COMPONENT = "rayservice-controller"


class ServeApps:
    """What the RayService controller does over HTTP, with the operator's own memory of what it submitted."""

    def __init__(self, store: Store, kubelet: Kubelet, dashboard: Dashboard, faults: Faults) -> None:
        self._store = store
        self._kubelet = kubelet
        self._dashboard = dashboard
        self._faults = faults
        # serveConfigV2 as it was last PUT to each RayCluster (by uid): in memory only, as the operator's.
        self._submitted: dict[str, str] = {}
        # What each RayCluster's applications are to be replaced by at once, after a fault was set.
        self._sabotage: dict[str, str] = {}

    def sabotage(self, message: str) -> bool:
        """Make every application that has been submitted fail now, as after a redeploy that went wrong.

        It stays failed until serveConfigV2 changes: an identical one is never submitted again. False when
        there was none yet.
        """
        for uid in self._submitted:
            self._sabotage[uid] = message
        return bool(self._submitted)

    def forget(self, cluster: Object) -> None:
        """A RayCluster is gone."""
        self._submitted.pop(objects.uid_of(cluster), None)
        self._sabotage.pop(objects.uid_of(cluster), None)

    async def reconcile(self, rayservice: Object, cluster: Object) -> tuple[bool, dict[str, Any]]:
        """(whether all applications are RUNNING, applicationStatuses); submits them where that is due.

        Both are empty while the head isn't ready. Raises DashboardError.
        """
        head = self._kubelet.head_of(objects.namespace_of(cluster), objects.name_of(cluster))
        if head is None or not objects.is_true(cluster, "HeadPodReady"):
            return False, {}
        applications = (await self._dashboard.applications(head[2])).applications
        text = str(rayservice["spec"].get("serveConfigV2") or "")
        uid = objects.uid_of(cluster)
        if self._submitted.get(uid) != text or not applications or uid in self._sabotage:
            await self._submit(rayservice, cluster, text)
        running = all(each["status"] == "RUNNING" for each in applications.values())
        return bool(applications) and running, applications

    async def _submit(self, rayservice: Object, cluster: Object, text: str) -> None:
        head = self._kubelet.head_of(objects.namespace_of(cluster), objects.name_of(cluster))
        if head is None:
            return
        _, run, node = head
        uid = objects.uid_of(cluster)
        where = f"{objects.namespace_of(cluster)}/{objects.name_of(cluster)}"
        failure = self._sabotage.get(uid)
        fault = None if failure is not None else self._faults.active("deploy_failed")
        failure = str(fault["message"]) if fault else failure
        try:
            body = serve_config.body(
                text,
                serve_port=node.ports["serve"],
                mounts=run.mounts,
                pod_folder=run.folder,
                failure=failure,
            )
            await self._dashboard.put(node, body)
        except (DashboardError, serve_config.ServeConfigError) as error:
            message = f"Failed to update serve applications to the RayCluster {where}: {error}"
            self._event(rayservice, "FailedToUpdateServeApplications", message, "Warning")
            raise DashboardError(str(error)) from error
        self._submitted[uid] = text
        self._sabotage.pop(uid, None)
        if fault is not None:
            self._faults.consume("deploy_failed")
        message = f"Updated serve applications to the RayCluster {where}"
        self._event(rayservice, "UpdatedServeApplications", message)

    async def label_head(self, rayservice: Object, cluster: Object) -> None:
        """Keep ray.io/serve on the head pod: whether its Serve proxy answers, and it is an endpoint."""
        head = self._kubelet.head_of(objects.namespace_of(cluster), objects.name_of(cluster))
        if head is None:
            return
        pod, _, node = head
        excluded = bool(rayservice["spec"].get("excludeHeadPodFromServeSvc"))
        healthy = not excluded and await self._dashboard.serve_healthy(node)
        value = "true" if healthy else "false"
        # Read again: the kubelet may have written the pod while the proxy was asked.
        current = self._store.get("pods", objects.namespace_of(pod), objects.name_of(pod))
        if current is None or objects.labels_of(current).get(naming.SERVE) == value:
            return
        current["metadata"]["labels"][naming.SERVE] = value
        self._store.update("pods", current, manager=objects.MANAGER)
        where = f"{objects.namespace_of(pod)}/{objects.name_of(pod)}"
        message = f'Updated the serve label to "{value}" for the Head Pod {where}'
        self._event(rayservice, "UpdatedHeadPodServeLabel", message)

    def _event(self, rayservice: Object, reason: str, message: str, kind: str = "Normal") -> None:
        objects.event(self._store, rayservice, reason, message, kind, component=COMPONENT)
