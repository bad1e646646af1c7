"""The faults that this room honours by doing real harm: killed nodes, killed replicas, failed applications.

missing_gpu and image_pull_error are states, which the scheduler and the kubelet look up themselves.
"""

from __future__ import annotations

import asyncio

import psutil

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import ledger, naming, objects
from raynest_pipeline.sandbox.kuberay.dashboard import Dashboard, DashboardError
from raynest_pipeline.sandbox.kuberay.kubelet import Kubelet
from raynest_pipeline.sandbox.kuberay.serve_apps import ServeApps


class Chaos:
    """Carries out faults; `notice` may be called from any thread, `tick` does the harm."""

    def __init__(
        self,
        store: Store,
        faults: Faults,
        kubelet: Kubelet,
        dashboard: Dashboard,
        apps: ServeApps,
    ) -> None:
        self._store = store
        self._faults = faults
        self._kubelet = kubelet
        self._dashboard = dashboard
        self._apps = apps
        # Faults that were set and perhaps cleared again before the next tick: they still have to strike once.
        self._fresh: dict[str, dict[str, object]] = {}
        self._struck: dict[str, float] = {}

    def notice(self, name: str) -> None:
        """A fault was set, used up or cleared."""
        record = self._faults.active(name)
        # One that was only used up a step has struck already.
        if record is not None and record["since"] != self._struck.get(name):
            self._struck[name] = float(record["since"])
            self._fresh[name] = record

    async def tick(self) -> None:
        """Strike with every fault that is due."""
        fresh, self._fresh = self._fresh, {}
        if "deploy_failed" in fresh and self._apps.sabotage(str(fresh["deploy_failed"]["message"])):
            self._faults.consume("deploy_failed")
        if "unhealthy_app" in fresh or self._faults.active("unhealthy_app") is not None:
            await self._kill_replicas()
        await self._strike("dead_head", "head")
        await self._strike("dead_worker", "worker")

    async def _strike(self, fault: str, node_type: str) -> None:
        for pod in self._store.list("pods", labels=f"{naming.CLUSTER},{naming.NODE_TYPE}={node_type}"):
            run = self._kubelet.run_of(pod)
            if run is None or run.node is None or not objects.is_true(pod, "Ready"):
                continue
            if self._faults.consume(fault) is None:
                return
            await self._kubelet.kill(pod)
            if node_type == "worker":
                self._lose(pod)

    def _lose(self, pod: Object) -> None:
        """As after the loss of its node: the pod object goes, and the operator makes another."""
        where = f"{objects.namespace_of(pod)}/{objects.name_of(pod)}"
        message = f"Marking for deletion Pod {where}"
        objects.event(
            self._store, pod, "TaintManagerEviction", message, component="taint-eviction-controller"
        )
        try:
            self._store.delete("pods", objects.namespace_of(pod), objects.name_of(pod))
        except ApiError as error:
            if error.code != 404:
                raise

    async def _kill_replicas(self) -> None:
        for pod in self._store.list("pods", labels=f"{naming.CLUSTER},{naming.NODE_TYPE}=head"):
            run = self._kubelet.run_of(pod)
            if run is None or run.node is None:
                continue
            try:
                pids = set((await self._dashboard.applications(run.node)).replica_pids)
            except DashboardError:
                continue
            if pids:
                # Only what one of our own sessions holds: a dashboard's word is not enough to kill by.
                ours = await asyncio.to_thread(ledger.members, self._kubelet.leaders())
                for process in ours:
                    if process.pid in pids:
                        _kill(process)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
