"""The kubelet: each Ray pod on a node becomes a real Ray node, and its status says how that goes."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import (
    container,
    ledger,
    naming,
    objects,
    pod_status,
    pods,
    ray_node,
    serve_config,
)
from raynest_pipeline.sandbox.kuberay.dashboard import Dashboard, DashboardError
from raynest_pipeline.sandbox.kuberay.images import Images
from raynest_pipeline.sandbox.kuberay.pod_run import Launch, PodRun, Timing
from raynest_pipeline.sandbox.kuberay.ray_node import RayNode
from raynest_pipeline.sandbox.kuberay.scheduler import Scheduler

_HEAD_FAILURES = 5  # probes in a row before a head that was ready no longer is; a busy laptop misses one
_VOLUMES_EVERY_S = 5.0  # how often changed ConfigMaps reach the pods (up to a minute on a real node)
_STABLE_S = 60.0  # a container that ran this long restarts without delay


class Kubelet:
    """Runs the Ray pods of one cluster. Everything happens in `tick` and `stop`, on one event loop."""

    def __init__(
        self,
        store: Store,
        scheduler: Scheduler,
        dashboard: Dashboard,
        faults: Faults,
        directory: Path,
        *,
        timing: Timing,
        launch: Launch,
    ) -> None:
        self._store = store
        self._scheduler = scheduler
        self._dashboard = dashboard
        self._directory = directory
        self._timing = timing
        self._launch = launch
        self._images = Images(store, faults, timing)
        self._ledger = ledger.Ledger(directory / "pods.json")
        self._runs: dict[str, PodRun] = {}
        self._proxies: dict[str, dict[str, str]] = {}

    # --- what a former run left

    def end_orphans(self) -> list[int]:
        """End what a former run left behind; the ids of those processes. Blocks until they are gone."""
        left = self._ledger.load()
        ended = ledger.end_marked(left, self._directory)
        for leader in left:
            ray_node.clean(leader)
        self._ledger.clear()
        return ended

    def reboot(self) -> None:
        """Put the pods of the store back to the moment after their nodes' reboot: nothing runs yet."""
        for pod in self._pods():
            if pod["spec"].get("nodeName") and pod["status"].get("phase") != "Failed":
                self._restarted(pod)

    def _restarted(self, pod: Object) -> None:
        run = self._run(pod)
        statuses = pod["status"].get("containerStatuses") or [{}]
        started = (statuses[0].get("state") or {}).get("running", {}).get("startedAt")
        run.restarts = statuses[0].get("restartCount", 0)
        run.initialized = objects.is_true(pod, "Initialized")
        run.pulled = True
        self._images.have(pod)
        if started:
            run.restarts += 1
            run.last = pod_status.terminated(started, 255, "Unknown")
        self._write(pod, run, pod_status.waiting("ContainerCreating"))

    # --- the loop

    async def tick(self) -> None:
        """One look at every Ray pod: start, restart, probe, bury."""
        found = self._pods()
        alive = {objects.uid_of(pod) for pod in found}
        await self._bury([uid for uid in self._runs if uid not in alive])
        self._proxies = await self._ask_proxies(found)
        # Heads first: a worker of a restarted head has to see it in the same round.
        for pod in sorted(found, key=lambda pod: not _is_head(pod)):
            try:
                await self._step(pod)
            except ApiError as error:
                # The object went or was written while we were busy: the next round reads it again.
                if error.code not in (404, 409):
                    raise

    async def stop(self) -> None:
        """End every pod's processes. Their objects stay as they are: nobody is there to write them."""
        await self._bury(list(self._runs))

    def leaders(self) -> list[ledger.Leader]:
        """The pods' processes, by their leaders."""
        return [run.node.leader for run in self._runs.values() if run.node]

    def run_of(self, pod: Object) -> PodRun | None:
        """What runs behind a pod object, or None before it was first seen."""
        return self._runs.get(objects.uid_of(pod))

    def head_of(self, namespace: str, cluster: str) -> tuple[Object, PodRun, RayNode] | None:
        """The head of a RayCluster whose container runs: its pod, state and node; or None."""
        labels = f"{naming.CLUSTER}={cluster},{naming.NODE_TYPE}=head"
        for pod in self._store.list("pods", namespace, labels=labels):
            run = self.run_of(pod)
            if run is not None and run.node is not None:
                return pod, run, run.node
        return None

    async def kill(self, pod: Object) -> bool:
        """Kill a pod's container, as the kernel would; False when none runs."""
        run = self.run_of(pod)
        if run is None or run.node is None:
            return False
        run.killed_with = 137
        await asyncio.to_thread(ledger.end, [run.node.leader])
        return True

    def _pods(self) -> list[Object]:
        return self._store.list("pods", labels=f"{naming.CLUSTER},{naming.NODE_TYPE}")

    def _run(self, pod: Object) -> PodRun:
        uid = objects.uid_of(pod)
        if uid not in self._runs:
            self._runs[uid] = PodRun(self._directory / "pods" / uid)
        return self._runs[uid]

    async def _bury(self, uids: Sequence[str]) -> None:
        # A run stays on the list until nothing of it is left: a cancelled funeral is begun again by `stop`.
        await self._end([self._runs[uid] for uid in uids])
        for uid in uids:
            await asyncio.to_thread(shutil.rmtree, self._runs[uid].folder, True)
            del self._runs[uid]

    async def _end(self, runs: Sequence[PodRun]) -> None:
        leaders = [run.node.leader for run in runs if run.node]
        if leaders:
            await asyncio.to_thread(ledger.end, leaders)
        for leader in leaders:
            await asyncio.to_thread(ray_node.clean, leader)
            self._ledger.remove(leader)
        for run in runs:
            run.node, run.joined, run.ready = None, None, False

    async def _step(self, pod: Object) -> None:
        run = self._run(pod)
        if (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
            await self._end([run])
            return
        if not pod["spec"].get("nodeName"):
            # The others as they are now: an earlier pod of this round may have taken the room.
            bound = self._scheduler.bind(pod, self._store.list("pods"))
            if bound is None:
                return
            pod = bound
        why = self._scheduler.must_leave(pod)
        if why is not None:
            await self._evict(pod, run, why)
        elif run.node is not None:
            await self._watch(pod, run, run.node)
        else:
            self._approach(pod, run)

    async def _evict(self, pod: Object, run: PodRun, why: str) -> None:
        started = run.started_at or objects.now()
        await self._end([run])
        self._event(pod, "UnexpectedAdmissionError", why, "Warning")
        state = pod_status.terminated(started, 137, "Error")
        self._update(pod, pod_status.ended(pod, "UnexpectedAdmissionError", why, state))

    # --- starting a container

    def _approach(self, pod: Object, run: PodRun) -> None:
        """One step towards a running container."""
        pulling = self._images.pull(pod, run)
        if pulling is not None:
            self._write(pod, run, pulling)
            return
        found = None if _is_head(pod) else self._head_for(pod)
        if not _is_head(pod) and (found is None or not found[1].ready):
            self._await_head(pod, run)
            return
        run.initialized = True
        if time.monotonic() < run.not_before:
            self._write(pod, run, self._crash_loop(pod, run))
            return
        self._start(pod, run, found[2] if found else None)

    def _head_for(self, pod: Object) -> tuple[Object, PodRun, RayNode] | None:
        return self.head_of(objects.namespace_of(pod), objects.labels_of(pod)[naming.CLUSTER])

    def _await_head(self, pod: Object, run: PodRun) -> None:
        """A new worker's init container waits for the GCS; one that has run before crashes in a loop."""
        run.init_started_at = run.init_started_at or objects.now()
        init = {"running": {"startedAt": run.init_started_at}}
        self._write(pod, run, self._crash_loop(pod, run) if run.initialized else init)

    def _crash_loop(self, pod: Object, run: PodRun) -> dict[str, Any]:
        name = pod["spec"]["containers"][0]["name"]
        where = f"{objects.name_of(pod)}_{objects.namespace_of(pod)}({objects.uid_of(pod)})"
        message = f"back-off {self._delay(run):g}s restarting failed container={name} pod={where}"
        return pod_status.waiting("CrashLoopBackOff", message)

    def _delay(self, run: PodRun) -> float:
        return float(min(self._timing.backoff * 2 ** max(run.crashes - 1, 0), self._timing.backoff_limit))

    def _start(self, pod: Object, run: PodRun, head: RayNode | None) -> None:
        spec = pod["spec"]["containers"][0]
        try:
            self._mount(pod, run)
            env = container.environment(pod, run.mounts, self._store.get)
        except container.ContainerError as error:
            self._event(pod, error.event, error.message, "Warning")
            self._write(pod, run, pod_status.waiting(error.reason, error.message))
            return
        if head is None:
            serve_config.write_fault_module(run.folder)
        run.node = self._launch(run.folder, run.log, env, pods.flags(spec), head)
        self._ledger.add(run.node.leader)
        run.joined, run.started, run.started_at = head, time.monotonic(), objects.now()
        run.ready, run.failures, run.killed_with = False, 0, None
        self._event(pod, "Created", f"Created container: {spec['name']}")
        self._event(pod, "Started", f"Started container {spec['name']}")
        self._write(pod, run, {"running": {"startedAt": run.started_at}})

    def _mount(self, pod: Object, run: PodRun) -> None:
        run.mounts = container.mount(pod, run.folder, self._directory / "claims", self._store.get)
        run.volumes_at = time.monotonic()

    # --- watching a container

    async def _watch(self, pod: Object, run: PodRun, node: RayNode) -> None:
        code = run.exit_code()
        if code is None and not _is_head(pod):
            found = self._head_for(pod)
            if found is None or found[2] is not run.joined:
                code = 1  # its GCS is gone: a raylet gives up, and its container with it
        if code is not None:
            await self._crashed(pod, run, code)
            return
        if time.monotonic() - run.volumes_at > _VOLUMES_EVERY_S:
            self._refresh_volumes(pod, run)
        run.ready = await self._probe(pod, run, node)
        self._write(pod, run, {"running": {"startedAt": run.started_at}})

    def _refresh_volumes(self, pod: Object, run: PodRun) -> None:
        try:
            self._mount(pod, run)
        except container.ContainerError:
            # A mounted ConfigMap that is deleted later leaves its files where they are.
            run.volumes_at = time.monotonic()

    async def _probe(self, pod: Object, run: PodRun, node: RayNode) -> bool:
        healthy = await self._dashboard.node_healthy(node, head=_is_head(pod))
        if _is_head(pod):
            run.failures = 0 if healthy else run.failures + 1
            return healthy or (run.ready and run.failures < _HEAD_FAILURES)
        if healthy and objects.labels_of(pod).get(naming.SERVE) == "true":
            # The injected probe also asks the Serve proxy on this node. All proxies of a cluster share one
            # port here, so that only the controller can tell whether this node has one.
            return self._proxies.get(_cluster_key(pod), {}).get(objects.name_of(pod)) == "HEALTHY"
        return healthy

    async def _ask_proxies(self, found: Sequence[Object]) -> dict[str, dict[str, str]]:
        """Serve proxy status by pod name, for each cluster that has a worker to probe."""
        known: dict[str, dict[str, str]] = {}
        for pod in found:
            key, run = _cluster_key(pod), self.run_of(pod)
            if _is_head(pod) or key in known or run is None or run.node is None:
                continue
            head = self._head_for(pod)
            if head is None or not head[1].ready:
                continue
            try:
                known[key] = (await self._dashboard.applications(head[2])).proxies
            except DashboardError:
                known[key] = self._proxies.get(key, {})
        return known

    async def _crashed(self, pod: Object, run: PodRun, code: int) -> None:
        if time.monotonic() - run.started > _STABLE_S:
            run.crashes = 0
        run.last = pod_status.terminated(run.started_at, code, "Error" if code else "Completed")
        await self._end([run])
        run.killed_with = None
        run.restarts += 1
        run.crashes += 1
        if run.crashes == 1:
            # The first restart is immediate, as on a real node.
            self._write(pod, run, run.last)
            return
        run.not_before = time.monotonic() + self._delay(run)
        name = pod["spec"]["containers"][0]["name"]
        message = f"Back-off restarting failed container {name} in pod {objects.name_of(pod)}"
        self._event(pod, "BackOff", message, "Warning")
        self._write(pod, run, self._crash_loop(pod, run))

    def _write(self, pod: Object, run: PodRun, state: dict[str, Any]) -> None:
        """Write the pod's status; before it is initialized the state is its init container's."""
        initialized = run.initialized or not pod["spec"].get("initContainers")
        status = pod_status.running(
            pod,
            state=state if initialized else pod_status.waiting("PodInitializing"),
            init={"terminated": {"exitCode": 0, "reason": "Completed"}} if initialized else state,
            initialized=initialized,
            ready=run.ready,
            restarts=run.restarts,
            last=run.last,
        )
        self._update(pod, status)

    def _update(self, pod: Object, status: dict[str, Any]) -> None:
        where = objects.namespace_of(pod), objects.name_of(pod)
        self._store.update_status("pods", *where, status, manager=objects.KUBELET)

    def _event(self, pod: Object, reason: str, message: str, kind: str = "Normal") -> None:
        objects.event(self._store, pod, reason, message, kind, component=objects.KUBELET)


def _is_head(pod: Object) -> bool:
    return objects.labels_of(pod)[naming.NODE_TYPE] == "head"


def _cluster_key(pod: Object) -> str:
    return f"{objects.namespace_of(pod)}/{objects.labels_of(pod)[naming.CLUSTER]}"
