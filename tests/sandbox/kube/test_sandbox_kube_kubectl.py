"""The real kubectl against the sandbox's API server, with a kubeconfig that the cluster issued."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on this machine")


class Kubectl:
    """Runs kubectl in the namespace `demo` of a live cluster."""

    def __init__(self, live: Any, folder: Path, kubeconfig: str) -> None:
        self.live = live
        self.folder = folder
        self.path = folder / "kubeconfig"
        self.path.write_text(kubeconfig)
        self.path.chmod(0o600)

    def command(self, *arguments: str) -> list[str]:
        return [str(KUBECTL), "--kubeconfig", str(self.path), "--namespace", "demo", *arguments]

    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        return kept | {"HOME": str(self.folder)}

    def run(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            self.command(*arguments), env=self.env(), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def file(self, *objects: Object) -> str:
        path = self.folder / "manifest.yaml"
        path.write_text(yaml.safe_dump_all(objects))
        return str(path)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.run("get", *arguments, "-o", "json"))


@pytest.fixture
def kubectl(live: Any, tmp_path: Path, kubeconfig: Callable[[Any], str]) -> Kubectl:
    live.call(lambda: live.bench.store.create("namespaces", {"metadata": {"name": "demo"}}, manager="t"))
    return Kubectl(live, tmp_path, kubeconfig(live))


def in_store(kubectl: Kubectl, function: Callable[[Any], Any]) -> Any:
    return kubectl.live.call(lambda: function(kubectl.live.bench.store))


def test_server_side_apply_and_what_it_refuses(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    service = manifest(namespace=None)
    apply = ("apply", "--server-side", "--field-manager=dagster", "-f")
    assert "rayservice.ray.io/s1 serverside-applied" in kubectl.run(*apply, kubectl.file(service))
    assert "serverside-applied" in kubectl.run(*apply, kubectl.file(service))
    other = kubectl.file(manifest(namespace=None, image="ray:2"))
    refused = kubectl.run("apply", "--server-side", "--field-manager=other", "-f", other, fails=True)
    assert "Apply failed with 2 conflicts" in refused
    assert '.spec.rayClusterConfig.headGroupSpec.template.spec.containers[name="head"].image' in refused
    service["spec"]["nope"] = 1
    assert ".spec.nope: field not declared in schema" in kubectl.run(
        *apply, kubectl.file(service), fails=True
    )
    found = kubectl.get("rayservice", "s1", "--show-managed-fields")
    assert [entry["manager"] for entry in found["metadata"]["managedFields"]] == ["dagster"]


def test_client_side_apply_creates_and_changes(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"a.py": "x = 1"}}
    out = kubectl.run("apply", "-f", kubectl.file(manifest(namespace=None), code))
    assert "rayservice.ray.io/s1 created" in out
    assert "configmap/code created" in out
    code["data"] = {"a.py": "x = 2"}
    changed = kubectl.file(manifest(namespace=None, image="ray:2"), code)
    assert kubectl.run("apply", "-f", changed).count("configured") == 2
    before = in_store(kubectl, lambda store: store.list("rayservices"))
    again = kubectl.run("apply", "-f", changed)
    assert "configmap/code unchanged" in again
    # kubectl sends a list that the server has added defaults to again, and calls that configured.
    assert "rayservice.ray.io/s1 configured" in again
    assert in_store(kubectl, lambda store: store.list("rayservices")) == before
    head = kubectl.get("rayservice", "s1")["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["template"]["spec"]["containers"][0]["image"] == "ray:2"
    wrong = manifest(namespace=None)
    wrong["spec"]["nope"] = 1
    assert 'unknown field "spec.nope"' in kubectl.run("apply", "-f", kubectl.file(wrong), fails=True)


def test_get_shows_the_columns_of_the_crd(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    def make(store: Any) -> None:
        store.create("rayservices", manifest(), manager="t")
        status = {"serviceStatus": "Running", "numServeEndpoints": 2}
        store.update_status("rayservices", "demo", "s1", status, manager="t")

    in_store(kubectl, make)
    header, row = kubectl.run("get", "rayservice").splitlines()
    assert header.split() == ["NAME", "SERVICE", "STATUS", "NUM", "SERVE", "ENDPOINTS"]
    assert row.split() == ["s1", "Running", "2"]
    assert kubectl.run("get", "rayservice", "-o", "name") == "rayservice.ray.io/s1\n"
    jsonpath = kubectl.run("get", "rayservice", "s1", "-o", "jsonpath={.status.numServeEndpoints}")
    assert jsonpath == "2"
    assert "NotFound" in kubectl.run("get", "rayservice", "other", fails=True)
    assert "s1" in kubectl.run("get", "all", "-A")


def test_wait_sees_the_condition_come(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    in_store(kubectl, lambda store: store.create("rayservices", manifest(), manager="t"))
    waiting = kubectl.start("wait", "--for=condition=Ready", "rayservice/s1", "--timeout=30s")
    conditions = [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints"}]
    status = {"conditions": conditions}
    in_store(kubectl, lambda store: store.update_status("rayservices", "demo", "s1", status, manager="t"))
    out, errors = waiting.communicate(timeout=40)
    assert (waiting.returncode, out) == (0, "rayservice.ray.io/s1 condition met\n"), errors


def test_wait_gives_up_in_time(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    in_store(kubectl, lambda store: store.create("rayservices", manifest(), manager="t"))
    out = kubectl.run("wait", "--for=condition=Ready", "rayservice/s1", "--timeout=1s", fails=True)
    assert "timed out waiting for the condition" in out


def test_describe_and_events_tell_the_story(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    def make(store: Any) -> None:
        service = store.create("rayservices", manifest(), manager="t")
        store.emit_event(
            service, "CreatedRayCluster", "Created the RayCluster", component="rayservice-controller"
        )
        pod = {
            "metadata": {"name": "p", "namespace": "demo"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        pod = store.create("pods", pod, manager="t")
        store.emit_event(pod, "Failed", "no such image", "Warning", component="kubelet")

    in_store(kubectl, make)
    described = kubectl.run("describe", "rayservice", "s1")
    assert "Created the RayCluster" in described
    assert "no such image" not in described
    assert "no such image" in kubectl.run("describe", "pod", "p")
    listed = kubectl.run("events")
    assert "CreatedRayCluster" in listed
    assert "RayService/s1" in listed
    assert "Warning" in kubectl.run("get", "events", "--field-selector", "type=Warning")


def test_logs_by_name_and_by_label(kubectl: Kubectl) -> None:
    def make(store: Any) -> None:
        metadata = {"name": "p", "namespace": "demo", "labels": {"ray.io/node-type": "head"}}
        store.create(
            "pods", {"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}]}}, manager="t"
        )

    in_store(kubectl, make)
    kubectl.live.bench.nodes.output = [b"one\n", b"two\n"]
    assert kubectl.run("logs", "p") == "one\ntwo\n"
    assert kubectl.run("logs", "p", "--tail=1") == "two\n"
    assert kubectl.run("logs", "-l", "ray.io/node-type=head") == "one\ntwo\n"
    following = kubectl.start("logs", "-f", "p")
    kubectl.live.loop.call_soon_threadsafe(kubectl.live.bench.nodes.more.set)
    assert following.communicate(timeout=30)[0] == "one\ntwo\nthe end\n"


def test_delete_waits_for_the_finalizer(kubectl: Kubectl, manifest: Callable[..., Object]) -> None:
    def make(store: Any) -> None:
        service = manifest()
        service["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]
        store.create("rayservices", service, manager="t")

    def release(store: Any) -> None:
        service = store.get("rayservices", "demo", "s1")
        assert service["metadata"]["deletionTimestamp"]
        service["metadata"]["finalizers"] = []
        store.update("rayservices", service, manager="t")

    in_store(kubectl, make)
    kubectl.run("delete", "rayservice", "s1", "--wait=false")
    waiting = kubectl.start("delete", "rayservice", "s1", "--timeout=30s")
    in_store(kubectl, release)
    out, errors = waiting.communicate(timeout=40)
    # The object may be gone before this second delete came: then kubectl says so.
    assert 'rayservice.ray.io "s1" deleted' in out or "NotFound" in errors
    assert in_store(kubectl, lambda store: store.get("rayservices", "demo", "s1")) is None


def test_small_changes_and_a_namespaces_end(kubectl: Kubectl) -> None:
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"a": "1"}}
    kubectl.run("apply", "--server-side", "-f", kubectl.file(code))
    kubectl.run("label", "configmap", "code", "color=red")
    kubectl.run("annotate", "configmap", "code", "note=x")
    kubectl.run("patch", "configmap", "code", "-p", '{"data":{"b":"2"}}')
    kubectl.run("patch", "configmap", "code", "--type=json", "-p", '[{"op":"remove","path":"/data/a"}]')
    found = kubectl.get("configmap", "code")
    assert (found["metadata"]["labels"], found["data"]) == ({"color": "red"}, {"b": "2"})
    kubectl.run("delete", "namespace", "demo", "--timeout=30s")
    assert in_store(kubectl, lambda store: store.get("namespaces", None, "demo")) is None


def test_what_the_cluster_says_of_itself(kubectl: Kubectl) -> None:
    assert "v1.36.2" in kubectl.run("version")
    assert "rayservices" in kubectl.run("api-resources", "--api-group=ray.io")
    assert "serveConfigV2" in kubectl.run("explain", "rayservice.spec")
    assert kubectl.run("auth", "can-i", "create", "rayservices") == "yes\n"
    ready = kubectl.run("rollout", "status", "deployment/kuberay-operator", "-n", "kuberay-operator")
    assert "successfully rolled out" in ready


def test_a_revoked_kubeconfig_is_unauthorized(kubectl: Kubectl) -> None:
    kubectl.run("get", "pods")
    kubectl.live.call(kubectl.live.bench.authority.revoke_issued)
    assert "Unauthorized" in kubectl.run("get", "pods", fails=True)
