"""The client against the sandbox's API server: apply, watch, proxy, permissions, on both KubeRay releases."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from raynest_pipeline.chain.desired import with_counts
from raynest_pipeline.errors import Verdict
from raynest_pipeline.files import private_dir, write_atomic
from raynest_pipeline.kube import kubeconfig
from raynest_pipeline.kube.client import CONFIG_MAP, NAMESPACE, RAY_CLUSTER, RAY_SERVICE, SERVICE, KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.rayservice import manifest, serve, status
from raynest_pipeline.sandbox.kube.api import ApiServer
from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority
from raynest_pipeline.sandbox.kube.bootstrap import bootstrap
from raynest_pipeline.sandbox.kube.store import Store
from raynest_pipeline.settings import RayServiceSettings, Settings
from raynest_pipeline.waiting import Deadline, SystemClock

AUTH_OPTIONS = ("spec", "rayClusterConfig", "authOptions")


class Loop:
    """An event loop in a thread, for the server."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Any) -> Any:
        async def work() -> Any:
            return function()

        return self.run(work())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


class Nodes:
    """A data plane that leads every service to one address."""

    def __init__(self) -> None:
        self.address: tuple[str, int] | None = None

    def resolve(self, namespace: str, service: str, port: str) -> tuple[str, int] | None:
        return self.address

    def pod_address(self, namespace: str, pod: str, port: str) -> tuple[str, int] | None:
        return self.address

    async def logs(
        self, namespace: str, pod: str, container: str | None, *, tail: int | None, follow: bool
    ) -> AsyncIterator[bytes]:
        yield b"a line\n"


@dataclass
class Sandbox:
    """A running API server on which nothing reconciles."""

    loop: Loop
    store: Store
    authority: Authority
    nodes: Nodes
    url: str
    folder: Path

    def kubeconfig(self, *, admin: bool = True, minutes: int = 60) -> Path:
        groups = (ADMINS,) if admin else ()
        certificate, key, _ = self.authority.issue_certificate("someone", groups, minutes=minutes)
        user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
        cluster = {"server": self.url, "certificate-authority-data": encoded(self.authority.ca_pem)}
        text = yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": cluster}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": user}],
            }
        )
        path = self.folder / "kube" / f"config-{admin}"
        private_dir(path.parent)
        write_atomic(path, kubeconfig.with_namespace(text, "raynest", "demo"))
        return path

    def write_status(self, name: str, value: dict[str, Any]) -> None:
        """As the operator would."""

        self.loop.call(
            lambda: self.store.update_status("rayservices", "demo", name, value, manager="kuberay-operator")
        )


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(params=["1.3.0", "1.7.0"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def sandbox(tmp_path: Path, version: str) -> Iterator[Sandbox]:
    loop, nodes = Loop(), Nodes()
    store = Store(None, kuberay_version=version)
    authority = Authority(tmp_path, name="c1")
    bootstrap(store, version)
    server = ApiServer(store, authority, nodes)
    port = loop.run(server.open(None))
    try:
        yield Sandbox(loop, store, authority, nodes, f"https://127.0.0.1:{port}", tmp_path)
    finally:
        loop.run(server.close())
        loop.stop()


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[KubeClient]:
    with KubeClient.from_file(sandbox.kubeconfig()) as made:
        made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}})
        yield made


def objects(token_auth: bool = False, nonce: str | None = None, **changes: Any) -> list[dict[str, Any]]:
    return manifest.build_manifest(
        Settings(ray_service=RayServiceSettings(name="sd", **changes)),
        serving_files=manifest.source_files(),
        token_auth=token_auth,
        namespace="demo",
        nonce=nonce,
    )


def seconds(count: float) -> Deadline:
    return Deadline.after(count, SystemClock())


def test_our_manifest_is_accepted_as_it_is(client: KubeClient) -> None:
    for obj in objects():
        client.apply(obj, dry_run=True)
        assert (
            client.get(
                CONFIG_MAP if obj["kind"] == "ConfigMap" else RAY_SERVICE, obj["metadata"]["name"], "demo"
            )
            is None
        )
        stored = client.apply(obj)
        assert stored["metadata"]["labels"] == manifest.owner_labels("sd")
    assert [m["metadata"]["name"] for m in client.list(CONFIG_MAP, "demo", labels=manifest.OWNER_LABELS)] == [
        objects()[0]["metadata"]["name"]
    ]
    live = client.get(RAY_SERVICE, "sd", "demo")
    assert live is not None
    managers = {(m["manager"], m["operation"]) for m in live["metadata"]["managedFields"]}
    assert ("raynest", "Apply") in managers


