"""The ladder of causes, rung by rung, on gathered evidence and through a scripted API server."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.kube.rayservice.diagnosis import Diagnosis, conclude
from raynest_pipeline.kube.rayservice.evidence import Evidence
from raynest_pipeline.kube.rayservice.status import parse

NOW = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
CLUSTER = "sd-x7k2p"
NEEDS_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def ago(minutes: float) -> str:
    return (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def service(**status: Any) -> dict[str, Any]:
    full = {"pendingServiceStatus": {"rayClusterName": CLUSTER}, **status}
    metadata = {"name": "sd", "namespace": "demo", "uid": "u1", "generation": 1, "creationTimestamp": ago(30)}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "status": full}


def pod(name: str = "w-1", node: str = "", kind: str = "worker", **status: Any) -> dict[str, Any]:
    labels = {"ray.io/cluster": CLUSTER, "ray.io/node-type": kind}
    spec = {"nodeName": node} if node else {}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "demo", "labels": labels},
        "spec": spec,
        "status": {"phase": "Pending", **status},
    }


def unschedulable(message: str, minutes: float = 1) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": ago(minutes),
    }
    return pod(conditions=[condition])


def waiting(
    reason: str, message: str = "", *, last: Any = None, kind: str = "worker", init: bool = False
) -> dict[str, Any]:
    container = {
        "name": "ray-worker",
        "image": "rayproject/ray:2.60.0-py311-gpu",
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    if last:
        container["lastState"] = {"terminated": last}
    return pod(
        node="n1", kind=kind, **{"initContainerStatuses" if init else "containerStatuses": [container]}
    )


def cluster(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "RayCluster", "metadata": {"name": CLUSTER}, "status": {"conditions": list(conditions)}}


def event(
    reason: str, message: str, about: str = "sd", kind: str = "Warning", minutes: float = 1
) -> dict[str, Any]:
    return {
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": ago(minutes),
        "involvedObject": {"name": about, "kind": "RayService", "uid": "u1"},
    }


def found(obj: dict[str, Any] | None = None, **evidence: Any) -> Diagnosis:
    made = obj or service()
    return conclude(Evidence(ray_service=made, status=parse(made), **evidence), now=NOW)


def ready(reason: str, message: str = "") -> list[dict[str, Any]]:
    return [{"type": "Ready", "status": "False", "reason": reason, "message": message}]


def app(status: str, message: str = "", **deployments: tuple[str, str]) -> dict[str, Any]:
    inner = {name: {"status": state, "message": said} for name, (state, said) in deployments.items()}
    apps = {"sd": {"status": status, "message": message, "serveDeploymentStatuses": inner}}
    return service(pendingServiceStatus={"rayClusterName": CLUSTER, "applicationStatuses": apps})


def test_a_timeout_for_good_is_hopeless_and_says_the_only_way_out() -> None:
    said = found(service(conditions=ready("InitializingTimeout", "not ready within 30m0s")))
    assert "InitializingTimeout" in said.cause and said.hopeless
    assert said.evidence[0] == "not ready within 30m0s"
    assert "anew" in said.fix


def test_a_refused_spec_is_told_by_its_event() -> None:
    said = found(
        service(pendingServiceStatus={}),
        events=[
            event(
                "InvalidRayServiceSpec", "spec.rayClusterConfig.headGroupSpec.headService.name must be unset"
            )
        ],
    )
    assert "InvalidRayServiceSpec" in said.cause and said.hopeless
    assert "headService" in said.evidence[0]


def test_a_quota_that_stops_the_cluster() -> None:
    message = 'pods "sd-head" is forbidden: exceeded quota: gpus, requested: 1, used: 1'
    by_event = found(service(pendingServiceStatus={}), events=[event("FailedToCreateRayCluster", message)])
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateHeadPod",
        "message": message,
    }
    by_condition = found(clusters=[cluster(failure)])
    assert "quota" in by_event.cause and "quota" in by_condition.cause
    assert not by_event.hopeless
    assert "FailedCreateHeadPod" in by_condition.evidence[0]


def test_the_head_is_told_by_the_cluster_when_its_pod_cannot_be_read() -> None:
    condition = {
        "type": "HeadPodReady",
        "status": "False",
        "reason": "ImagePullBackOff",
        "message": "Back-off: manifest unknown",
    }
    said = found(clusters=[cluster(condition)])
    assert said.cause == "the image does not exist" and said.hopeless
    with_pod = found(
        clusters=[cluster(condition)], pods=[waiting("ErrImagePull", "connection timed out", kind="head")]
    )
    assert "cannot pull" in with_pod.cause and not with_pod.hopeless


@pytest.mark.parametrize("reason", ["HeadPodNotFound", "ContainersNotReady", "ContainerCreating"])
def test_a_head_that_is_only_starting_is_no_finding(reason: str) -> None:
    condition = {"type": "HeadPodReady", "status": "False", "reason": reason, "message": ""}
    assert not found(clusters=[cluster(condition)]).hopeless
    assert "head" not in found(clusters=[cluster(condition)]).cause


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        (NEEDS_GPU, "no node has a free GPU", "gpus_per_replica"),
        (
            "0/1 nodes: 1 node(s) had untolerated taint {gpu: true}, 1 Insufficient nvidia.com/gpu",
            "taint",
            "tolerations",
        ),
        ("0/3 nodes are available: 3 Insufficient memory.", "CPU or memory", "worker_memory"),
        ("0/3 nodes: 3 Insufficient ephemeral-storage.", "disk", "worker_disk_gib"),
        ("0/3 nodes: 3 node(s) didn't match Pod's node affinity/selector.", "node selector", "Label"),
        ("no nodes available to schedule pods", "no nodes", "Add a worker node"),
        ("something new", "no node takes the pod", "describe"),
    ],
)
def test_pods_that_no_node_takes(message: str, cause: str, fix: str) -> None:
    said = found(pods=[unschedulable(message)])
    assert cause in said.cause and fix in said.fix
    assert message in said.evidence[0]


@pytest.mark.parametrize(("minutes", "hopeless"), [(1, False), (9, False), (11, True)])
def test_an_autoscaler_is_given_time(minutes: float, hopeless: bool) -> None:
    assert found(pods=[unschedulable(NEEDS_GPU, minutes)]).hopeless is hopeless


def scaling(minimum: int, **spec: Any) -> dict[str, Any]:
    group = {"groupName": "gpu-group", "minReplicas": minimum, "maxReplicas": 5}
    return {**cluster(), "spec": {"workerGroupSpecs": [group], **spec}}


def in_group(one: dict[str, Any], name: str, **status: Any) -> dict[str, Any]:
    one["metadata"]["name"] = name
    one["metadata"]["labels"]["ray.io/group"] = "gpu-group"
    one["status"].update(status)
    return one


@pytest.mark.parametrize(
    ("minimum", "spec", "hopeless"),
    [
        (1, {"enableInTreeAutoscaling": True}, False),
        (2, {"enableInTreeAutoscaling": True}, True),
        (1, {}, True),
    ],
)
def test_a_further_worker_that_no_node_takes_stops_nothing(
    minimum: int, spec: dict[str, Any], hopeless: bool
) -> None:
    pods = [in_group(pod(node="n1"), "w-1", phase="Running"), in_group(unschedulable(NEEDS_GPU, 30), "w-2")]
    said = found(pods=pods, clusters=[scaling(minimum, **spec)])
    assert said.hopeless is hopeless
    assert ("GPU" in said.cause) is hopeless


def test_a_pod_that_is_being_deleted_is_no_finding() -> None:
    one = waiting("CrashLoopBackOff", "back-off")
    assert found(pods=[one]).crashed
    one["metadata"]["deletionTimestamp"] = ago(1)
    assert found(pods=[one]).crashed is None


def test_an_upgrade_without_a_second_gpu() -> None:
    obj = service(activeServiceStatus={"rayClusterName": "sd-old"})
    said = found(obj, pods=[unschedulable(NEEDS_GPU)])
    assert said.cause == f"the new RayCluster {CLUSTER} waits for a GPU that the old one, sd-old, still holds"
    assert "kubectl delete raycluster sd-old" in said.fix


@pytest.mark.parametrize(
    ("reason", "message", "cause", "hopeless"),
    [
        ("ErrImagePull", 'failed to pull "rayproject/ray:nope": manifest unknown', "does not exist", True),
        ("ImagePullBackOff", "Back-off pulling image: not found", "does not exist", True),
        (
            "ErrImagePull",
            "pull access denied, repository does not exist or may require authorization",
            "does not exist",
            True,
        ),
        ("ErrImagePull", "unauthorized: authentication required", "denies access", True),
        ("InvalidImageName", "couldn't parse image name", "not valid", True),
        ("ErrImagePull", "toomanyrequests: rate limit", "limits the rate", False),
        ("ErrImagePull", "write /var/lib/containerd: no space left on device", "disk is full", True),
        ("ErrImagePull", "dial tcp 10.0.0.1:443: i/o timeout", "cannot pull", False),
        ("ImagePullBackOff", "", "cannot pull", False),
    ],
)
def test_images_that_cannot_be_pulled(reason: str, message: str, cause: str, hopeless: bool) -> None:
    said = found(pods=[waiting(reason, message)])
    assert cause in said.cause
    assert "rayproject/ray:2.60.0-py311-gpu" in said.cause
    assert said.hopeless is hopeless
    assert reason in said.evidence[0]


def test_while_an_image_is_backed_off_the_event_says_what_failed() -> None:
    events = [
        event("Failed", 'Failed to pull image "x": i/o timeout', about="w-1", minutes=9),
        event("Failed", 'Failed to pull image "x": manifest unknown', about="w-1", minutes=5),
        event("Failed", "Error: ErrImagePull", about="w-1", minutes=4),
        event("Failed", 'Failed to pull image "x": unauthorized', about="another", minutes=1),
    ]
    said = found(pods=[waiting("ImagePullBackOff", 'Back-off pulling image "x"')], pod_events=events)
    assert "does not exist" in said.cause and said.hopeless
    assert said.evidence[0] == 'pod w-1: ImagePullBackOff: Failed to pull image "x": manifest unknown'


@pytest.mark.parametrize(("kind", "setting"), [("head", "head_memory"), ("worker", "worker_memory")])
def test_memory_names_the_setting_of_the_pod(kind: str, setting: str) -> None:
    last = {"reason": "OOMKilled", "exitCode": 137}
    said = found(pods=[waiting("CrashLoopBackOff", "back-off 5m0s", last=last, kind=kind)])
    assert "OOMKilled" in said.cause and setting in said.fix
    assert said.crashed is None


def test_a_crash_points_at_its_log() -> None:
    said = found(pods=[waiting("CrashLoopBackOff", "back-off", last={"reason": "Error", "exitCode": 1})])
    assert "exit code 1" in said.cause
    assert said.crashed == ("w-1", "ray-worker")
    assert not said.hopeless


def test_a_crash_loop_without_a_last_state() -> None:
    assert "crashes again" in found(pods=[waiting("CrashLoopBackOff", "back-off")]).cause


def test_a_container_that_cannot_be_created() -> None:
    said = found(pods=[waiting("CreateContainerConfigError", 'secret "hf" not found')])
    assert "cannot be created" in said.cause and 'secret "hf" not found' in said.evidence[0]


def test_an_init_container_counts_too() -> None:
    assert "cannot pull" in found(pods=[waiting("ErrImagePull", "timeout", init=True)]).cause


@pytest.mark.parametrize(
    ("message", "cause"),
    [("The node was low on resource: ephemeral-storage.", "its disk is full"), ("low on memory", "evicted")],
)
def test_evictions(message: str, cause: str) -> None:
    assert cause in found(pods=[pod(reason="Evicted", message=message)]).cause


def test_a_pod_that_recovered_is_no_finding() -> None:
    fine = {
        "name": "ray-worker",
        "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    }
    done = {"name": "wait-gcs-ready", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    said = found(pods=[pod(containerStatuses=[fine], initContainerStatuses=[done])])
    assert said.crashed is None and "exit code" not in said.cause


def test_what_cannot_run_outweighs_what_crashed() -> None:
    crashed = waiting("CrashLoopBackOff", "x", last={"reason": "Error", "exitCode": 1})
    assert "GPU" in found(pods=[crashed, unschedulable(NEEDS_GPU)]).cause
    gone = waiting("ErrImagePull", "manifest unknown")
    assert "does not exist" in found(pods=[unschedulable(NEEDS_GPU), gone]).cause


@pytest.mark.parametrize(
    ("recording", "cause"),
    [
        ("bad_ctor_7.24", "the model does not exist"),
        ("bad_ctor_3.12", "the model does not exist"),
        ("bad_import_6.26", "lacks a Python module"),
        ("bad_zip_2.5", "code archive"),
        ("gpu_32.87", "waits for resources"),
        ("kill_11.63", "application stable_diffusion is UNHEALTHY"),
    ],
)
def test_recorded_messages_of_applications(tools: Any, recording: str, cause: str) -> None:
    recorded = tools.data("serve_applications")[recording]
    apps = {recorded["name"]: {**recorded, "serveDeploymentStatuses": recorded["deployments"]}}
    said = found(service(pendingServiceStatus={"rayClusterName": CLUSTER, "applicationStatuses": apps}))
    assert cause in said.cause
    assert not said.hopeless
    assert said.fix
    assert all("\x1b" not in line and "\n" not in line for line in said.evidence)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("ModelUnavailable: no model 'x' at https://hub", "the model does not exist"),
        (
            "ModelUnavailable: model 'x/y' could not be fetched: couldn't connect to the hub; set",
            "hub is not reachable",
        ),
        ("ModelUnavailable: model 'x/y' could not be fetched: gated repo: accept its", "licence"),
        ("ModelUnavailable: model 'x/y': it takes 5.5 GB, but /var/cache has 1.0 GB free; give", "no room"),
        ("ModelUnavailable: model 's3://b/m': it needs the package s3fs: pip install s3fs", "object store"),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            "hub is not reachable",
        ),
        ("ERROR: No matching distribution found for diffusers==99", "pip finds no such package"),
        ("RuntimeError: Failed to install pip environment", "pip environment cannot be installed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "GPU's memory"),
        ("RuntimeError: Found no NVIDIA driver on your system", "sees no GPU"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("GatedRepoError: 403 Client Error. Cannot access gated repo", "licence"),
        ("replicas that have taken more than 30s to initialize", "still loading its model"),
    ],
)
def test_known_messages_of_applications(message: str, cause: str) -> None:
    assert cause in found(app("DEPLOYING", Model=("UPDATING", message))).cause


def test_an_unknown_message_is_quoted() -> None:
    said = found(
        app("DEPLOY_FAILED", "Failed to update", Model=("DEPLOY_FAILED", "Traceback\n  x\nValueError: new\n"))
    )
    assert said.cause == "application sd failed to start: ValueError: new"
    assert "deployment Model: DEPLOY_FAILED: ValueError: new" in said.evidence


def test_pods_go_before_the_application() -> None:
    obj = app("DEPLOYING", Model=("UPDATING", "taken more than 30s to be scheduled"))
    assert found(obj, pods=[unschedulable(NEEDS_GPU)]).cause == "no node has a free GPU"


@pytest.mark.parametrize(("minutes", "silent"), [(0.5, False), (2, True)])
def test_an_operator_that_never_looked(minutes: float, silent: bool) -> None:
    obj = {"metadata": {"name": "sd", "creationTimestamp": ago(minutes)}}
    said = found(obj)
    assert ("operator has not looked" in said.cause) is silent


def test_nothing_wrong_says_what_it_is_doing() -> None:
    said = found(
        service(conditions=ready("Initializing", "RayService is initializing")), pods=[pod(node="n1")]
    )
    assert said.cause == "RayService is initializing"
    assert (said.fix, said.hopeless) == ("", False)
    assert "pod w-1 on n1: Pending" in said.evidence


def test_the_latest_warnings_are_evidence_and_each_only_once() -> None:
    events = [event("FailedToUpdateServeApplications", f"dial tcp: {i}", minutes=10 - i) for i in range(6)]
    pods = [
        event("FailedScheduling", NEEDS_GPU, about="w-1"),
        event("Pulled", "done", about="w-1", kind="Normal"),
    ]
    said = found(events=events, pod_events=pods)
    assert "event on sd: FailedToUpdateServeApplications: dial tcp: 5" in said.evidence
    assert sum("FailedToUpdate" in line for line in said.evidence) == 1
    assert not any("Pulled" in line for line in said.evidence)


KEYS = [
    "status",
    "metadata",
    "conditions",
    "containerStatuses",
    "state",
    "waiting",
    "terminated",
    "reason",
    "message",
    "type",
    "name",
    "involvedObject",
    "lastState",
    "exitCode",
]
WORDS = ["ErrImagePull", "OOMKilled", "PodScheduled", "False", "Unschedulable", "Warning", "CrashLoopBackOff"]
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)
OBJECT = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)


@given(OBJECT, st.lists(OBJECT, max_size=2), st.lists(OBJECT, max_size=2), st.lists(OBJECT, max_size=2))
def test_any_objects_give_a_cause(obj: Any, clusters: Any, pods: Any, events: Any) -> None:
    said = found(obj or {}, clusters=clusters, pods=pods, events=events, pod_events=events)
    assert said.cause
