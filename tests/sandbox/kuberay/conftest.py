"""A whole operator over the real store, with nodes that only answer HTTP as Ray's dashboard does."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Object, Store
from raynest_pipeline.sandbox.kuberay import objects, ray_node
from raynest_pipeline.sandbox.kuberay.ledger import Leader
from raynest_pipeline.sandbox.kuberay.operator import Operator
from raynest_pipeline.sandbox.kuberay.pod_run import Timing
from raynest_pipeline.sandbox.state import NodeSpec

NAMESPACE = "ray"
FAST = Timing(pull=0.02, pull_retry=0.05, backoff=0.03, backoff_limit=0.1)
_pids = itertools.count(2**30)


class FakeServe:
    """Serve behind one head: applications that go DEPLOYING to RUNNING, or as the test says.

    outcome: the status that applications reach; puts: every accepted body; broken: answer 500 to PUT.
    """

    def __init__(self) -> None:
        self.puts: list[dict[str, Any]] = []
        self.queries: list[str] = []
        self.tokens: list[str | None] = []
        self.statuses: dict[str, str] = {}
        self.outcome: Callable[[dict[str, Any]], str] = lambda app: "RUNNING"
        self.message = ""
        self.proxies: dict[str, str] = {}
        self.broken = False
        self.silent = False
        self.asked = 0

    def accept(self, body: dict[str, Any]) -> None:
        before = {app["name"]: app for app in self.puts[-1]["applications"]} if self.puts else {}
        self.puts.append(body)
        for app in body["applications"]:
            # An identical application is left as it is, failed or not, as Serve does.
            if before.get(app["name"]) != app:
                self.statuses[app["name"]] = "DEPLOYING"
                self.asked = 0

    def describe(self) -> dict[str, Any]:
        applications = {}
        for app in self.puts[-1]["applications"] if self.puts else ():
            status = self.statuses[app["name"]]
            deployed = {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING"}.get(status, status)
            applications[app["name"]] = {
                "status": status,
                "message": self.message if status == "DEPLOY_FAILED" else "",
                "deployments": {
                    "Model": {"name": "Model", "status": deployed, "message": "", "replicas": []}
                },
            }
            self.asked += 1
            # Long enough for the operator to see it: the kubelet asks here too.
            if status == "DEPLOYING" and self.asked > 5:
                self.statuses[app["name"]] = self.outcome(app)
        proxies = {pod: {"node_instance_id": pod, "status": status} for pod, status in self.proxies.items()}
        return {"controller_info": {}, "proxies": proxies, "applications": applications}


class FakeNode:
    """Stands for a `ray start`: one HTTP server for all its ports; it dies with its temporary folder."""

    def __init__(self, env: dict[str, str], resources: dict[str, str], head: FakeNode | None) -> None:
        self.env, self.resources, self.head = env, resources, head
        self.serve = head.serve if head else FakeServe()
        self.temp_dir = tempfile.mkdtemp(prefix="rn-fake-")
        self.leader = Leader(next(_pids), 1.0, "/nowhere", self.temp_dir)
        self.healthy = True
        self.code: int | None = None
        self.ports: dict[str, int] = {}
        self.ports = dict.fromkeys(
            ("gcs", "dashboard", "client", "serve", "agent", "metrics"), ray_node.free_ports(["all"])["all"]
        )
        self.runner: web.AppRunner | None = None
        self.task = asyncio.get_running_loop().create_task(self._listen())

    token = ray_node.RayNode.token
    port = ray_node.RayNode.port

    def exit_code(self) -> int | None:
        return self.code

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.ports["agent"]).start()

    async def _answer(self, request: web.Request) -> web.Response:
        if not os.path.isdir(self.temp_dir) or not self.healthy:
            return web.Response(status=503)
        if request.path != "/api/serve/applications/":
            return web.Response(text="success")
        if self.serve.silent:
            return web.Response(status=503, text="the dashboard is busy")
        self.serve.tokens.append(request.headers.get("x-ray-authorization"))
        if request.method == "PUT":
            if self.serve.broken:
                return web.Response(status=400, text="1 validation error for ServeDeploySchema")
            self.serve.accept(await request.json())
            return web.Response()
        self.serve.queries.append(request.query_string)
        return web.json_response(self.serve.describe())


class World:
    """An operator that runs fast over fake nodes, and shortcuts to look at what it does."""

    def __init__(self, directory: Path, version: str, nodes: list[NodeSpec]) -> None:
        self.directory = directory
        self.version = version
        self.faults = Faults()
        self.node_specs = nodes
        self.launched: list[FakeNode] = []
        self.auto_proxies = True
        self.outcome: Callable[[dict[str, Any]], str] = lambda app: "RUNNING"
        """Of the applications of every head launched from now on."""
        self.store = Store(directory / "store", kuberay_version=version)
        self.operator = self._operator()

    def _operator(self) -> Operator:
        return Operator(
            self.store,
            "c-test",
            self.directory / "kuberay",
            self.faults,
            self.version,
            self.node_specs,
            period=0.02,
            kubelet_period=0.02,
            timing=FAST,
            launch=self._launch,  # type: ignore[arg-type]
        )

    def _launch(self, folder: Path, log: Path, env: Any, resources: Any, head: Any) -> FakeNode:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text("Ray runtime started.\n")
        node = FakeNode(dict(env), dict(resources), head)
        if head is None:
            node.serve.outcome = self.outcome
        self.launched.append(node)
        if self.auto_proxies:
            node.serve.proxies[env["RAY_CLOUD_INSTANCE_ID"]] = "HEALTHY"
        return node

    @property
    def heads(self) -> list[FakeNode]:
        return [node for node in self.launched if node.head is None]

    @property
    def workers(self) -> list[FakeNode]:
        return [node for node in self.launched if node.head is not None]

    async def start(self) -> None:
        await self.operator.start()
        if self.store.get("namespaces", None, NAMESPACE) is None:
            self.store.create("namespaces", {"metadata": {"name": NAMESPACE}}, manager="test")

    async def restart(self) -> None:
        """A new sandbox on the same folder: a new store read from disk, a new operator."""
        await self.operator.stop()
        self.store = Store(self.directory / "store", kuberay_version=self.version)
        self.operator = self._operator()
        await self.operator.start()

    async def stop(self) -> None:
        await self.operator.stop()
        for node in self.launched:
            await node.task
            if node.runner is not None:
                await node.runner.cleanup()
            shutil.rmtree(node.temp_dir, ignore_errors=True)

    def apply(self, obj: Object, resource: str = "rayservices") -> Object:
        return self.store.apply(resource, copy.deepcopy(obj), manager="test", force=True)[0]

    def service(self, name: str = "demo") -> Object:
        found = self.store.get("rayservices", NAMESPACE, name)
        assert found is not None
        return found

    def status(self, name: str = "demo") -> dict[str, Any]:
        return dict(self.service(name).get("status") or {})

    def reasons(self, name: str = "demo") -> dict[str, tuple[str, str]]:
        return {
            each["type"]: (each["status"], each["reason"])
            for each in self.status(name).get("conditions") or ()
        }

    def applications(self, side: str = "activeServiceStatus") -> dict[str, str]:
        found = (self.status().get(side) or {}).get("applicationStatuses") or {}
        return {name: each["status"] for name, each in found.items()}

    def pods(self, node_type: str) -> list[Object]:
        return self.store.list("pods", NAMESPACE, labels=f"ray.io/node-type={node_type}")

    def clusters(self) -> list[str]:
        return [objects.name_of(each) for each in self.store.list("rayclusters", NAMESPACE)]

    def events(self, about: str = "") -> list[tuple[str, str]]:
        return [
            (event["reason"], event["message"])
            for event in self.store.list("events")
            if about in event["involvedObject"]["name"]
        ]

    def event_reasons(self) -> set[str]:
        return {reason for reason, _ in self.events()}

    async def until(self, condition: Callable[[], object], what: str = "", timeout: float = 40) -> None:
        """Wait for a condition; on a timeout the assertion shows the state of things."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pods = [
                (objects.name_of(pod), pod["status"].get("phase"), pod["status"].get("containerStatuses"))
                for pod in self.store.list("pods")
            ]
            services = [each.get("status") for each in self.store.list("rayservices")]
            shown = json.dumps([services, pods, self.events()], indent=1)
            raise AssertionError(f"never came true: {what or condition}\n{shown}") from None

    async def ready(self, endpoints: int = 2) -> None:
        def is_ready() -> bool:
            status = self.status()
            return status.get("serviceStatus") == "Running" and status["numServeEndpoints"] == endpoints

        await self.until(is_ready, "Running")