def test_the_same_manifest_again_changes_nothing(client: KubeClient) -> None:
    first = client.apply(objects()[-1])
    again = client.apply(objects()[-1])
    assert again["metadata"]["generation"] == first["metadata"]["generation"]
    rebuilt = client.apply(objects(nonce="n1")[-1])
    assert rebuilt["metadata"]["generation"] == first["metadata"]["generation"] + 1
    assert manifest.nonce_of(rebuilt) == "n1"


def test_token_authentication_is_offered_by_the_newer_release_only(client: KubeClient, version: str) -> None:
    offered = client.declares(RAY_SERVICE, AUTH_OPTIONS)
    assert offered is (version == "1.7.0")
    assert client.declares(RAY_SERVICE, ("spec", "serveConfigV2"))
    if offered:
        client.apply(objects(token_auth=True)[-1])
        return
    with pytest.raises(KubeError) as caught:
        client.apply(objects(token_auth=True)[-1])
    assert (caught.value.status, caught.value.verdict) == (500, Verdict.PERMANENT)
    assert "authOptions: field not declared in schema" in caught.value.why


def test_gpus_or_none_and_every_way_of_shipping_code(client: KubeClient) -> None:
    for changes in (
        {"gpus_per_replica": 0, "tolerations": ()},
        {"code": "image", "pip_packages": ()},
        {"code": "working_dir", "working_dir": "https://example.org/code.zip", "env": {"A": "b"}},
    ):
        for obj in objects(**changes):
            client.apply(obj)


STOCK = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: stable-diffusion}
spec:
  serveConfigV2: |
    applications:
      - name: stable_diffusion
        import_path: stable_diffusion.stable_diffusion:entrypoint
        runtime_env: {working_dir: "https://example.org/code.zip", pip: [diffusers]}
  rayClusterConfig:
    rayVersion: "2.46.0"
    headGroupSpec:
      rayStartParams: {}
      template:
        spec:
          containers:
            - name: ray-head
              image: rayproject/ray-ml:2.46.0.0e19ea-py39-gpu
              resources: {limits: {cpu: "2", memory: 8Gi}, requests: {cpu: "2", memory: 8Gi}}
              volumeMounts: [{mountPath: /tmp/ray, name: ray-logs}]
          volumes: [{name: ray-logs, emptyDir: {}}]
    workerGroupSpecs:
      - groupName: gpu-group
        replicas: 1
        minReplicas: 1
        maxReplicas: 10
        rayStartParams: {}
        template:
          spec:
            containers:
              - name: ray-worker
                image: rayproject/ray-ml:2.46.0.0e19ea-py39-gpu
                resources: {limits: {cpu: 4, memory: 16Gi, nvidia.com/gpu: 1}}
            tolerations: [{key: ray.io/node-type, operator: Equal, value: worker, effect: NoSchedule}]
