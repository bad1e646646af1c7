"""An emulated account in this process: requests signed by the SDK's own signer, and a clock to turn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote_plus

from raynest_pipeline.sandbox.cloud.clusters import Clusters
from raynest_pipeline.sandbox.cloud.context import Cloud
from raynest_pipeline.sandbox.cloud.engine import Engine
from raynest_pipeline.sandbox.cloud.gateway import Answer, Gateway
from raynest_pipeline.sandbox.cloud.world import World
from raynest_pipeline.sandbox.control import DEFAULT_POLICIES
from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.signature import ALGORITHM, SignedRequest, Verifier

KEY_ID = "LTAItest"
SECRET = "secret"
REGION = "ap-southeast-1"
SERVICE_NAME = "Ray社区版"

VERSIONS = {
    "nest": "2021-06-01",
    "supplier": "2021-05-21",
    "sts": "2015-04-01",
    "ram": "2015-05-01",
    "vpc": "2016-04-28",
    "ecs": "2014-05-26",
    "ros": "2019-09-10",
    "cs": "2015-12-15",
}


class QuietKube:
    """A Kubernetes side without sockets or processes; `log` is what was done to it."""

    def __init__(self, *, cluster_id: str, directory: Path, nodes: list[Any], **_: Any) -> None:
        self.cluster_id = cluster_id
        self.nodes = nodes
        self.namespaces: list[str] = []
        self.log: list[str] = []
        self.port: int | None = None
        directory.mkdir(parents=True, exist_ok=True)

    async def open(self) -> None:
        self.log.append("open")

    async def listen(self, port: int | None) -> int:
        self.log.append(f"listen {port}")
        self.port = port or 40_000
        return self.port

    async def unlisten(self) -> None:
        self.log.append("unlisten")
        self.port = None

    async def create_namespace(self, name: str) -> None:
        self.namespaces.append(name)

    def issue_kubeconfig(self, *, server: str, minutes: int) -> tuple[str, datetime]:
        return f"server: {server}", datetime.fromtimestamp(0, UTC) + timedelta(minutes=minutes)

    def processes(self) -> list[int]:
        return []

    async def close(self, *, remove: bool) -> None:
        self.log.append(f"close {remove}")
        self.port = None


class Refused(Exception):
    """An error answer, with its status, code and whole body."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.code = body.get("Code") or body.get("code")
        self.body = body
        super().__init__(f"{status} {self.code}: {body.get('Message') or body.get('message')}")