MakeWorld = Callable[..., contextlib.AbstractAsyncContextManager[World]]


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    """`async with make_world("1.7.0", gpus=1) as world`: a running operator with one node."""

    @contextlib.asynccontextmanager
    async def factory(version: str = "1.3.0", *, gpus: int = 1, cpu: int = 8) -> AsyncIterator[World]:
        node = NodeSpec("node-1", "ecs.gn7i-c8g1.2xlarge", cpu, 30.0 * cpu / 8, gpus, 1024)
        world = World(tmp_path, version, [node])
        await world.start()
        try:
            yield world
        finally:
            await world.stop()

    return factory


def _template(name: str, limits: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": "rayproject/ray:2.60.0-py311",
        "resources": {"limits": dict(limits), "requests": dict(limits)},
    }
    return {"spec": {"containers": [container]}}


@pytest.fixture
def rayservice() -> Object:
    """A RayService with one head and one GPU worker, and one application `app`."""
    head = {"rayStartParams": {}, "template": _template("ray-head", {"cpu": "2", "memory": "8Gi"})}
    worker = {
        "groupName": "gpu-group",
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 10,
        "rayStartParams": {},
        "template": _template("ray-worker", {"cpu": "3", "memory": "12Gi", "nvidia.com/gpu": "1"}),
    }
    config = "applications:\n- name: app\n  route_prefix: /\n  import_path: app:entrypoint\n"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "demo", "namespace": NAMESPACE},
        "spec": {
            "serveConfigV2": config,
            "rayClusterConfig": {
                "rayVersion": "2.60.0",
                "headGroupSpec": head,
                "workerGroupSpecs": [worker],
            },
        },
    }
