"""A whole cluster, with a stand-in for the operator: opened, exposed, restarted, revoked, removed."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import yaml

from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.kube.cluster import KubeCluster
from raynest_pipeline.sandbox.kube.errors import ApiError

Object = dict[str, Any]


class StandIn:
    """An operator that has nothing to operate."""

    made: list[StandIn] = []

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.log: list[str] = []
        StandIn.made.append(self)

    async def start(self) -> None:
        self.log.append("start")

    async def stop(self, *, remove: bool) -> None:
        self.log.append(f"stop remove={remove}")

    def processes(self) -> list[int]:
        return [1, 2]

    def resolve(self, namespace: str, service: str, port: str) -> None:
        return None

    def pod_address(self, namespace: str, pod: str, port: str) -> None:
        return None


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("raynest_pipeline.sandbox.kuberay.operator")
    module.Operator = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    StandIn.made.clear()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def cluster(tmp_path: Path, faults: Faults) -> Callable[[], KubeCluster]:
    """Makes the same cluster again and again, as a restarted sandbox does."""

    def make() -> KubeCluster:
        return KubeCluster(
            cluster_id="c123", directory=tmp_path / "c123", faults=faults, kuberay_version="1.7.0", nodes=[]
        )

    return make


async def get(kubeconfig: str, path: str, folder: Path) -> tuple[int, Any]:
    """A request with the credentials of a kubeconfig."""
    config = yaml.safe_load(kubeconfig)
    user, server = config["users"][0]["user"], config["clusters"][0]["cluster"]
    pem = folder / "client.pem"
    pem.write_bytes(
        b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key"))
    )
    ca = base64.b64decode(server["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=ca)
    context.load_cert_chain(pem)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(server["server"] + path) as answer,
    ):
        return answer.status, await answer.json()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def inside() -> None:
        await story()

    asyncio.run(inside())


def test_a_kubeconfig_leads_into_the_cluster(cluster: Callable[[], KubeCluster], tmp_path: Path) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        port = await made.listen(None)
        text, expires = made.issue_kubeconfig(server=f"https://127.0.0.1:{port}", minutes=60)
        assert timedelta(minutes=58) < expires - datetime.now(UTC) <= timedelta(minutes=60)
        status, body = await get(text, "/api/v1/namespaces", tmp_path)
        assert status == 200
        assert "kube-system" in [one["metadata"]["name"] for one in body["items"]]
        await made.close()

    run(story)


def test_the_kubeconfig_is_of_the_shape_that_the_cloud_gives(cluster: Callable[[], KubeCluster]) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        config = yaml.safe_load(made.issue_kubeconfig(server="https://203.0.113.7:6443", minutes=15)[0])
        assert config["clusters"][0]["cluster"]["server"] == "https://203.0.113.7:6443"
        assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
        assert config["current-context"] == config["contexts"][0]["name"]
        await made.close()

    run(story)


def test_it_comes_back_the_same_after_a_restart(cluster: Callable[[], KubeCluster], tmp_path: Path) -> None:
    async def story() -> None:
        first = cluster()
        await first.open()
        await first.create_namespace("demo")
        await first.create_namespace("demo")
        port = await first.listen(None)
        text, _ = first.issue_kubeconfig(server=f"https://127.0.0.1:{port}", minutes=60)
        before = await get(text, "/api/v1/namespaces/demo", tmp_path)
        await first.close()
        second = cluster()
        await second.open()
        assert await second.listen(port) == port
        assert await get(text, "/api/v1/namespaces/demo", tmp_path) == before
        await second.close()

    run(story)


def test_a_taken_port_is_not_fought_over(cluster: Callable[[], KubeCluster]) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = other.getsockname()[1]
            assert await made.listen(taken) != taken
        await made.close()

    run(story)


def test_without_its_address_the_cluster_goes_on_unseen(
    cluster: Callable[[], KubeCluster], tmp_path: Path
) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        port = await made.listen(None)
        text, _ = made.issue_kubeconfig(server=f"https://127.0.0.1:{port}", minutes=60)
        await made.unlisten()
        with pytest.raises(aiohttp.ClientConnectorError):
            await get(text, "/version", tmp_path)
        await made.create_namespace("meanwhile")
        assert await made.listen(port) == port
        assert (await get(text, "/api/v1/namespaces/meanwhile", tmp_path))[0] == 200
        assert await made.listen(port) == port
        await made.close()

    run(story)


def test_an_expired_token_fault_stops_old_kubeconfigs_only(
    cluster: Callable[[], KubeCluster], faults: Faults, tmp_path: Path
) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        server = f"https://127.0.0.1:{await made.listen(None)}"
        old, _ = made.issue_kubeconfig(server=server, minutes=60)
        faults.set("expired_token")
        status, body = await get(old, "/api/v1/namespaces", tmp_path)
        assert (status, body["reason"]) == (401, "Unauthorized")
        new, _ = made.issue_kubeconfig(server=server, minutes=60)
        assert (await get(new, "/api/v1/namespaces", tmp_path))[0] == 200
        await made.close()
        # The fault outlives a restart.
        again = cluster()
        await again.open()
        server = f"https://127.0.0.1:{await again.listen(int(server.rpartition(':')[2]))}"
        assert (await get(old, "/api/v1/namespaces", tmp_path))[0] == 401
        assert (await get(new, "/api/v1/namespaces", tmp_path))[0] == 200
        faults.clear("expired_token")
        assert (await get(old, "/api/v1/namespaces", tmp_path))[0] == 200
        faults.set("throttling")
        assert (await get(old, "/api/v1/namespaces", tmp_path))[0] == 200
        await again.close()

    run(story)


def test_the_operator_lives_as_long_as_the_cluster(
    cluster: Callable[[], KubeCluster], tmp_path: Path
) -> None:
    async def story() -> None:
        made = cluster()
        assert made.processes() == []
        await made.open()
        (operator,) = StandIn.made
        assert operator.arguments[:2] == (made.store, "c123")
        assert made.processes() == [1, 2]
        await made.close(remove=True)
        assert operator.log == ["start", "stop remove=True"]
        assert made.processes() == []
        assert not (tmp_path / "c123").exists()

    run(story)


def test_a_removed_cluster_ignores_faults(
    cluster: Callable[[], KubeCluster], faults: Faults, tmp_path: Path
) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        await made.close(remove=True)
        faults.set("expired_token")
        assert not (tmp_path / "c123").exists()

    run(story)


def test_a_closed_cluster_says_so(cluster: Callable[[], KubeCluster]) -> None:
    async def story() -> None:
        made = cluster()
        with pytest.raises(RuntimeError, match="c123 is not open"):
            await made.listen(None)
        with pytest.raises(RuntimeError, match="c123 is not open"):
            made.issue_kubeconfig(server="https://x", minutes=15)

    run(story)


def test_tokens_for_people_of_rank_and_none(cluster: Callable[[], KubeCluster]) -> None:
    async def story() -> None:
        made = cluster()
        await made.open()
        admin = made.authority.by_token(made.issue_token())
        other = made.authority.by_token(made.issue_token("someone", admin=False))
        assert admin is not None
        assert other is not None
        assert (admin.is_admin, other.is_admin, other.user) == (True, False, "someone")
        await made.close()

    run(story)


@pytest.mark.parametrize("release", ["1.3.0", "1.7.0"])
def test_a_fresh_cluster_shows_which_kuberay_it_has(tmp_path: Path, faults: Faults, release: str) -> None:
    async def story() -> None:
        made = KubeCluster(
            cluster_id="c", directory=tmp_path, faults=faults, kuberay_version=release, nodes=[]
        )
        await made.open()
        crd = made.store.get("customresourcedefinitions", None, "rayservices.ray.io")
        assert crd is not None
        assert crd["metadata"]["labels"]["app.kubernetes.io/version"] == release
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        declared = "authOptions" in spec["rayClusterConfig"]["properties"]
        assert declared is (release == "1.7.0")
        operator = made.store.get("deployments", "kuberay-operator", "kuberay-operator")
        assert operator is not None
        container = operator["spec"]["template"]["spec"]["containers"][0]
        assert container["image"] == f"quay.io/kuberay/operator:v{release}"
        await made.close()
        again = KubeCluster(
            cluster_id="c", directory=tmp_path, faults=faults, kuberay_version=release, nodes=[]
        )
        await again.open()
        assert again.store.get("customresourcedefinitions", None, "rayservices.ray.io") == crd
        await again.close()

    run(story)


def test_a_version_that_does_not_exist_is_refused(tmp_path: Path, faults: Faults) -> None:
    async def story() -> None:
        made = KubeCluster(cluster_id="c", directory=tmp_path, faults=faults, kuberay_version="new", nodes=[])
        with pytest.raises(ValueError, match="not a KubeRay version"):
            await made.open()

    run(story)


def test_api_errors_know_their_status() -> None:
    status = ApiError(404, "gone", reason="NotFound", details={"name": "x"}).status()
    assert (status["code"], status["reason"], status["details"]) == (404, "NotFound", {"name": "x"})
    bare = ApiError(500, "broken").status()
    assert "reason" not in bare
    assert "details" not in bare
