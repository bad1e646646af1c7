"""The official Python client against the sandbox's API server: what the project asks of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

kubernetes = pytest.importorskip("kubernetes")

Object = dict[str, Any]


@pytest.fixture
def client(live: Any, kubeconfig: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An ApiClient with the certificate of the cluster's kubeconfig."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    live.call(lambda: live.bench.store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t"))
    config = kubernetes.client.Configuration()
    loader = kubernetes.config.kube_config.KubeConfigLoader(yaml.safe_load(kubeconfig(live)))
    loader.load_and_set(config)
    with kubernetes.client.ApiClient(config) as api_client:
        yield api_client


@pytest.fixture
def services(client: Any) -> Any:
    dynamic = kubernetes.dynamic.DynamicClient(client)
    return dynamic.resources.get(api_version="ray.io/v1", kind="RayService")


def apply(services: Any, body: Object, **options: Any) -> Any:
    wanted = {"namespace": "demo", "field_manager": "dagster", **options}
    return services.server_side_apply(body=body, name=body["metadata"]["name"], **wanted)


def test_server_side_apply(services: Any, manifest: Callable[..., Object]) -> None:
    shown = apply(services, manifest(), dry_run="All")
    assert shown.metadata.uid
    made = apply(services, manifest())
    again = apply(services, manifest(), force_conflicts=True)
    assert made.metadata.resourceVersion == again.metadata.resourceVersion
    assert made.spec.rayClusterConfig.workerGroupSpecs[0].numOfHosts == 1


def test_errors_come_as_the_classes_that_the_client_makes_of_them(
    services: Any, manifest: Callable[..., Object]
) -> None:
    exceptions = kubernetes.dynamic.exceptions
    apply(services, manifest())
    with pytest.raises(exceptions.ConflictError, match="Apply failed with 2 conflicts"):
        apply(services, manifest(image="ray:2"), field_manager="other")
    wrong = manifest()
    wrong["spec"]["nope"] = 1
    with pytest.raises(exceptions.InternalServerError, match="field not declared in schema"):
        apply(services, wrong)
    with pytest.raises(exceptions.NotFoundError):
        services.get(name="other", namespace="demo")


def test_a_created_object_is_lost_by_the_custom_objects_client(
    client: Any, manifest: Callable[..., Object]
) -> None:
    """The client's own trap (201 is not in its response map), which a server that answers 200 would hide."""
    custom = kubernetes.client.CustomObjectsApi(client)
    place = ("ray.io", "v1", "demo", "rayservices", "s1")
    options = {"field_manager": "dagster", "_content_type": "application/apply-patch+yaml"}
    assert custom.patch_namespaced_custom_object(*place, manifest(), **options) is None
    again = custom.patch_namespaced_custom_object(*place, manifest(), **options)
    assert again["metadata"]["name"] == "s1"


def test_a_watch_sees_changes_until_its_time_is_up(
    live: Any, client: Any, services: Any, manifest: Callable[..., Object]
) -> None:
    custom = kubernetes.client.CustomObjectsApi(client)
    listed = custom.list_namespaced_custom_object("ray.io", "v1", "demo", "rayservices")
    seen = []
    watch = kubernetes.watch.Watch()
    stream = watch.stream(
        custom.list_namespaced_custom_object,
        "ray.io",
        "v1",
        "demo",
        "rayservices",
        resource_version=listed["metadata"]["resourceVersion"],
        timeout_seconds=20,
    )

    def write() -> None:
        apply(services, manifest())
        services.delete(name="s1", namespace="demo")

    writer = threading.Thread(target=write)
    writer.start()
    for event in stream:
        seen.append((event["type"], event["object"]["metadata"]["name"]))
        if event["type"] == "DELETED":
            watch.stop()
    writer.join(10)
    assert seen == [("ADDED", "s1"), ("DELETED", "s1")]


