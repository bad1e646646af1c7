"""Against any real cluster that has KubeRay: `pytest -m cluster --kubeconfig FILE`.

Works in a namespace of its own and deletes it; starts no pod: the RayService is only checked by the server.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from raynest_pipeline.errors import Verdict
from raynest_pipeline.kube.client import CONFIG_MAP, NAMESPACE, RAY_SERVICE, KubeClient
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.rayservice import manifest
from raynest_pipeline.settings import RayServiceSettings, Settings
from raynest_pipeline.waiting import Deadline, SystemClock

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Iterator[KubeClient]:
    path = request.config.getoption("--kubeconfig", default=None)
    if not path:
        pytest.skip("needs --kubeconfig FILE")
    with KubeClient.from_file(Path(path)) as made:
        yield made


@pytest.fixture(scope="module")
def namespace(client: KubeClient) -> Iterator[str]:
    name = f"raynest-test-{uuid.uuid4().hex[:8]}"
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    client.delete(NAMESPACE, name, propagation="Background")


def test_it_is_a_kubernetes_with_kuberay(client: KubeClient) -> None:
    assert client.server_version().startswith("v1.")
    assert client.declares(RAY_SERVICE, ("spec", "serveConfigV2"))
    assert not client.declares(RAY_SERVICE, ("spec", "nope"))


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_server_accepts_our_manifest(client: KubeClient, namespace: str, gpus: int) -> None:
    token_auth = client.declares(RAY_SERVICE, ("spec", "rayClusterConfig", "authOptions"))
    objects = manifest.build_manifest(
        Settings(ray_service=RayServiceSettings(name="check", gpus_per_replica=gpus)),
        serving_files=manifest.source_files(),
        token_auth=token_auth,
        namespace=namespace,
    )
    for obj in objects:
        assert client.apply(obj, dry_run=True)["metadata"]["name"] == obj["metadata"]["name"]
    assert client.get(RAY_SERVICE, "check", namespace) is None


def test_the_server_refuses_a_field_that_it_does_not_know(client: KubeClient, namespace: str) -> None:
    metadata = {"name": "check", "namespace": namespace}
    obj = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"nope": 1}}
    with pytest.raises(KubeError) as caught:
        client.apply(obj, dry_run=True)
    assert caught.value.verdict is Verdict.PERMANENT
    assert "nope" in caught.value.why


def test_an_object_is_followed_from_nothing_to_nothing(client: KubeClient, namespace: str) -> None:
    metadata = {"name": "watched", "namespace": namespace}
    seen = []
    deadline = Deadline.after(60, SystemClock())
    for event in client.watch(CONFIG_MAP, namespace, "watched", deadline=deadline, tick=2):
        seen.append(event.type)
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"n": str(len(seen))}}
        if event.type == "TICK" and event.object is None and len(seen) == 1 or event.type == "ADDED":
            client.apply(obj)
        elif event.type == "MODIFIED":
            assert client.delete(CONFIG_MAP, "watched", namespace, propagation="Background")
        elif event.type == "DELETED":
            break
    assert [kind for kind in seen if kind != "TICK"] == ["ADDED", "MODIFIED", "DELETED"]
    assert client.delete(CONFIG_MAP, "watched", namespace) is False


def test_a_missing_service_is_told_from_one_without_pods(client: KubeClient, namespace: str) -> None:
    target = client.service_proxy(namespace, "nothing", 8000)
    with target.client() as http:
        assert http.get(target.url("/")).status_code == 404
