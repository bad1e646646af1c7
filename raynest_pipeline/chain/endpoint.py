"""The road to the Serve endpoint: explicit URL, in-cluster DNS, load balancer, or the API server's proxy."""

import os
import socket
from dataclasses import dataclass

from raynest_pipeline.errors import RefusedError
from raynest_pipeline.kube.client import SERVICE, KubeClient
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Settings

SERVE_PORT = 8000
DASHBOARD_PORT = 8265


@dataclass(frozen=True)
class Route:
    """A way to a service, and its name for people."""

    target: HttpTarget
    kind: str
    """url | in-cluster | load-balancer | service-proxy"""

    @property
    def description(self) -> str:
        """E.g. `service-proxy https://.../proxy`; holds no credentials."""
        return f"{self.kind} {self.target.base_url}"


class EndpointFinder:
    """Chooses the route. It holds nothing: every call looks anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.endpoint

    def find(self, client: KubeClient, namespace: str, ray_service: str) -> Route:
        """The road to the Serve endpoint of a RayService.

        Raises:
            RefusedError: The settings ask for a route that isn't there.
            KubeError: The API server could not be asked.
        """
        if self._settings.url:
            return Route(HttpTarget.plain(self._settings.url), "url")
        service = f"{ray_service}-serve-svc"
        wanted = self._settings.route
        host = f"{service}.{namespace}.svc"
        if wanted == "in-cluster" or (wanted == "auto" and in_cluster() and resolves(host)):
            return Route(HttpTarget.plain(f"http://{host}:{SERVE_PORT}"), "in-cluster")
        if wanted == "load-balancer":
            return Route(HttpTarget.plain(self._load_balancer(client, namespace, service)), "load-balancer")
        return Route(client.service_proxy(namespace, service, SERVE_PORT), "service-proxy")

    def dashboard(self, client: KubeClient, namespace: str, ray_service: str) -> Route:
        """The road to the Ray dashboard: always the API server's proxy, since the dashboard has no login."""
        return Route(
            client.service_proxy(namespace, f"{ray_service}-head-svc", DASHBOARD_PORT), "service-proxy"
        )

    @staticmethod
    def _load_balancer(client: KubeClient, namespace: str, service: str) -> str:
        found = client.get(SERVICE, service, namespace) or {}
        ingress = found.get("status", {}).get("loadBalancer", {}).get("ingress") or []
        host = next((entry.get("ip") or entry.get("hostname") for entry in ingress), None)
        if not host:
            raise RefusedError(
                f"endpoint.route is load-balancer, but the service {namespace}/{service} has no address.",
                fix="Give the RayService a serveService of type LoadBalancer, or set endpoint.route: auto.",
            )
        return f"http://{host}:{SERVE_PORT}"


def in_cluster() -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def resolves(host: str) -> bool:
    """Whether this machine knows the name: a pod of another cluster doesn't."""
    try:
        socket.getaddrinfo(host, SERVE_PORT)
    except OSError:
        return False
    return True
