"""Hashes, names and statuses, held against recordings of a real API server with KubeRay."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.sandbox.kuberay import (
    cluster_status,
    naming,
    objects,
    pods,
    service_status,
    services,
)
from raynest_pipeline.sandbox.kuberay.release import RELEASES, release
from raynest_pipeline.sandbox.kuberay.service_status import Side

DATA = Path(__file__).parent.parent / "data" / "kubernetes-recordings.json"


# --- releases, names, hashes


def test_unknown_release_is_named() -> None:
    assert release("v1.7.0") is RELEASES["1.7.0"]
    with pytest.raises(ValueError, match=r"'2\.0'.*1\.3\.0, 1\.7\.0"):
        release("2.0")


def _changed(spec: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(spec)
    target: Any = spec
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return spec


_TEMPLATE = ["workerGroupSpecs", 0, "template"]


@pytest.mark.parametrize(
    ("path", "value", "counts"),
    [
        (["workerGroupSpecs", 0, "replicas"], 5, (False, False)),
        (["workerGroupSpecs", 0, "minReplicas"], 0, (False, False)),
        (["workerGroupSpecs", 0, "maxReplicas"], 4, (False, False)),
        (["workerGroupSpecs", 0, "scaleStrategy"], {"workersToDelete": ["a"]}, (False, False)),
        (["workerGroupSpecs", 0, "scaleStrategy"], {}, (False, False)),
        ([*_TEMPLATE, "metadata"], {}, (False, False)),
        ([*_TEMPLATE, "spec", "tolerations"], [{"operator": "Exists"}], (True, False)),
        ([*_TEMPLATE, "metadata"], {"annotations": {"nonce": "1"}}, (True, True)),
        ([*_TEMPLATE, "spec", "containers", 0, "image"], "other", (True, True)),
        (["rayVersion"], "2.61.0", (True, True)),
    ],
)
def test_what_counts_for_the_hash(
    rayservice: dict[str, Any], path: list[Any], value: Any, counts: tuple[bool, bool]
) -> None:
    spec = naming.cluster_spec(rayservice)
    other = _changed(spec, path, value)
    for version, matters in zip(("1.3.0", "1.7.0"), counts, strict=True):
        one, two = (naming.spec_hash(each, release(version)) for each in (spec, other))
        assert (one != two) is matters, version
    assert len(naming.spec_hash(spec, release("1.3.0"))) == 32


# --- statuses, held against the recording of a real API server with KubeRay 1.7


def _recorded(key: str) -> dict[str, Any]:
    return dict(json.loads(DATA.read_text(encoding="utf-8"))[key]["body"])


def test_cluster_status_is_the_recorded_one() -> None:
    (cluster,) = _recorded("rayclusters")["items"]
    (head,) = _recorded("pods_head")["items"]
    worker = copy.deepcopy(head)
    worker["metadata"]["labels"] |= {"ray.io/node-type": "worker", "ray.io/group": "gpu-group"}
    expected = cluster["status"]
    status = cluster_status.compute({**cluster, "status": {}}, [head, worker])
    for each in status["conditions"] + expected["conditions"]:
        del each["lastTransitionTime"]
    for moment in ("lastUpdateTime", "stateTransitionTimes"):
        assert status.pop(moment).__class__ is expected.pop(moment).__class__
    assert status == expected


def test_service_status_is_the_recorded_one() -> None:
    recorded = _recorded("get_ready")
    expected = recorded["status"]
    (cluster,) = _recorded("rayclusters")["items"]
    applications = expected["activeServiceStatus"]["applicationStatuses"]
    active = Side(objects.name_of(cluster), cluster, applications)
    before = service_status.compute({**recorded, "status": {}}, Side(), Side("s1-58q7q"), 0)
    status = service_status.compute({**recorded, "status": before}, active, Side(), 2)
    del expected["lastUpdateTime"]
    for each in status["conditions"] + expected["conditions"]:
        del each["lastTransitionTime"]
    assert status == expected


def test_services_are_the_recorded_ones() -> None:
    (cluster,) = _recorded("rayclusters")["items"]
    rayservice = _recorded("get_ready")
    made = [
        services.cluster_head_service(cluster),
        services.rayservice_head_service(rayservice, cluster),
        services.serve_service(rayservice, cluster),
    ]
    for mine, real in zip(made, _recorded("services")["items"], strict=True):
        assert mine["metadata"]["labels"] == real["metadata"]["labels"]
        assert mine["metadata"]["ownerReferences"] == real["metadata"]["ownerReferences"]
        given = {key: real["spec"].get(key) for key in mine["spec"]}
        assert mine["spec"] == given
        assert set(real["spec"]) - set(mine["spec"]) <= {"clusterIP", "clusterIPs"}


def test_head_pod_is_the_recorded_one() -> None:
    (cluster,) = _recorded("rayclusters")["items"]
    (real,) = _recorded("pods_head")["items"]
    mine = pods.head_pod(cluster, release("1.7.0"))
    assert mine["metadata"]["generateName"] == real["metadata"]["generateName"]
    assert {**mine["metadata"]["labels"], "ray.io/serve": "true"} == real["metadata"]["labels"]
    assert mine["metadata"]["ownerReferences"] == real["metadata"]["ownerReferences"]
    ours, theirs = mine["spec"]["containers"][0], real["spec"]["containers"][0]
    assert ours["ports"] == theirs["ports"]
    assert ours["args"][0].split(";")[1].split() == theirs["args"][0].split(";")[1].split()
    names = {each["name"] for each in ours["env"]}
    assert names <= {each["name"] for each in theirs["env"]}


_SOON = "2026-11-24T00:00:00Z"


def _conditions(ready: str, upgrade: str, status: str = "False") -> list[dict[str, Any]]:
    made = [("Ready", status, ready), ("UpgradeInProgress", "False", upgrade)]
    return [
        {"type": kind, "status": state, "reason": reason, "lastTransitionTime": _SOON}
        for kind, state, reason in made
    ]


@pytest.mark.parametrize(
    ("old", "active", "pending", "endpoints", "expected"),
    [
        ([], "", "p", 0, ("False", "Initializing", "False", "Initializing")),
        (
            _conditions("Initializing", "Initializing"),
            "a",
            "",
            0,
            ("False", "Initializing", "False", "NoPendingCluster"),
        ),
        (
            _conditions("NonZeroServeEndpoints", "NoPendingCluster", "True"),
            "a",
            "p",
            1,
            ("True", "NonZeroServeEndpoints", "True", "BothActivePendingClustersExist"),
        ),
        (
            _conditions("NonZeroServeEndpoints", "NoPendingCluster", "True"),
            "a",
            "",
            0,
            ("False", "ZeroServeEndpoints", "False", "NoPendingCluster"),
        ),
        (
            _conditions("ZeroServeEndpoints", "NoPendingCluster"),
            "",
            "p",
            0,
            ("False", "ZeroServeEndpoints", "Unknown", "NoActiveCluster"),
        ),
    ],
)
def test_conditions(
    old: list[dict[str, Any]], active: str, pending: str, endpoints: int, expected: tuple[str, ...]
) -> None:
    service = {"metadata": {"generation": 3}, "status": {"conditions": old}}
    status = service_status.compute(service, Side(active), Side(pending), endpoints)
    found = {each["type"]: each for each in status["conditions"]}
    ready, upgrade = found["Ready"], found["UpgradeInProgress"]
    assert (ready["status"], ready["reason"], upgrade["status"], upgrade["reason"]) == expected
    assert status.get("serviceStatus") == ("Running" if expected[0] == "True" else None)
    assert ("numServeEndpoints" in status) is bool(endpoints)


def test_transition_time_moves_with_the_status_only() -> None:
    service = {
        "metadata": {"generation": 1},
        "status": {"conditions": _conditions("NonZeroServeEndpoints", "NoPendingCluster", "True")},
    }
    status = service_status.compute(service, Side("a"), Side(), 1)
    assert status["conditions"][0]["lastTransitionTime"] == _SOON
    status = service_status.compute(service, Side("a"), Side(), 0)
    assert status["conditions"][0]["lastTransitionTime"] != _SOON
    assert status["conditions"][1]["lastTransitionTime"] == _SOON


def test_only_what_kuberay_compares_is_written() -> None:
    service = {"metadata": {"generation": 1}}
    cluster = {"metadata": {"name": "a"}, "status": {"state": "ready", "head": {}}}
    one = service_status.compute(service, Side("a", cluster), Side(), 1)
    later = copy.deepcopy(one) | {"observedGeneration": 2}
    later["activeServiceStatus"]["rayClusterStatus"]["readyWorkerReplicas"] = 1
    assert not service_status.differs(one, later)
    later["activeServiceStatus"]["applicationStatuses"] = {"app": {"status": "RUNNING"}}
    assert service_status.differs(one, later)
    assert service_status.differs({}, one)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("90", 90), ("1h30m5s", 5405), ("soon", None), ("5 m", None)]
)
def test_duration(text: str, seconds: float | None) -> None:
    assert service_status.parse_duration(text) == seconds


def test_shown_duration() -> None:
    assert [service_status.show_duration(each) for each in (1800, 5, 3600)] == ["30m0s", "5s", "1h0m0s"]


def test_head_condition_borrows_the_containers_reason() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}
    head = {
        "status": {
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "unready"}
            ],
            "containerStatuses": [{"name": "ray-head", "state": {"waiting": waiting}}],
        }
    }
    condition = cluster_status.head_ready(head)
    assert condition["reason"] == "ImagePullBackOff"
    assert condition["message"] == 'unready; ray-head: Back-off pulling image "x"'
    assert cluster_status.head_ready(None)["reason"] == "HeadPodNotFound"


@pytest.mark.parametrize(
    ("group", "count"),
    [
        ({"replicas": 2, "minReplicas": 0, "maxReplicas": 10}, 2),
        ({"replicas": 0, "minReplicas": 1, "maxReplicas": 10}, 1),
        ({"replicas": 20, "minReplicas": 1, "maxReplicas": 10}, 10),
        ({"minReplicas": 3}, 3),
        ({"replicas": 2, "numOfHosts": 4}, 8),
        ({"replicas": 2, "suspend": True}, 0),
    ],
)
def test_replicas(group: dict[str, Any], count: int) -> None:
    assert cluster_status.replicas(group) == count
