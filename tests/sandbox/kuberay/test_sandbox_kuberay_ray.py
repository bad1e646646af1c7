"""A RayService on a real local Ray: one cluster, through its whole life."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Store
from raynest_pipeline.sandbox.kuberay import ledger, objects
from raynest_pipeline.sandbox.kuberay.operator import Operator
from raynest_pipeline.sandbox.state import NodeSpec

pytestmark = pytest.mark.ray

_APP = """
import os
from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0.1, "num_gpus": 1})
@serve.ingress(api)
class Model:
    @api.get("/hello")
    def hello(self) -> dict:
        return {"greeting": os.environ["GREETING"], "folder": os.environ["PYTHONPATH"]}


entrypoint = Model.bind()
"""
_NODE = NodeSpec("node-1", "ecs.gn7i-c8g1.2xlarge", 8, 30.0, 1, 1024)


def _service(rayservice: dict[str, Any]) -> dict[str, Any]:
    """The plain RayService with code from a ConfigMap and token authentication."""
    made = copy.deepcopy(rayservice)
    cluster = made["spec"]["rayClusterConfig"]
    cluster["authOptions"] = {"mode": "token"}
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
        spec = group["template"]["spec"]
        spec["volumes"] = [{"name": "code", "configMap": {"name": "code"}}]
        spec["containers"][0] |= {
            "volumeMounts": [{"name": "code", "mountPath": "/opt/app"}],
            "env": [
                {"name": "PYTHONPATH", "value": "/opt/app"},
                {"name": "GREETING", "value": "hello"},
            ],
        }
    return made


def _create(store: Store, rayservice: dict[str, Any]) -> None:
    store.create("namespaces", {"metadata": {"name": "ray"}}, manager="test")
    code = {"metadata": {"name": "code", "namespace": "ray"}, "data": {"app.py": _APP}}
    store.create("configmaps", code, manager="test")
    store.apply("rayservices", rayservice, manager="test", force=True)


async def _until(store: Store, condition: Any, what: str, timeout: float = 120) -> None:
    """Wait for a condition on the RayService's status."""

    def status() -> dict[str, Any]:
        return dict((store.get("rayservices", "ray", "demo") or {}).get("status") or {})

    try:
        async with asyncio.timeout(timeout):
            while not condition(status()):
                await asyncio.sleep(0.1)
    except TimeoutError:
        pods = [pod["status"] for pod in store.list("pods")]
        raise AssertionError(f"never {what}: {json.dumps([status(), pods], indent=1)}") from None


def _alive(pid: int) -> bool:
    """A zombie waits for whoever adopted it and is not ours to wait for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ready(status: dict[str, Any]) -> bool:
    condition = objects.condition({"status": status}, "Ready")
    return condition is not None and condition["status"] == "True"


def _app(status: dict[str, Any]) -> str:
    found = (status.get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    return str((found.get("app") or {}).get("status"))


async def _get(operator: Operator, path: str) -> tuple[int, str]:
    address = operator.resolve("ray", "demo-serve-svc", "serve")
    assert address is not None
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(f"http://{address[0]}:{address[1]}{path}", timeout=aiohttp.ClientTimeout(10)) as answer,
    ):
        return answer.status, await answer.text()


def test_serves_fails_heals_and_leaves_nothing(tmp_path: Path, rayservice: dict[str, Any]) -> None:
    async def scenario() -> None:
        store, faults = Store(tmp_path / "store", kuberay_version="1.7.0"), Faults()
        operator = Operator(store, "c", tmp_path / "kuberay", faults, "1.7.0", [_NODE])
        await operator.start()
        try:
            wanted = _service(rayservice)
            _create(store, wanted)
            await _until(store, lambda status: status.get("numServeEndpoints") == 2, "Ready")
            code, text = await _get(operator, "/hello")
            assert (code, json.loads(text)["greeting"]) == (200, "hello")
            assert json.loads(text)["folder"].endswith("/root/opt/app")
            await _asks_for_the_token(operator)

            faults.set("deploy_failed", message="the weights are gone")
            faults.clear("deploy_failed")
            # Ready alone is a lie. At one time, not at each: on a busy machine a readiness probe may be late.
            await _until(
                store,
                lambda status: _app(status) == "DEPLOY_FAILED" and _ready(status),
                "DEPLOY_FAILED, and Ready all the same",
            )
            assert "the weights are gone" in json.dumps(store.get("rayservices", "ray", "demo"))
            wanted["spec"]["serveConfigV2"] += "  runtime_env: {env_vars: {NONCE: '1'}}\n"
            store.apply("rayservices", wanted, manager="test", force=True)
            await _until(store, lambda status: _app(status) == "RUNNING", "RUNNING again")

            faults.set("unhealthy_app")
            await _until(store, lambda status: _app(status) == "UNHEALTHY", "UNHEALTHY")
            faults.clear()
            pids = operator.processes()
            assert len(pids) > 10
            store.delete("namespaces", None, "ray")
            async with asyncio.timeout(20):
                while operator.processes() or any(_alive(pid) for pid in pids):
                    await asyncio.sleep(0.1)
            assert store.list("pods") == []
        finally:
            await operator.stop(remove=True)
        assert not (tmp_path / "kuberay").exists()

    asyncio.run(scenario())


async def _asks_for_the_token(operator: Operator) -> None:
    address = operator.resolve("ray", "demo-head-svc", "dashboard")
    assert address is not None
    async with aiohttp.ClientSession(trust_env=False) as session:
        url = f"http://{address[0]}:{address[1]}/api/version"
        async with session.get(url) as answer:
            assert answer.status == 401


_VICTIM = """
import asyncio, json, os, signal, sys
from pathlib import Path
from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.store import Store
from raynest_pipeline.sandbox.kuberay.operator import Operator
from raynest_pipeline.sandbox.state import NodeSpec

async def main(folder, service):
    store = Store(folder / "store", kuberay_version="1.3.0")
    node = NodeSpec("node-1", "type", 8, 30.0, 1, 100)
    operator = Operator(store, "c", folder / "kuberay", Faults(), "1.3.0", [node])
    await operator.start()
    store.create("namespaces", {"metadata": {"name": "ray"}}, manager="test")
    store.apply("rayservices", service, manager="test")
    while not any(
        each["type"] == "Ready" and each["status"] == "True"
        for pod in store.list("pods") for each in pod["status"].get("conditions", [])
    ):
        await asyncio.sleep(0.1)
    print(json.dumps(operator.processes()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
"""


def test_killed_sandbox_is_cleaned_up_by_the_next(tmp_path: Path, rayservice: dict[str, Any]) -> None:
    rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"] = []
    root = Path(sys.modules[Operator.__module__].__file__ or "").parents[3]
    victim = subprocess.run(
        [sys.executable, "-c", _VICTIM, str(tmp_path), json.dumps(rayservice)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert victim.returncode == -9, victim.stderr
    left = [pid for pid in json.loads(victim.stdout) if _alive(pid)]
    assert left

    async def scenario() -> None:
        store = Store(tmp_path / "store", kuberay_version="1.3.0")
        operator = Operator(store, "c", tmp_path / "kuberay", Faults(), "1.3.0", [_NODE])
        await operator.start()
        try:
            assert not any(_alive(pid) for pid in left)
            (pod,) = store.list("pods")
            assert not objects.is_true(pod, "Ready")
            assert pod["status"]["containerStatuses"][0]["restartCount"] == 1
        finally:
            await operator.stop(remove=True)
        assert ledger.end_marked([], tmp_path) == []

    asyncio.run(scenario())