class Account:
    """The whole cloud side without listeners; `now` is its time, `pass_time` lets the engine work."""

    def __init__(
        self,
        directory: Path,
        *,
        policies: tuple[str, ...] = DEFAULT_POLICIES,
        root: bool = False,
        kube: type[QuietKube] = QuietKube,
    ) -> None:
        self.now = 1_750_000_000.0
        self.directory = directory
        self.saves = 0
        self.sides: dict[str, QuietKube] = {}
        self.faults = Faults(clock=self.time)
        self.policies, self.root, self.kube = policies, root, kube
        self._open(World(account_id="1000200030004000", user_id="2000300040005000"))

    def _open(self, world: World) -> None:
        clusters = Clusters(self.directory, self.faults, "1.3.0", lambda: self._side)
        self.cloud = Cloud(
            world=world,
            faults=self.faults,
            issue_kubeconfig=clusters.issue_kubeconfig,
            policies=self.policies,
            root=self.root,
            clock=self.time,
            save=self._save,
        )
        self.engine = Engine(self.cloud, clusters)
        self.gateway = Gateway(self.cloud, Verifier(KEY_ID, SECRET, clock=self.time))

    def restart(self) -> None:
        """Forget everything but what the state folder would hold, then go on."""
        saved = json.loads(json.dumps(self.cloud.world.dump()))
        self.faults = Faults(json.loads(json.dumps(self.faults.dump())), clock=self.time)
        self.sides = {}
        self._open(World.load(saved))
        asyncio.run(self.engine.resume())

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Turn the clock, ticking on the way."""

        async def run() -> None:
            end = self.now + seconds
            while self.now < end:
                self.now = min(end, self.now + step)
                await self.engine.tick()

        asyncio.run(run())

    def send(self, request: SignedRequest) -> Answer:
        return self.gateway.answer(request)

    def ask(self, product: str, action: str, **params: Any) -> Any:
        """An RPC call with query parameters; its answer as JSON, or Refused."""
        return _open_answer(self.send(rpc(product, action, params, self.now)))

    def roa(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """A Container Service call; its answer as JSON, or Refused."""
        return _open_answer(self.send(roa(method, path, query, body, self.now)))

    def service_id(self) -> str:
        return str(self.ask("nest", "GetService", RegionId=REGION, ServiceName=SERVICE_NAME)["ServiceId"])

    def create(self, name: str = "ray-one", token: str = "", **changes: Any) -> str:
        """Order the service; the instance's id. `changes` go into the template parameters."""
        return str(
            self.ask("nest", "CreateServiceInstance", **order(self, name, token, **changes))[
                "ServiceInstanceId"
            ]
        )

    def deploy(self, name: str = "ray-one", **changes: Any) -> tuple[str, str]:
        """A deployed instance and its cluster's id."""
        instance_id = self.create(name, **changes)
        self.pass_time(3.2)
        assert self.instance(instance_id)["Status"] == "Deployed"
        return instance_id, self.cloud.world.instances[instance_id].cluster_id

    def instance(self, instance_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(
            "nest", "GetServiceInstance", RegionId=REGION, ServiceInstanceId=instance_id
        )
        return found

    def delete(self, instance_id: str) -> None:
        self.ask("nest", "DeleteServiceInstances", RegionId=REGION, **{"ServiceInstanceId.1": instance_id})

    def allocate(self, **params: Any) -> str:
        given = {"RegionId": REGION, "InternetChargeType": "PayByTraffic", "Bandwidth": "100", **params}
        return str(self.ask("vpc", "AllocateEipAddress", **given)["AllocationId"])

    def eip(self, allocation_id: str) -> dict[str, Any] | None:
        """An address as it is described, or None when there is none."""
        body = self.ask("vpc", "DescribeEipAddresses", RegionId=REGION, AllocationId=allocation_id)
        found = body["EipAddresses"]["EipAddress"]
        return dict(found[0]) if found else None

    def bind(self, cluster_id: str, eip_id: str) -> str:
        """Start to bind an address; the task's id."""
        body = {"api_server_eip": True, "api_server_eip_id": eip_id}
        return str(self.roa("PUT", f"/api/v2/clusters/{cluster_id}", body)["task_id"])

    def unbind(self, cluster_id: str) -> str:
        return str(self.roa("PUT", f"/api/v2/clusters/{cluster_id}", {"api_server_eip": False})["task_id"])

    def endpoint(self, cluster_id: str) -> str:
        """The public address of the API server, or ""."""
        url = json.loads(self.roa("GET", f"/clusters/{cluster_id}")["master_url"])
        return str(url.get("api_server_endpoint", ""))

    def owned(self) -> list[str]:
        """The kinds of what is being paid for."""
        return sorted(each.kind for each in self.cloud.world.purchases if each.ended is None)

    def _side(self, *, cluster_id: str, **given: Any) -> QuietKube:
        self.sides[cluster_id] = self.kube(cluster_id=cluster_id, **given)
        return self.sides[cluster_id]

    def _save(self) -> None:
        self.saves += 1


def order(account: Account, name: str, token: str = "", **changes: Any) -> dict[str, Any]:
    """What CreateServiceInstance needs to deploy a cluster, with changes; a None takes one away."""
    given = {
        "RegionId": REGION,
        "CsOptions": "NewAck",
        "ZoneId": f"{REGION}a",
        "WorkerInstanceType": "ecs.gn7i-c8g1.2xlarge",
        "WorkerInstanceCount": 1,
        "WorkerSystemDiskSize": 1024,
        "LoginPassword": "Sandbox+12&=~*",
        "ChartValues": {},
        **changes,
    }
    return {
        "RegionId": REGION,
        "ServiceId": account.service_id(),
        "Name": name,
        "ClientToken": token,
        "Parameters": json.dumps({key: value for key, value in given.items() if value is not None}),
        "Tag.1.Key": "raynest",
        "Tag.1.Value": name,
    }


def rpc(product: str, action: str, params: Mapping[str, Any], now: float, **headers: str) -> SignedRequest:
    """A signed RPC request."""
    query = {key: str(value) for key, value in params.items()}
    return signed("POST", "/", query, b"", {"x-acs-action": action, **headers}, VERSIONS[product], now)


def roa(method: str, path: str, query: Mapping[str, Any], body: Any, now: float) -> SignedRequest:
    """A signed Container Service request, with an action's name that says nothing, as the SDK sends one."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = {"x-acs-action": "Any"}
    if content:
        headers["content-type"] = "application/json; charset=utf-8"
    text = {key: str(value) for key, value in query.items()}
    return signed(method, path, text, content, headers, VERSIONS["cs"], now)


def signed(
    method: str,
    path: str,
    query: Mapping[str, str],
    body: bytes,
    headers: Mapping[str, str],
    version: str,
    now: float,
    *,
    key_id: str = KEY_ID,
    secret: str = SECRET,
) -> SignedRequest:
    """Sign with the SDK's own code, then write the query as the SDK's HTTP client does (space as +)."""
    from alibabacloud_tea_openapi.utils import Utils

    content_hash = hashlib.sha256(body).hexdigest()
    all_headers = {
        "host": "127.0.0.1",
        "accept": "application/json",
        "x-acs-version": version,
        "x-acs-date": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "x-acs-signature-nonce": secrets.token_hex(16),
        "x-acs-content-sha256": content_hash,
        **headers,
    }
    request = SimpleNamespace(method=method, pathname=path, query=dict(query), headers=all_headers)
    authorization = Utils.get_authorization(request, ALGORITHM, content_hash, key_id, secret)
    target = path
    if query:
        target += "?" + "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in query.items())
    return SignedRequest(method, target, {**all_headers, "authorization": authorization}, body)


def _open_answer(answer: Answer) -> Any:
    body = json.loads(answer.body)
    if answer.status != 200:
        raise Refused(answer.status, body)
    return body
