"""Tables for kubectl, and what the API says about itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from raynest_pipeline.sandbox.kube import discovery, tables
from raynest_pipeline.sandbox.kube.kinds import Registry

Object = dict[str, Any]

REGISTRY = Registry("1.7.0")


def ago(**parts: float) -> str:
    return (datetime.now(UTC) - timedelta(**parts)).strftime("%Y-%m-%dT%H:%M:%SZ")


def cells(resource: str, obj: Object) -> dict[str, Any]:
    obj.setdefault("metadata", {}).setdefault("name", "x")
    table = tables.table(REGISTRY.kind(resource), [obj], "7")
    names = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(names, table["rows"][0]["cells"], strict=True))


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ({"seconds": 5}, "5s"),
        ({"seconds": 119}, "119s"),
        ({"minutes": 3, "seconds": 20}, "3m20s"),
        ({"minutes": 4}, "4m"),
        ({"minutes": 90}, "90m"),
        ({"hours": 5, "minutes": 7}, "5h7m"),
        ({"hours": 20}, "20h"),
        ({"days": 12}, "12d"),
        ({"seconds": -30}, "0s"),
    ],
)
def test_ages(parts: dict[str, float], shown: str) -> None:
    assert tables.age(ago(**parts)) in (shown, shown.replace("20s", "21s").replace("5s", "6s"))


@pytest.mark.parametrize(
    ("state", "deleting", "shown"),
    [
        ({"running": {}}, False, "Running"),
        ({"waiting": {"reason": "ImagePullBackOff"}}, False, "ImagePullBackOff"),
        ({"terminated": {"reason": "OOMKilled"}}, False, "OOMKilled"),
        ({"running": {}}, True, "Terminating"),
    ],
)
def test_a_pods_row(state: Object, deleting: bool, shown: str) -> None:
    status = {"name": "c", "ready": "running" in state, "restartCount": 2, "state": state}
    metadata: Object = {"creationTimestamp": ago(seconds=5)} | (
        {"deletionTimestamp": "now"} if deleting else {}
    )
    pod = {
        "metadata": metadata,
        "spec": {"containers": [{"name": "c"}], "nodeName": "n"},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [status]},
    }
    row = cells("pods", pod)
    assert row["Status"] == shown
    assert row["Ready"] == ("1/1" if "running" in state else "0/1")
    assert (row["Restarts"], row["IP"], row["Node"]) == (2, "10.0.0.1", "n")


def test_a_pod_that_never_started_has_a_row_too() -> None:
    row = cells("pods", {"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"}})
    assert (row["Ready"], row["Status"], row["Restarts"], row["Age"]) == ("0/1", "Pending", 0, "<unknown>")


@pytest.mark.parametrize(
    ("kind", "addresses", "shown"),
    [
        ("ClusterIP", [], "<none>"),
        ("LoadBalancer", [], "<pending>"),
        ("LoadBalancer", [{"ip": "203.0.113.7"}, {"hostname": "h"}], "203.0.113.7,h"),
    ],
)
def test_a_services_row(kind: str, addresses: list[Object], shown: str) -> None:
    spec = {"type": kind, "clusterIP": "10.0.0.1", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}
    row = cells("services", {"spec": spec, "status": {"loadBalancer": {"ingress": addresses}}})
    assert (row["External-IP"], row["Port(s)"]) == (shown, "80/TCP,53/UDP")


@pytest.mark.parametrize(
    ("ready", "unschedulable", "shown"),
    [("True", False, "Ready"), ("False", False, "NotReady"), ("True", True, "Ready,SchedulingDisabled")],
)
def test_a_nodes_row(ready: str, unschedulable: bool, shown: str) -> None:
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    assert cells("nodes", {"spec": {"unschedulable": unschedulable}, "status": status})["Status"] == shown


def test_an_events_row() -> None:
    event = {
        "involvedObject": {"kind": "RayService", "name": "sd"},
        "reason": "Created",
        "message": "made it",
        "type": "Normal",
        "eventTime": ago(hours=20),
        "series": {"count": 2, "lastObservedTime": ago(seconds=30)},
    }
    row = cells("events", event)
    assert (row["Object"], row["Reason"], row["Message"]) == ("rayservice/sd", "Created", "made it")
    assert row["Last Seen"] in ("30s", "31s")


def test_a_clusters_row_has_numbers_and_gaps() -> None:
    row = cells("rayclusters", {"status": {"desiredWorkerReplicas": 1, "desiredCPU": "5", "state": "ready"}})
    assert (row["desired workers"], row["available workers"], row["cpus"], row["gpus"]) == (1, None, "5", "")


@pytest.mark.parametrize(
    ("include", "has"),
    [("None", None), ("Metadata", "PartialObjectMetadata"), ("Object", "Pod")],
)
def test_a_row_carries_what_was_asked_for(include: str, has: str | None) -> None:
    pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {}, "status": {}}
    row = tables.table(REGISTRY.kind("pods"), [pod], "7", include=include)["rows"][0]
    assert (row.get("object") or {}).get("kind") == has


def test_every_kind_is_found_where_it_says_it_is() -> None:
    for kind in REGISTRY.kinds:
        path = f"/apis/{kind.api_version}" if kind.group else "/api/v1"
        document = discovery.answer(REGISTRY, path, "host")
        assert document is not None
        assert kind.plural in [one["name"] for one in document["resources"]]
        assert REGISTRY.find(kind.group, kind.version, kind.plural) is kind
        assert REGISTRY.find(kind.group, "v9", kind.plural) is None


def test_groups_are_listed_and_described() -> None:
    document = discovery.answer(REGISTRY, "/apis", "host")
    assert document is not None
    names = [group["name"] for group in document["groups"]]
    assert "ray.io" in names
    group = discovery.answer(REGISTRY, "/apis/ray.io", "host")
    assert group is not None
    assert group["preferredVersion"] == {"groupVersion": "ray.io/v1", "version": "v1"}
    for missing in ("/apis/none.io", "/apis/none.io/v1", "/openapi/v3/apis/none.io/v1", "/else"):
        assert discovery.answer(REGISTRY, missing, "host") is None


def test_every_openapi_document_is_there_under_its_hash() -> None:
    index = discovery.answer(REGISTRY, "/openapi/v3", "host")
    assert index is not None
    for path, where in index["paths"].items():
        url, _, digest = where["serverRelativeURL"].partition("?hash=")
        assert url == f"/openapi/v3/{path}"
        assert len(digest) == 128
        document = discovery.answer(REGISTRY, url, "host")
        assert document is not None
        for operations in document["paths"].values():
            assert "fieldValidation" in [one["name"] for one in operations["patch"]["parameters"]]


def test_the_published_schema_is_the_one_of_the_release() -> None:
    def declared(release: str) -> set[str]:
        document = discovery.answer(Registry(release), "/openapi/v3/apis/ray.io/v1", "host")
        assert document is not None
        schema = document["components"]["schemas"]["io.ray.v1.RayService"]
        return set(schema["properties"]["spec"]["properties"]["rayClusterConfig"]["properties"])

    assert declared("1.7.0") - declared("1.3.0") == {"authOptions", "upgradeStrategy"}


def test_the_older_openapi_is_a_protobuf_message() -> None:
    version = discovery.VERSION["gitVersion"].encode()
    info = b"\x0a\x0aKubernetes\x12" + bytes([len(version)]) + version
    assert discovery.openapi_v2_protobuf() == b"\x0a\x032.0\x12" + bytes([len(info)]) + info


@pytest.mark.parametrize("version", ["", "latest", "1", "1.7.0-rc1"])
def test_a_version_must_be_a_release(version: str) -> None:
    with pytest.raises(ValueError, match="not a KubeRay version"):
        Registry(version)
