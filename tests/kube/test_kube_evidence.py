"""Gathering evidence through a scripted API server, with logs, and with parts that may not be read."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.kube.client import KubeClient
from raynest_pipeline.kube.rayservice.diagnosis import cluster_pods, diagnose

NOW = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
CLUSTER = "sd-x7k2p"
NEEDS_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def service(**status: Any) -> dict[str, Any]:
    full = {"pendingServiceStatus": {"rayClusterName": CLUSTER}, **status}
    metadata = {"name": "sd", "namespace": "demo", "uid": "u1", "generation": 1}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "status": full}


def pod(name: str = "w-1", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "demo"}, "spec": {"nodeName": "n1"}, "status": status}


def crashed_pod() -> dict[str, Any]:
    container = {
        "name": "ray-worker",
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"reason": "Error", "exitCode": 1}},
    }
    return pod(containerStatuses=[container])


def waiting_pod() -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NEEDS_GPU}
    return pod(conditions=[condition])


def event(reason: str, message: str, about: str) -> dict[str, Any]:
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"name": about}}


PODS = "GET /api/v1/namespaces/demo/pods"
EVENTS = "GET /api/v1/namespaces/demo/events"
RAY_CLUSTER = f"GET /apis/ray.io/v1/namespaces/demo/rayclusters/{CLUSTER}"


@pytest.fixture
def client(config_file: Path) -> Any:
    with KubeClient.from_file(config_file) as made:
        yield made


def test_everything_is_gathered(client: KubeClient, api: Any, tools: Any) -> None:
    crashed = crashed_pod()
    api.on(RAY_CLUSTER, {"metadata": {"name": CLUSTER}})
    api.on(PODS, {"items": [crashed]})
    api.on(
        EVENTS,
        {"items": [event("BackOff", "restarting", about="w-1"), event("BackOff", "other", about="not-ours")]},
    )
    log = tools.Answer(body="\n".join(f"line {i}" for i in range(20)), headers={"Content-Type": "text/plain"})
    api.on("GET /api/v1/namespaces/demo/pods/w-1/log", log)
    said = diagnose(client, service(), now=NOW)
    assert "exit code 1" in said.cause
    assert "log of w-1: line 19" in said.evidence
    assert "event on w-1: BackOff: restarting" in said.evidence
    assert not any("not-ours" in line for line in said.evidence)
    assert api.calls(PODS)[0].query["labelSelector"] == f"ray.io/cluster={CLUSTER}"
    assert api.calls("GET /api/v1/namespaces/demo/pods/w-1/log")[0].query["previous"] == "true"


def test_a_log_that_has_no_previous_run_is_read_as_it_is(client: KubeClient, api: Any, tools: Any) -> None:
    crashed = crashed_pod()
    api.on(RAY_CLUSTER, {"metadata": {"name": CLUSTER}})
    api.on(PODS, {"items": [crashed]})
    api.on(EVENTS, {"items": []})

    def log(asked: Any) -> Any:
        if "previous" in asked.query:
            return tools.Answer(
                400, tools.status_object(400, "BadRequest", "previous terminated container not found")
            )
        return tools.Answer(body="the log", headers={"Content-Type": "text/plain"})

    api.on("GET /api/v1/namespaces/demo/pods/w-1/log", log)
    assert "log of w-1: the log" in diagnose(client, service(), now=NOW).evidence


def test_what_cannot_be_read_is_said_and_the_rest_still_concluded(
    client: KubeClient, api: Any, tools: Any
) -> None:
    denied = tools.Answer(
        403, tools.status_object(403, "Forbidden", 'events is forbidden: User "u" cannot list')
    )
    api.on(RAY_CLUSTER, denied)
    api.on(PODS, {"items": [waiting_pod()]})
    api.on(EVENTS, denied)
    said = diagnose(client, service(), now=NOW)
    assert said.cause == "no node has a free GPU"
    assert sum(line.startswith("not readable") for line in said.evidence) == 3


def test_pods_of_both_clusters_the_new_one_first(client: KubeClient, api: Any, tools: Any) -> None:
    api.on(
        PODS, lambda asked: tools.Answer(body={"items": [pod(asked.query["labelSelector"].split("=")[1])]})
    )
    obj = service(activeServiceStatus={"rayClusterName": "sd-old"})
    assert [p["metadata"]["name"] for p in cluster_pods(client, obj)] == [CLUSTER, "sd-old"]
