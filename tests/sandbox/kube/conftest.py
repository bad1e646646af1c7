"""The sandbox's API server for tests: in a test's own loop, or in a thread for clients that block."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from raynest_pipeline.sandbox.kube.api import ApiServer
from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority
from raynest_pipeline.sandbox.kube.bootstrap import bootstrap
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.kubeconfig import admin_kubeconfig
from raynest_pipeline.sandbox.kube.store import Store

T = TypeVar("T")
Object = dict[str, Any]

DATA = Path(__file__).parent.parent / "data"


class Nodes:
    """A data plane that a test fills in by hand."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, str, str], tuple[str, int]] = {}
        self.pods: dict[tuple[str, str, str], tuple[str, int]] = {}
        self.output: list[bytes] = []
        self.more = asyncio.Event()
        self.not_started = False

    def resolve(self, namespace: str, service: str, port: str) -> tuple[str, int] | None:
        return self.services.get((namespace, service, port))

    def pod_address(self, namespace: str, pod: str, port: str) -> tuple[str, int] | None:
        return self.pods.get((namespace, pod, port))

    async def logs(
        self, namespace: str, pod: str, container: str | None, *, tail: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        if self.not_started:
            raise ApiError(
                400, f'container "{container}" in pod "{pod}" is waiting to start', reason="BadRequest"
            )
        for line in self.output[-tail:] if tail else self.output:
            yield line
        if follow:
            await self.more.wait()
            yield b"the end\n"


class Bench:
    """A served cluster and an administrator's client of it."""

    def __init__(self, directory: Path | None, kuberay_version: str, home: Path) -> None:
        self.store = Store(directory, kuberay_version=kuberay_version)
        self.authority = Authority(home, name="c1")
        bootstrap(self.store, kuberay_version)
        self.nodes = Nodes()
        self.api = ApiServer(self.store, self.authority, self.nodes)
        self.url = ""
        self.session: aiohttp.ClientSession

    async def start(self) -> None:
        port = await self.api.open(None)
        self.url = f"https://127.0.0.1:{port}"
        self.token = self.authority.issue_token("kubernetes-admin", (ADMINS,), minutes=60)
        self.session = aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(ssl=self.trust()),
            headers={"Authorization": f"Bearer {self.token}", "User-Agent": "Python-urllib/3.11"},
        )

    def trust(self) -> Any:
        import ssl

        return ssl.create_default_context(cadata=self.authority.ca_pem.decode())

    async def stop(self) -> None:
        await self.session.close()
        await self.api.close()

    async def call(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **headers: Any
    ) -> tuple[int, Any]:
        """(status, decoded body) of one request."""
        answer, decoded = await self.full(method, path, body, kind=kind, **headers)
        return answer.status, decoded

    async def full(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        follow: bool = True,
        **headers: Any,
    ) -> tuple[aiohttp.ClientResponse, Any]:
        """(answer, decoded body) of one request; `follow` redirects or show them."""
        data = body if isinstance(body, str | bytes | None) else json.dumps(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            sent["Content-Type"] = kind
        request = self.session.request(method, path, data=data, headers=sent, allow_redirects=follow)
        async with request as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json" and text.count("\n") <= 1
            return answer, json.loads(text) if is_json else text

    async def apply(self, path: str, body: Object, manager: str = "dagster", **query: str) -> tuple[int, Any]:
        options = "&".join([f"fieldManager={manager}", *(f"{key}={value}" for key, value in query.items())])
        return await self.call("PATCH", f"{path}?{options}", body, kind="application/apply-patch+yaml")


@asynccontextmanager
async def open_bench(home: Path, kuberay_version: str, directory: Path | None) -> AsyncIterator[Bench]:
    bench = Bench(directory, kuberay_version, home)
    await bench.start()
    try:
        yield bench
    finally:
        await bench.stop()


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Any]:
    """`async with serving() as bench`: a cluster in the test's own event loop."""

    def served(kuberay_version: str = "1.7.0", directory: Path | None = None) -> Any:
        return open_bench(tmp_path, kuberay_version, directory)

    return served


@pytest.fixture(scope="module")
def serving_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """As `serving`, for a fixture whose result several tests look at."""
    return lambda: open_bench(tmp_path_factory.mktemp("cluster"), "1.7.0", None)


class LiveCluster:
    """A cluster whose loop runs in a thread of its own, for clients that block."""

    def __init__(self, home: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.bench = self.call(lambda: Bench(home / "state", "1.7.0", home))
        self.run(self.bench.start())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function of the store where the store lives."""

        async def inside() -> T:
            return function()

        return self.run(inside())

    def close(self) -> None:
        self.run(self.bench.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveCluster]:
    cluster = LiveCluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def recordings() -> dict[str, Any]:
    """Answers of a real kube-apiserver 1.36 with the KubeRay 1.7 CRDs."""
    loaded: dict[str, Any] = json.loads((DATA / "kubernetes-recordings.json").read_text(encoding="utf-8"))
    return loaded


def ray_service(name: str = "s1", namespace: str | None = "demo", image: str = "ray:1") -> Object:
    """A small valid RayService."""
    container = {"name": "head", "image": image}
    worker = {"groupName": "gpu", "replicas": 1, "minReplicas": 0, "maxReplicas": 2, "rayStartParams": {}}
    worker["template"] = {"spec": {"containers": [{"name": "worker", "image": image}]}}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    cluster = {"rayVersion": "2.60.0", "headGroupSpec": head, "workerGroupSpecs": [worker]}
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    spec = {"serveConfigV2": "applications: []\n", "rayClusterConfig": cluster}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}


@pytest.fixture
def store() -> Store:
    """A store without files, with the namespace `demo`."""
    made = Store(None, kuberay_version="1.7.0")
    made.create("namespaces", {"metadata": {"name": "demo"}}, manager="test")
    return made


@pytest.fixture
def manifest() -> Callable[..., Object]:
    return ray_service


@pytest.fixture
def unused_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def kubeconfig() -> Callable[[LiveCluster], str]:
    """A kubeconfig of a live cluster, with a client certificate as a cloud's."""

    def issue(live: LiveCluster) -> str:
        return live.call(lambda: admin_kubeconfig(live.bench.authority, "c1", live.bench.url, 60)[0])

    return issue
