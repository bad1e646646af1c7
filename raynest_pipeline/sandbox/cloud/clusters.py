"""The Kubernetes sides of the account's clusters: created, exposed and closed as the cloud decides."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.world import Cluster
from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.state import NodeSpec

logger = logging.getLogger(__name__)


class ClusterSide(Protocol):
    """What the cloud needs of a cluster's Kubernetes side."""

    async def open(self) -> None:
        """Load what was persisted and start the operator."""

    async def listen(self, port: int | None) -> int:
        """Serve the public API on 127.0.0.1, at this port where it is free; the port that was taken."""
        ...

    async def unlisten(self) -> None:
        """Close the public API."""

    async def create_namespace(self, name: str) -> None:
        """Make a namespace; nothing happens when it is there."""

    def issue_kubeconfig(self, *, server: str, minutes: int) -> tuple[str, datetime]:
        """A kubeconfig's text and when it expires."""
        ...

    def processes(self) -> list[int]:
        """The ids of the processes that were started for this cluster."""
        ...

    async def close(self, *, remove: bool) -> None:
        """Stop the operator and the processes; `remove` deletes what was persisted."""


class ClusterFactory(Protocol):
    """Makes the Kubernetes side of one cluster."""

    def __call__(
        self,
        *,
        cluster_id: str,
        directory: Path,
        faults: Faults,
        kuberay_version: str,
        nodes: list[NodeSpec],
    ) -> ClusterSide:
        """The side, not yet open."""
        ...


class Clusters:
    """The Kubernetes sides, by cluster id. A cluster has one while it runs."""

    def __init__(
        self,
        directory: Path,
        faults: Faults,
        kuberay_version: str,
        factory: Callable[[], ClusterFactory],
    ) -> None:
        self._directory = directory
        self._faults = faults
        self._kuberay_version = kuberay_version
        self._factory = factory
        self._sides: dict[str, ClusterSide] = {}

    async def open(self, cluster: Cluster) -> None:
        """Start a cluster's Kubernetes side with its namespaces, unless it is open."""
        if cluster.id in self._sides:
            return
        side = self._factory()(
            cluster_id=cluster.id,
            directory=self._directory / cluster.id,
            faults=self._faults,
            kuberay_version=self._kuberay_version,
            nodes=nodes_of(cluster),
        )
        self._sides[cluster.id] = side
        await side.open()
        logger.info("cluster %s is open", cluster.id)

    async def create_namespace(self, cluster: Cluster, name: str) -> None:
        """Make a namespace and remember it with the cluster."""
        await self._sides[cluster.id].create_namespace(name)
        if name not in cluster.namespaces:
            cluster.namespaces.append(name)

    async def expose(self, cluster: Cluster) -> None:
        """Open the public API server; the port is kept for the next time."""
        cluster.port = await self._sides[cluster.id].listen(cluster.port)
        logger.info("cluster %s is public at 127.0.0.1:%s", cluster.id, cluster.port)

    async def hide(self, cluster: Cluster) -> None:
        """Close the public API server."""
        if cluster.id in self._sides:
            await self._sides[cluster.id].unlisten()

    def issue_kubeconfig(self, cluster_id: str, server: str, minutes: int) -> tuple[str, float]:
        """A kubeconfig's text and its expiry (seconds since 1970)."""
        text, expires = self._sides[cluster_id].issue_kubeconfig(server=server, minutes=minutes)
        return text, expires.timestamp()

    def processes(self) -> list[int]:
        """The ids of all processes that were started for clusters."""
        return [pid for side in self._sides.values() for pid in side.processes()]

    async def close(self, cluster_id: str, *, remove: bool) -> None:
        """Stop a cluster's Kubernetes side; `remove` forgets it for good."""
        side = self._sides.get(cluster_id)
        if side is not None:
            await side.close(remove=remove)
            self._sides.pop(cluster_id, None)
        if remove:
            # Also what a sandbox left that was killed before it could open the cluster again.
            shutil.rmtree(self._directory / cluster_id, ignore_errors=True)

    async def close_all(self) -> None:
        """Stop every side and keep what it persisted."""
        for cluster_id in list(self._sides):
            await self.close(cluster_id, remove=False)


def nodes_of(cluster: Cluster) -> list[NodeSpec]:
    """The worker nodes of a cluster, named as ACK names them: region and private address."""
    kind = catalog.INSTANCE_TYPES[cluster.worker_type]
    return [
        NodeSpec(
            name=f"{cluster.region}.{address_of(index)}",
            instance_type=kind.id,
            cpu=kind.cpu,
            memory_gib=kind.memory_gib,
            gpus=kind.gpus,
            disk_gib=cluster.disk_gib,
        )
        for index in range(len(cluster.workers))
    ]


def address_of(index: int) -> str:
    """The private address of a worker."""
    return f"192.168.{index // 200}.{index % 200 + 5}"
