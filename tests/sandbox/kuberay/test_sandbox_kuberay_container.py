"""Volumes, container paths and environment."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.sandbox.kuberay import (
    container,
)
from raynest_pipeline.sandbox.kuberay.container import ContainerError, Mounts

# --- the container's file system and environment


def _pod(mounts: list[dict[str, Any]], volumes: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"}},
        "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts, **spec}]},
        "status": {"podIP": "10.244.0.9"},
    }


class Cupboard:
    """Objects by resource and name."""

    def __init__(self, **found: dict[str, dict[str, Any]]) -> None:
        self.found = found

    def __call__(self, resource: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert namespace == "ns"
        return self.found.get(resource, {}).get(name)


def _config(**data: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "data": data}


def test_volumes_become_files(tmp_path: Path) -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    cupboard = Cupboard(
        configmaps={"code": _config(main="print(1)", rest="x")},
        secrets={"keys": {"kind": "Secret", "data": {"key": encoded}}},
    )
    pod = _pod(
        [
            {"name": "code", "mountPath": "/opt/app/"},
            {"name": "keys", "mountPath": "/etc/keys"},
            {"name": "scratch", "mountPath": "/scratch"},
            {"name": "models", "mountPath": "/models"},
            {"name": "code", "mountPath": "/etc/one.py", "subPath": "pkg/main.py"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "claim", "mountPath": "/data"},
        ],
        [
            {
                "name": "code",
                "configMap": {"name": "code", "items": [{"key": "main", "path": "pkg/main.py"}]},
            },
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "models", "hostPath": {"path": str(tmp_path)}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "big"}},
        ],
    )
    mounts = container.mount(pod, tmp_path / "pod", tmp_path / "claims", cupboard)
    assert set(mounts.paths) == {"/opt/app", "/etc/keys", "/scratch", "/models", "/etc/one.py", "/data"}
    assert (mounts.paths["/opt/app"] / "pkg" / "main.py").read_text() == "print(1)"
    assert not (mounts.paths["/opt/app"] / "rest").exists()
    assert mounts.paths["/etc/one.py"].read_text() == "print(1)"
    assert (mounts.paths["/etc/keys"] / "key").read_bytes() == b"\x00\xff"
    assert mounts.paths["/scratch"].is_dir()
    assert mounts.paths["/models"].resolve() == tmp_path.resolve()
    (mounts.paths["/data"] / "kept").write_text("1")
    assert (tmp_path / "claims" / "ns" / "big" / "kept").exists()


def test_changed_configmap_changes_the_files(tmp_path: Path) -> None:
    pod = _pod([{"name": "v", "mountPath": "/v"}], [{"name": "v", "configMap": {"name": "m"}}])
    first = Cupboard(configmaps={"m": _config(a="1", b="2")})
    folder = container.mount(pod, tmp_path / "pod", tmp_path, first).paths["/v"]
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("compiled")
    second = Cupboard(configmaps={"m": _config(a="3")})
    assert container.mount(pod, tmp_path / "pod", tmp_path, second).paths["/v"] == folder
    assert (folder / "a").read_text() == "3"
    assert not (folder / "b").exists()
    assert (folder / "__pycache__" / "a.pyc").exists()


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "m"}}, 'configmap "m" not found'),
        ({"secret": {"secretName": "s"}}, 'secret "s" not found'),
        (
            {"configMap": {"name": "there", "items": [{"key": "nope", "path": "x"}]}},
            "references non-existent configmap key: nope",
        ),
        (
            {"configMap": {"name": "there", "items": [{"key": "a", "path": "../../x"}]}},
            "the path leads out of the volume",
        ),
    ],
)
def test_volume_that_cannot_be_mounted(tmp_path: Path, volume: dict[str, Any], message: str) -> None:
    pod = _pod([{"name": "v", "mountPath": "/v"}], [{"name": "v", **volume}])
    with pytest.raises(ContainerError, match=message):
        container.mount(pod, tmp_path / "pod", tmp_path, Cupboard(configmaps={"there": _config(a="1")}))
    assert not (tmp_path / "x").exists()


def test_optional_volume_may_be_missing(tmp_path: Path) -> None:
    volume = {"name": "v", "configMap": {"name": "m", "optional": True}}
    pod = _pod([{"name": "v", "mountPath": "/v"}], [volume])
    assert container.mount(pod, tmp_path / "pod", tmp_path, Cupboard()).paths["/v"].is_dir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/opt/app", "/real/app"),
        ("/opt/app/x.py", "/real/app/x.py"),
        ("/opt/application", "/opt/application"),
        ("/a:/opt/app:/b", "/a:/real/app:/b"),
        ("--dir=/opt/app", "--dir=/real/app"),
        ("file:///opt/app/a.zip", "file:///real/app/a.zip"),
        ("https://host/opt/app", "https://host/opt/app"),
        ("/x/opt/app", "/x/opt/app"),
        ("/opt/app/deep/y", "/other/y"),
    ],
)
def test_container_paths_are_rewritten(text: str, expected: str) -> None:
    mounts = Mounts({"/opt/app": Path("/real/app"), "/opt/app/deep": Path("/other")})
    assert mounts.rewrite(text) == expected
    assert mounts.rewrite({"a": [text, 1, None]}) == {"a": [expected, 1, None]}
    assert Mounts({}).rewrite(text) == text


def test_environment(tmp_path: Path) -> None:
    env = [
        {"name": "PLAIN", "value": "v"},
        {"name": "TWICE", "value": "$(PLAIN)$(PLAIN) $$(PLAIN) $(NOPE)"},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {
            "name": "MAYBE",
            "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}},
        },
    ]
    pod = _pod(
        [],
        [],
        env=env,
        envFrom=[{"prefix": "M_", "configMapRef": {"name": "m"}}],
        resources={"limits": {"cpu": "2"}},
    )
    found = container.environment(pod, Mounts({}), Cupboard(configmaps={"m": _config(k="x")}))
    assert found == {
        "M_k": "x",
        "PLAIN": "v",
        "TWICE": "vv $(PLAIN) $(NOPE)",
        "LABEL": "b",
        "IP": "10.244.0.9",
        "CPU": "2",
        "FROM": "x",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "s", "key": "k"}}, 'secret "s" not found'),
        ({"configMapKeyRef": {"name": "m", "key": "z"}}, "couldn't find key z in ConfigMap ns/m"),
    ],
)
def test_variable_that_cannot_be_resolved(source: dict[str, Any], message: str) -> None:
    pod = _pod([], [], env=[{"name": "A", "valueFrom": source}])
    with pytest.raises(ContainerError) as caught:
        container.environment(pod, Mounts({}), Cupboard(configmaps={"m": _config(k="x")}))
    assert caught.value.message == message
    assert caught.value.reason == "CreateContainerConfigError"
