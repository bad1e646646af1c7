"""The data plane of one cluster: kubelet, scheduler, controllers and KubeRay's operator over real Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.backends import Address
from raynest_pipeline.sandbox.kube.errors import ApiError, bad_request
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import endpoints, ledger, objects, ray_node, services
from raynest_pipeline.sandbox.kuberay.chaos import Chaos
from raynest_pipeline.sandbox.kuberay.dashboard import Dashboard, DashboardError
from raynest_pipeline.sandbox.kuberay.kubelet import Kubelet
from raynest_pipeline.sandbox.kuberay.pod_run import Launch, Timing
from raynest_pipeline.sandbox.kuberay.rayclusters import RayClusters
from raynest_pipeline.sandbox.kuberay.rayservices import RayServices
from raynest_pipeline.sandbox.kuberay.release import release
from raynest_pipeline.sandbox.kuberay.scheduler import Scheduler
from raynest_pipeline.sandbox.kuberay.serve_apps import ServeApps
from raynest_pipeline.sandbox.state import NodeSpec

_log = logging.getLogger(__name__)
_LOG_CHUNK = 64 * 1024
_FOLLOW_S = 0.5


class Operator:
    """Plays the nodes and KubeRay for the objects of one store; it is also the API server's `Backends`.

    cluster: the cluster's id, for the log. directory: its own, for pods and records. period: seconds between
    two passes of the operator (2 s in KubeRay). Real Ray runs behind every Ray pod; see `ray_node`.
    """

    def __init__(
        self,
        store: Store,
        cluster: str,
        directory: Path,
        faults: Faults,
        kuberay_version: str,
        nodes: Sequence[NodeSpec],
        *,
        period: float = 2.0,
        kubelet_period: float = 0.5,
        timing: Timing | None = None,
        launch: Launch = ray_node.start,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._directory = directory.absolute()
        self._faults = faults
        self._release = release(kuberay_version)
        self._nodes = nodes
        self._period = period
        self._kubelet_period = kubelet_period
        self._timing = timing or Timing()
        self._launch = launch
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None
        self._kubelet: Kubelet | None = None

    async def start(self) -> None:
        """End what a former run left behind, put its pods back on their feet, and begin to work."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._session = aiohttp.ClientSession(trust_env=False)
        dashboard = Dashboard(self._session, self._release)
        self._scheduler = Scheduler(self._store, self._faults)
        self._scheduler.register(self._nodes)
        self._kubelet = Kubelet(
            self._store,
            self._scheduler,
            dashboard,
            self._faults,
            self._directory,
            timing=self._timing,
            launch=self._launch,
        )
        ended = await asyncio.to_thread(self._kubelet.end_orphans)
        if ended:
            _log.info("cluster %s: ended %d processes of a former run", self._cluster, len(ended))
        self._kubelet.reboot()
        endpoints.sync(self._store)
        self._rayclusters = RayClusters(self._store, self._release)
        apps = ServeApps(self._store, self._kubelet, dashboard, self._faults)
        self._rayservices = RayServices(self._store, self._release, apps)
        self._chaos = Chaos(self._store, self._faults, self._kubelet, dashboard, apps)
        self._faults.on_change(self._chaos.notice)
        self._tasks = [
            asyncio.create_task(self._nodes_loop(), name=f"kubelet {self._cluster}"),
            asyncio.create_task(self._operator_loop(), name=f"kuberay {self._cluster}"),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def stop(self, *, remove: bool = False) -> None:
        """End every process. With `remove` the directory goes too; the store's objects stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._kubelet is not None:
            await self._kubelet.stop()
        if self._session is not None:
            await self._session.close()
            self._session = None
        if remove:
            await asyncio.to_thread(shutil.rmtree, self._directory, True)

    def processes(self) -> list[int]:
        """The ids of all processes behind the pods, as they are now."""
        return [process.pid for process in ledger.members(self._kubelet.leaders())] if self._kubelet else []

    # --- Backends

    def resolve(self, namespace: str, service: str, port: str) -> Address | None:
        """A ready endpoint of a Service, by port number or name (see `Backends`)."""
        found = self._store.get("services", namespace, service)
        if found is None:
            return None
        target = None
        for each in found["spec"].get("ports") or ():
            if port in (str(each["port"]), each.get("name")):
                target = each.get("targetPort", each["port"])
        if target is None:
            return None
        for pod in services.selected(found, self._store.list("pods", namespace)):
            address = self._address(pod, str(target)) if services.takes_traffic(found, pod) else None
            if address is not None:
                return address
        return None

    def pod_address(self, namespace: str, pod: str, port: str) -> Address | None:
        """What listens behind a pod's port, by number or name (see `Backends`)."""
        found = self._store.get("pods", namespace, pod)
        return None if found is None else self._address(found, port)

    def _address(self, pod: Object, port: str) -> Address | None:
        run = self._kubelet.run_of(pod) if self._kubelet else None
        if run is None or run.node is None:
            return None
        if not port.isdigit():
            named = {
                each.get("name"): str(each["containerPort"])
                for each in pod["spec"]["containers"][0].get("ports") or ()
            }
            port = named.get(port, "0")
        real = run.node.port(int(port))
        return None if real is None else ("127.0.0.1", real)

    async def logs(
        self, namespace: str, pod: str, container: str | None, *, tail: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        """The output of `ray start`, over restarts of the container (see `Backends`)."""
        found = self._store.get("pods", namespace, pod)
        run = self._kubelet.run_of(found) if found is not None and self._kubelet is not None else None
        if found is None or run is None or not run.log.exists():
            raise self._not_started(found, pod, container)
        with run.log.open("rb") as stream:
            if tail is not None:
                lines = stream.read().splitlines(keepends=True)
                yield b"".join(lines[max(len(lines) - tail, 0) :] if tail else [])
            while True:
                chunk = stream.read(_LOG_CHUNK)
                if chunk:
                    yield chunk
                elif follow and run.node is not None:
                    await asyncio.sleep(_FOLLOW_S)
                else:
                    return

    def _not_started(self, pod: Object | None, name: str, container: str | None) -> ApiError:
        statuses = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
        state = statuses[0].get("state") or {}
        reason = (state.get("waiting") or {}).get("reason", "ContainerCreating")
        shown = container or statuses[0].get("name", "")
        return bad_request(f'container "{shown}" in pod "{name}" is waiting to start: {reason}')

    # --- loops

    async def _nodes_loop(self) -> None:
        assert self._kubelet is not None
        while True:
            try:
                await self._chaos.tick()
                self._scheduler.advertise()
                await self._kubelet.tick()
                endpoints.sync(self._store)
            except (ApiError, OSError, ValueError) as error:
                _log.warning("cluster %s: the nodes: %s", self._cluster, error)
            await asyncio.sleep(self._kubelet_period)

    async def _operator_loop(self) -> None:
        changes = self._store.subscribe("rayservices", "rayclusters", "pods")
        try:
            while True:
                await self._reconcile_all()
                # A change of an object is a reason to look at once; without one the period counts.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._period):
                        await changes.get()
                while not changes.empty():
                    changes.get_nowait()
        finally:
            self._store.unsubscribe(changes)

    async def _reconcile_all(self) -> None:
        for cluster in self._store.list("rayclusters"):
            try:
                self._rayclusters.reconcile(cluster)
            except (ApiError, ValueError) as error:
                _log.info("cluster %s: %s: %s", self._cluster, objects.name_of(cluster), error)
        for rayservice in self._store.list("rayservices"):
            try:
                await self._rayservices.reconcile(rayservice)
            except (ApiError, DashboardError, ValueError) as error:
                _log.info("cluster %s: %s: %s", self._cluster, objects.name_of(rayservice), error)


def _report(task: asyncio.Task[None]) -> None:
    """A loop ends only when it is told to: anything else would be a cluster that stands still unnoticed."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("%s ended by an error", task.get_name(), exc_info=error)