def test_a_watch_from_too_far_back_raises_410(client: Any) -> None:
    core = kubernetes.client.CoreV1Api(client)
    with pytest.raises(kubernetes.client.exceptions.ApiException) as caught:
        list(
            kubernetes.watch.Watch().stream(
                core.list_namespaced_pod, "demo", resource_version="1", timeout_seconds=5
            )
        )
    assert caught.value.status == 410


def test_typed_lists_logs_and_events(live: Any, client: Any) -> None:
    core = kubernetes.client.CoreV1Api(client)

    def make() -> None:
        store = live.bench.store
        pod = {
            "metadata": {"name": "p", "namespace": "demo"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        pod = store.create("pods", pod, manager="t")
        store.emit_event(pod, "Pulling", "Pulling image", component="kubelet")

    live.call(make)
    live.bench.nodes.output = [b"one\n", b"two\n"]
    (pod,) = core.list_namespaced_pod("demo").items
    assert (pod.metadata.name, pod.status.phase) == ("p", "Pending")
    # Client 36 gives the repr of the bytes unless it is told to leave the body alone.
    assert core.read_namespaced_pod_log("p", "demo", _preload_content=False).data == b"one\ntwo\n"
    tail = core.read_namespaced_pod_log("p", "demo", tail_lines=1, _preload_content=False)
    assert tail.data == b"two\n"
    (event,) = core.list_namespaced_event("demo", field_selector="involvedObject.name=p").items
    assert (event.reason, event.count, event.last_timestamp is None) == ("Pulling", 1, False)
    assert core.delete_namespaced_pod("p", "demo").metadata.name == "p"


def test_config_maps_secrets_and_namespaces(client: Any) -> None:
    core = kubernetes.client.CoreV1Api(client)
    made = core.create_namespace({"metadata": {"name": "other"}})
    assert made.status.phase == "Active"
    core.create_namespaced_secret("other", {"metadata": {"name": "s"}, "stringData": {"k": "v"}})
    assert core.read_namespaced_secret("s", "other").data == {"k": "dg=="}
    core.create_namespaced_config_map("other", {"metadata": {"name": "c"}, "data": {"k": "v"}})
    patched = core.patch_namespaced_config_map("c", "other", {"data": {"k": None, "l": "w"}})
    assert patched.data == {"l": "w"}
    core.delete_namespace("other")
    with pytest.raises(kubernetes.client.exceptions.ApiException) as caught:
        core.create_namespaced_config_map("other", {"metadata": {"name": "d"}})
    assert caught.value.status == 403


def test_may_i(client: Any) -> None:
    authorization = kubernetes.client.AuthorizationV1Api(client)
    attributes = {"verb": "create", "group": "ray.io", "resource": "rayservices", "namespace": "demo"}
    review = authorization.create_self_subject_access_review({"spec": {"resourceAttributes": attributes}})
    assert review.status.allowed is True


def test_the_service_proxy_by_the_client(live: Any, client: Any) -> None:
    core = kubernetes.client.CoreV1Api(client)
    with pytest.raises(kubernetes.client.exceptions.ApiException) as caught:
        core.connect_get_namespaced_service_proxy_with_path("svc:8000", "demo", "-/healthz")
    assert caught.value.status == 404
    spec = {"selector": {"a": "b"}, "ports": [{"port": 8000}]}
    service = {"metadata": {"name": "svc", "namespace": "demo"}, "spec": spec}
    live.call(lambda: live.bench.store.create("services", service, manager="t"))
    with pytest.raises(kubernetes.client.exceptions.ApiException) as caught:
        core.connect_get_namespaced_service_proxy_with_path("svc:8000", "demo", "-/healthz")
    assert caught.value.status == 503
    assert "no endpoints available for service" in str(caught.value.body)


def test_an_expired_kubeconfig(live: Any, client: Any, tmp_path: Path) -> None:
    core = kubernetes.client.CoreV1Api(client)
    assert core.list_namespaced_pod("demo").items == []
    live.call(live.bench.authority.revoke_issued)
    with pytest.raises(kubernetes.client.exceptions.ApiException) as caught:
        core.list_namespaced_pod("demo")
    assert caught.value.status == 401
