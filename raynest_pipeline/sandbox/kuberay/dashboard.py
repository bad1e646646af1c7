"""Every HTTP call that KubeRay makes for a RayService (facts, section 8), and the kubelet's probes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from raynest_pipeline.sandbox.kuberay.release import Release

#: The operator's own timeout for each call, in seconds.
TIMEOUT_S = 2.0


class DashboardError(Exception):
    """The dashboard didn't answer, or not with success; the text is what KubeRay would log."""


class RayPorts(Protocol):
    """What the calls need of a Ray node: real loopback ports by name, and its token."""

    ports: dict[str, int]

    @property
    def token(self) -> str | None:
        """The bearer token, or None without token authentication."""
        ...


@dataclass(frozen=True)
class Serve:
    """What GET /api/serve/applications/ says, as far as anybody here reads it.

    applications: RayService's applicationStatuses shape; proxies: Serve proxy status by pod name (Ray's
    cloud instance id); replica_pids: the processes of all replicas.
    """

    applications: dict[str, Any]
    proxies: dict[str, str]
    replica_pids: list[int]


class Dashboard:
    """The calls, over one shared session."""

    def __init__(self, session: aiohttp.ClientSession, release: Release) -> None:
        self._session = session
        self._query = "?api_type=declarative" if release.declarative_query else ""

    async def applications(self, head: RayPorts) -> Serve:
        """GET the Serve applications. Raises DashboardError."""
        body = await self._call("GET", head, f"/api/serve/applications/{self._query}")
        try:
            return read(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            raise DashboardError(f"the dashboard's answer can't be read: {error}") from error

    async def put(self, head: RayPorts, config: dict[str, Any]) -> None:
        """PUT the full desired set of applications. Raises DashboardError with the dashboard's own text."""
        await self._call("PUT", head, "/api/serve/applications/", config)

    async def serve_healthy(self, head: RayPorts) -> bool:
        """Whether the Serve proxy on the head answers GET /-/healthz with 200."""
        return await self.answers(head.ports["serve"], "/-/healthz")

    async def node_healthy(self, node: RayPorts, *, head: bool) -> bool:
        """The kubelet's readiness probe of a Ray node: its raylet, and on the head the GCS too."""
        if not await self.answers(node.ports["agent"], "/api/local_raylet_healthz"):
            return False
        return not head or await self.answers(node.ports["dashboard"], "/api/gcs_healthz")

    async def answers(self, port: int, path: str) -> bool:
        """Whether a loopback port answers GET with 200 in time."""
        try:
            async with self._session.get(f"http://127.0.0.1:{port}{path}", timeout=_timeout()) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _call(self, method: str, head: RayPorts, path: str, body: dict[str, Any] | None = None) -> str:
        headers = {} if head.token is None else {"x-ray-authorization": f"Bearer {head.token}"}
        url = f"http://127.0.0.1:{head.ports['dashboard']}{path}"
        # The first PUT starts the Serve controller and takes about 2 s by itself on a small machine.
        timeout = _timeout(5 * TIMEOUT_S if method == "PUT" else TIMEOUT_S)
        try:
            async with self._session.request(
                method, url, json=body, headers=headers, timeout=timeout
            ) as response:
                text = await response.text()
                if response.status // 100 != 2:
                    kind = "UpdateDeployments" if method == "PUT" else "GetMultiApplicationStatus"
                    raise DashboardError(f"{kind} fail: {response.status} {text}")
                return text
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DashboardError(f"{method} {path}: {error or type(error).__name__}") from error


def _timeout(seconds: float = TIMEOUT_S) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


def read(details: dict[str, Any]) -> Serve:
    """ServeInstanceDetails in the shapes used here; empty texts are left out, as Go's omitempty does."""
    applications = {}
    pids = []
    for name, app in (details.get("applications") or {}).items():
        deployments = app.get("deployments") or {}
        entry = _status(app)
        if deployments:
            entry["serveDeploymentStatuses"] = {key: _status(each) for key, each in deployments.items()}
        applications[name] = entry
        for deployment in deployments.values():
            pids += [replica["pid"] for replica in deployment.get("replicas") or () if replica.get("pid")]
    proxies = {
        proxy["node_instance_id"]: proxy["status"] for proxy in (details.get("proxies") or {}).values()
    }
    return Serve(applications, proxies, pids)


def _status(entry: dict[str, Any]) -> dict[str, Any]:
    found = {"status": entry["status"]}
    if entry.get("message"):
        found["message"] = entry["message"]
    return found
