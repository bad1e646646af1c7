"""One Kubernetes cluster of the sandbox: its store, its API server, its operator."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from raynest_pipeline.sandbox.kube.api import ApiServer
from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority
from raynest_pipeline.sandbox.kube.backends import Backends
from raynest_pipeline.sandbox.kube.bootstrap import bootstrap
from raynest_pipeline.sandbox.kube.kubeconfig import ADMIN, admin_kubeconfig
from raynest_pipeline.sandbox.kube.store import Store
from raynest_pipeline.sandbox.state import NodeSpec

if TYPE_CHECKING:
    from raynest_pipeline.sandbox.faults import Faults
    from raynest_pipeline.sandbox.kuberay.operator import Operator

log = logging.getLogger(__name__)

EXPIRED_TOKEN = "expired_token"


class KubeCluster:
    """A cluster that can be opened, listened on, asked for a kubeconfig, and closed."""

    store: Store

    def __init__(
        self, *, cluster_id: str, directory: Path, faults: Faults, kuberay_version: str, nodes: list[NodeSpec]
    ) -> None:
        self.cluster_id = cluster_id
        self.nodes = nodes
        self._directory = directory
        self._faults = faults
        self._kuberay_version = kuberay_version
        self._operator: Operator | None = None
        self._api: ApiServer | None = None
        self._authority: Authority | None = None

    async def open(self) -> None:
        """Load or create the store and the CA; start the operator, which registers the nodes."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.store = Store(self._directory, kuberay_version=self._kuberay_version)
        self._authority = Authority(self._directory, name=self.cluster_id)
        bootstrap(self.store, self._kuberay_version)
        self._faults.on_change(self._fault_changed)
        # Late, because the operator stands on this room: it must not be needed to import it.
        from raynest_pipeline.sandbox.kuberay.operator import Operator

        operator = Operator(
            self.store,
            self.cluster_id,
            self._directory / "kuberay",
            self._faults,
            self._kuberay_version,
            self.nodes,
        )
        self._operator = operator
        self.serve_with(operator)
        await operator.start()

    def serve_with(self, backends: Backends) -> None:
        """Prepare the API server over this data plane (the operator's, or a test's)."""
        self._api = ApiServer(self.store, self.authority, backends)

    @property
    def authority(self) -> Authority:
        """The cluster's CA. RuntimeError before `open`."""
        if self._authority is None:
            raise RuntimeError(f"cluster {self.cluster_id} is not open")
        return self._authority

    async def listen(self, port: int | None = None) -> int:
        """Serve the API on 127.0.0.1 over TLS, at this port where it is free; the port that was taken."""
        if self._api is None:
            raise RuntimeError(f"cluster {self.cluster_id} is not open")
        if self._api.listening:
            await self._api.close()
        try:
            return await self._api.open(port)
        except OSError:
            if port is None:
                raise
            log.warning("cluster %s: port %s is taken by another process", self.cluster_id, port)
            return await self._api.open(None)

    async def unlisten(self) -> None:
        """Close the API's socket (the public address is gone); the cluster goes on."""
        if self._api is not None:
            await self._api.close()

    async def create_namespace(self, name: str) -> None:
        """Create a namespace unless it is there."""
        if self.store.get("namespaces", None, name) is None:
            self.store.create("namespaces", {"metadata": {"name": name}}, manager="computenest")

    def issue_kubeconfig(self, *, server: str, minutes: int) -> tuple[str, datetime]:
        """A cluster-admin kubeconfig (YAML text, client certificate as ACK's) and its expiry in UTC."""
        return admin_kubeconfig(self.authority, self.cluster_id, server, minutes)

    def issue_token(self, user: str = ADMIN, *, minutes: int = 60, admin: bool = True) -> str:
        """A bearer token for the same API; without `admin` it may do nothing but discover."""
        return self.authority.issue_token(user, (ADMINS,) if admin else (), minutes=minutes)

    def processes(self) -> list[int]:
        """Process ids that the cluster's operator started."""
        return self._operator.processes() if self._operator else []

    async def close(self, *, remove: bool = False) -> None:
        """Stop everything; with `remove` delete the state directory too."""
        await self.unlisten()
        if self._operator is not None:
            await self._operator.stop(remove=remove)
            self._operator = None
        self._authority = None
        if remove:
            self.store.wipe()

    def _fault_changed(self, name: str) -> None:
        if name != EXPIRED_TOKEN or self._authority is None:
            return
        if self._faults.active(EXPIRED_TOKEN) is None:
            self._authority.restore_issued()
        else:
            self._authority.revoke_issued()