"""


def test_the_stock_sample_is_applied_as_it_is_and_with_a_nonce(client: KubeClient, tmp_path: Path) -> None:
    (tmp_path / "stock.yaml").write_text(STOCK)
    loaded = manifest.load_user_manifest(str(tmp_path / "stock.yaml"), namespace="demo")
    stored = client.apply(loaded.ray_service)
    assert stored["spec"]["serveConfigV2"] == loaded.ray_service["spec"]["serveConfigV2"]
    rebuilt = client.apply(manifest.with_nonce(loaded.ray_service, "n1"))
    assert rebuilt["metadata"]["generation"] == stored["metadata"]["generation"] + 1
    assert manifest.nonce_of(rebuilt) == "n1"


def test_another_manager_owns_a_field_until_it_is_forced(client: KubeClient, sandbox: Sandbox) -> None:
    obj = objects()[-1]
    obj["metadata"] = {"name": "sd", "namespace": "demo"}
    sandbox.loop.call(lambda: sandbox.store.apply("rayservices", obj, manager="other", force=True))
    changed = objects(nonce="n1")[-1]
    with pytest.raises(KubeError) as caught:
        client.apply(changed, force=False)
    assert caught.value.status == 409
    assert ".spec.serveConfigV2" in caught.value.why
    assert manifest.nonce_of(client.apply(changed)) == "n1"


def test_a_missing_namespace(client: KubeClient) -> None:
    obj = objects()[-1]
    obj["metadata"]["namespace"] = "nowhere"
    with pytest.raises(KubeError) as caught:
        client.apply(obj)
    assert caught.value.verdict is Verdict.GONE
    assert 'namespaces "nowhere" not found' in caught.value.why


def test_the_watch_follows_a_service_from_nothing_to_ready_and_away(
    client: KubeClient, sandbox: Sandbox, tools: Any
) -> None:
    seen = []
    ready = tools.data("objects")["get_ready"]["status"]
    for event in client.watch(RAY_SERVICE, "demo", "sd", deadline=seconds(30), tick=1):
        seen.append(event.type)
        if event.type == "TICK" and event.object is None and len(seen) == 1:
            client.apply(objects()[-1])
        elif event.type == "ADDED":
            sandbox.write_status("sd", ready)
        elif (
            event.type == "MODIFIED" and event.object and "deletionTimestamp" not in event.object["metadata"]
        ):
            parsed = status.parse(event.object)
            if parsed.active.apps:
                assert status.judge(parsed, generation=1).state is status.ReadyState.READY
                client.delete(RAY_SERVICE, "sd", "demo", propagation="Background")
        elif event.type == "DELETED":
            break
    assert [kind for kind in seen if kind != "TICK"][0] == "ADDED"
    assert seen[-1] == "DELETED"


def test_deletion_waits_for_finalizers(client: KubeClient, sandbox: Sandbox) -> None:
    obj = objects()[-1]
    obj["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]
    client.apply(obj)
    assert client.delete(RAY_SERVICE, "sd", "demo", propagation="Background") is True
    live = client.get(RAY_SERVICE, "sd", "demo")
    assert live is not None and status.parse(live).deleting
    del obj["metadata"]["finalizers"]
    client.apply(obj)
    assert client.get(RAY_SERVICE, "sd", "demo") is None
    assert client.delete(RAY_SERVICE, "sd", "demo") is False


def test_serve_is_reached_through_the_proxy(
    client: KubeClient, sandbox: Sandbox, tools: Any, tmp_path: Path
) -> None:
    target = client.service_proxy("demo", "sd-serve-svc", 8000)
    with pytest.raises(KubeError) as missing:
        serve.routes(target)
    assert missing.value.status == 404
    spec = {"selector": {"a": "b"}, "ports": [{"name": "serve", "port": 8000}]}
    client.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sd-serve-svc", "namespace": "demo"},
            "spec": spec,
        }
    )
    assert client.get(SERVICE, "sd-serve-svc", "demo") is not None
    with pytest.raises(KubeError) as empty:
        serve.routes(target)
    assert (empty.value.status, empty.value.verdict) == (503, Verdict.RETRYABLE)
    with tools.serving(None, tmp_path) as backend:
        backend.require_token = False
        backend.on("GET /-/routes", {"/": "raynest"})
        sandbox.nodes.address = ("127.0.0.1", int(backend.url.rsplit(":", 1)[1]))
        assert serve.routes(target) == {"/": "raynest"}
        assert "authorization" not in backend.asked[-1].headers


def test_credentials_end_and_are_revoked(sandbox: Sandbox, client: KubeClient) -> None:
    text = sandbox.kubeconfig(minutes=30).read_text()
    end = kubeconfig.expires_at(text)
    assert end is not None
    assert timedelta(minutes=28) < end - datetime.now(UTC) < timedelta(minutes=32)
    sandbox.loop.call(sandbox.authority.revoke_issued)
    with pytest.raises(KubeError) as caught:
        client.get(NAMESPACE, "demo")
    assert caught.value.status == 401
    assert "fresh kubeconfig" in caught.value.fix


def test_somebody_without_permission(sandbox: Sandbox) -> None:
    with KubeClient.from_file(sandbox.kubeconfig(admin=False)) as nobody, pytest.raises(KubeError) as caught:
        nobody.apply(objects()[-1])
    assert (caught.value.status, caught.value.verdict) == (403, Verdict.PERMANENT)
    assert 'User "someone" cannot patch resource "rayservices"' in caught.value.why


def test_a_running_cluster_is_scaled_and_keeps_the_rest(sandbox: Sandbox, client: KubeClient) -> None:
    spec = objects()[-1]["spec"]["rayClusterConfig"]
    metadata = {"name": "sd-abcde", "namespace": "demo", "annotations": {"ray.io/kuberay-version": "v1"}}
    made = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}
    sandbox.loop.call(lambda: sandbox.store.create("rayclusters", made, manager="kuberay-operator"))
    before = client.get(RAY_CLUSTER, "sd-abcde", "demo")
    assert before is not None
    group = before["spec"]["workerGroupSpecs"][0]
    counts = {group["groupName"]: {"replicas": 2, "minReplicas": 2, "maxReplicas": 2}}
    after = client.apply(with_counts(before, counts))
    assert after["spec"]["workerGroupSpecs"] == [{**group, **counts[group["groupName"]]}]
    assert after["spec"]["headGroupSpec"] == before["spec"]["headGroupSpec"]
    assert after["metadata"]["annotations"] == metadata["annotations"]
    assert client.apply(with_counts(before, counts))["metadata"]["generation"] == 2
