"""RayService statuses of every release, and what they are judged to be."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.kube.rayservice.status import ReadyState, judge, parse, parse_applications

INITIALIZING = [
    {"type": kind, "status": "False", "reason": "Initializing", "message": "RayService is initializing",
     "observedGeneration": 1, "lastTransitionTime": "2026-11-24T00:00:02Z"}
    for kind in ("Ready", "UpgradeInProgress")
]  # fmt: skip
READY = {
    "type": "Ready",
    "status": "True",
    "reason": "NonZeroServeEndpoints",
    "message": "",
    "observedGeneration": 1,
}
SETTLED = {
    "type": "UpgradeInProgress",
    "status": "False",
    "reason": "NoPendingCluster",
    "observedGeneration": 1,
}
EMPTY = {"rayClusterStatus": {"head": {}}}


def app(status: str, message: str = "", **deployments: Any) -> dict[str, Any]:
    found = {
        name: {"status": value} if isinstance(value, str) else {"status": value[0], "message": value[1]}
        for name, value in deployments.items()
    }
    return {"sd": {"status": status, "message": message, "serveDeploymentStatuses": found}}


def service(status: dict[str, Any] | None, generation: int = 1, **metadata: Any) -> dict[str, Any]:
    made = {"metadata": {"name": "sd", "namespace": "demo", "generation": generation, **metadata}}
    return made if status is None else {**made, "status": status}


def half(name: str = "sd-x7k2p", apps: dict[str, Any] | None = None, **cluster: Any) -> dict[str, Any]:
    return {"rayClusterName": name, "applicationStatuses": apps or {}, "rayClusterStatus": cluster}


def running(**changes: Any) -> dict[str, Any]:
    status = {
        "observedGeneration": 1,
        "serviceStatus": "Running",
        "numServeEndpoints": 2,
        "conditions": [READY, SETTLED],
        "activeServiceStatus": half(apps=app("RUNNING", Ingress="HEALTHY", Model="HEALTHY")),
        "pendingServiceStatus": EMPTY,
    }
    return {**status, **changes}


SLOW = (
    "Deployment 'Model' in application 'sd' has 1 replicas that have taken more than 30s to be scheduled. "
    'Resources required for each replica: {"CPU": 1, "GPU": 1}, total resources available: {"CPU": 1.8}.'
)
TRACE = (
    "The deployment failed to start 3 times in a row. Error:\n"
    "\x1b[36mray::ServeReplica:sd:Model\x1b[39m (pid=1)\n  File ...\n"
    "RepositoryNotFoundError: 401 Client Error. Repository Not Found for url: https://hub/x.\n\n"
)

# The five examples of the facts, in time order.
FRESH = {
    "observedGeneration": 1,
    "conditions": INITIALIZING,
    "activeServiceStatus": EMPTY,
    "pendingServiceStatus": half(head={}),
}
LOADING = {
    **FRESH,
    "pendingServiceStatus": half(apps=app("DEPLOYING", Ingress="HEALTHY", Model=("UPDATING", SLOW))),
}
UPGRADING = running(
    conditions=[{**READY, "observedGeneration": 2}, {**SETTLED, "status": "True", "observedGeneration": 2}],
    activeServiceStatus=half(),
    pendingServiceStatus=half("sd-m4d8t", app("DEPLOYING")),
)
FAILED = {
    **FRESH,
    "pendingServiceStatus": half(
        apps=app("DEPLOY_FAILED", "Failed to update", Ingress="HEALTHY", Model=("DEPLOY_FAILED", TRACE))
    ),
}

EXAMPLES: dict[str, tuple[dict[str, Any], ReadyState, str]] = {
    "just created": (service(None), ReadyState.UNKNOWN, "no status yet"),
    "1 fresh": (service(FRESH), ReadyState.PENDING, "RayService is initializing"),
    "2 loading": (service(LOADING), ReadyState.PENDING, "taken more than 30s to be scheduled"),
    "3 running": (service(running()), ReadyState.READY, "sd running on 2 endpoints"),
    "3a endpoints lag": (
        service(running(conditions=INITIALIZING, numServeEndpoints=0)),
        ReadyState.PENDING,
        "initializing",
    ),
    "4 upgrading": (service(UPGRADING, 2), ReadyState.PENDING, "sd-m4d8t is to take over"),
    "5 failed": (service(FAILED), ReadyState.FAILED, "Repository Not Found"),
    "failed in place, Ready still True": (
        service(
            running(activeServiceStatus=half(apps=app("DEPLOY_FAILED", "x", Model=("DEPLOY_FAILED", TRACE))))
        ),
        ReadyState.FAILED,
        "Repository Not Found",
    ),
    "failed during an upgrade": (
        service(running(pendingServiceStatus=half("sd-new", app("DEPLOY_FAILED", "boom")))),
        ReadyState.FAILED,
        "boom",
    ),
    "timed out for good": (
        service(
            {
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "False",
                        "reason": "InitializingTimeout",
                        "message": "within 30m",
                    }
                ]
            }
        ),
        ReadyState.FAILED,
        "InitializingTimeout: within 30m",
    ),
    "invalid": (
        service({"conditions": [{"type": "Ready", "status": "False", "reason": "ValidationFailed"}]}),
        ReadyState.FAILED,
        "ValidationFailed",
    ),
    "suspended": (
        service({"conditions": [{"type": "Ready", "status": "False", "reason": "SuspendComplete"}]}),
        ReadyState.PENDING,
        "suspended",
    ),
    "unhealthy": (
        service(
            running(
                activeServiceStatus=half(
                    apps=app("UNHEALTHY", "", Model=("UNHEALTHY", "health check failed"))
                )
            )
        ),
        ReadyState.DEGRADED,
        "health check failed",
    ),
    "no endpoints": (
        service(running(conditions=[{**READY, "status": "False", "reason": "ZeroServeEndpoints"}])),
        ReadyState.DEGRADED,
        "ZeroServeEndpoints",
    ),
    "no endpoints while it is rebuilt": (
        service(
            running(
                conditions=[{**READY, "status": "False", "reason": "ZeroServeEndpoints"}],
                activeServiceStatus=half(apps=app("DEPLOYING", "")),
            )
        ),
        ReadyState.PENDING,
        "application sd: DEPLOYING",
    ),
    "no endpoints, a successor is on its way": (
        service(
            {
                "conditions": [
                    {**READY, "status": "False", "reason": "ZeroServeEndpoints"},
                    {**SETTLED, "status": "True"},
                ],
                "pendingServiceStatus": half("sd-new"),
            }
        ),
        ReadyState.PENDING,
        "sd-new is to take over",
    ),
    "change not yet seen": (service(running(), 2), ReadyState.PENDING, "has not seen the last change"),
    "head asleep": (
        service(running(activeServiceStatus=half())),
        ReadyState.UNKNOWN,
        "names no application",
    ),
    "upscaling for ever serves": (
        service(running(activeServiceStatus=half(apps=app("RUNNING", Model=("UPSCALING", SLOW))))),
        ReadyState.READY,
        "sd running",
    ),
    "running with a bad deployment": (
        service(running(activeServiceStatus=half(apps=app("RUNNING", Model="UNHEALTHY")))),
        ReadyState.DEGRADED,
        "Model UNHEALTHY",
    ),
    "deploying in place": (
        service(running(activeServiceStatus=half(apps=app("DEPLOYING", Model="UPDATING")))),
        ReadyState.PENDING,
        "DEPLOYING (Model UPDATING)",
    ),
    "being deleted": (
        service(running(), deletionTimestamp="2026-11-24T00:00:00Z"),
        ReadyState.PENDING,
        "being deleted",
    ),
    "1.2 waiting": (
        service({"serviceStatus": "WaitForServeDeploymentReady", "pendingServiceStatus": half()}),
        ReadyState.PENDING,
        "WaitForServeDeploymentReady",
    ),
    "1.2 running": (
        service(
            {"serviceStatus": "Running", "activeServiceStatus": half(apps=app("RUNNING", Model="HEALTHY"))}
        ),
        ReadyState.READY,
        "sd running",
    ),
}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_examples(name: str) -> None:
    obj, state, words = EXAMPLES[name]
    before = copy.deepcopy(obj)
    verdict = judge(parse(obj))
    assert verdict.state is state, verdict
    assert words in verdict.cause
    assert "\x1b" not in verdict.cause and "\n" not in verdict.cause
    assert obj == before


def test_the_recorded_service_is_ready(tools: Any) -> None:
    status = parse(tools.data("objects")["get_ready"])
    verdict = judge(status)
    assert verdict.state is ReadyState.READY
    assert verdict.cause == "stable_diffusion running on 2 endpoints"
    assert status.cluster.name == "s1-58q7q"
    assert status.cluster.head_service == "s1-58q7q-head-svc"
    assert status.cluster.head_pod == "s1-58q7q-head-mf7x4"
    assert (status.cluster.ready_workers, status.cluster.desired_workers) == (1, 1)
    assert [c.type for c in status.cluster.conditions][:2] == ["HeadPodReady", "RayClusterProvisioned"]
    ready = status.condition("Ready")
    assert ready is not None and ready.since is not None and ready.since.year == 2026


def test_the_recorded_watch_goes_from_pending_to_ready(tools: Any) -> None:
    states = [
        judge(parse({"metadata": {"generation": recorded["generation"]}, "status": recorded["status"]})).state
        for recorded in tools.data("watch_timeline")
        if recorded["type"] != "BOOKMARK" and recorded["status"] and not recorded["deletionTimestamp"]
    ]
    assert states[0] is ReadyState.PENDING
    assert ReadyState.READY in states
    assert set(states) <= {ReadyState.PENDING, ReadyState.READY}


def test_named_applications_must_be_there() -> None:
    status = parse(service(running()))
    assert judge(status, apps=("sd",)).state is ReadyState.READY
    missing = judge(status, apps=("sd", "other"))
    assert (missing.state, missing.cause) == (ReadyState.PENDING, "application other is not there yet")


def test_the_generation_can_be_given() -> None:
    assert judge(parse(service(running())), generation=5).state is ReadyState.PENDING
    assert judge(parse(service(running(), generation=9)), generation=1).state is ReadyState.READY


def test_the_active_cluster_goes_before_the_pending_one() -> None:
    assert parse(service(UPGRADING)).cluster.name == "sd-x7k2p"
    assert parse(service(LOADING)).cluster.name == "sd-x7k2p"
    assert parse(service(None)).cluster.name == ""


@pytest.mark.parametrize(
    ("recording", "status", "serving"),
    [
        ("ok_6", "RUNNING", True),
        ("ok_5", "DEPLOYING", False),
        ("kill_11.63", "UNHEALTHY", False),
        ("bad_zip_2.5", "DEPLOY_FAILED", False),
    ],
)
def test_the_dashboards_shape(tools: Any, recording: str, status: str, serving: bool) -> None:
    recorded = tools.data("serve_applications")[recording]
    (found,) = parse_applications({recorded["name"]: recorded}, deployments_key="deployments")
    assert (found.status, found.serving) == (status, serving)
    assert {d.name for d in found.deployments} == set(recorded["deployments"])


KEYS = [
    "metadata", "status", "conditions", "activeServiceStatus", "pendingServiceStatus", "applicationStatuses",
    "serveDeploymentStatuses", "rayClusterStatus", "rayClusterName", "head", "type", "reason", "message",
    "observedGeneration", "generation", "numServeEndpoints", "lastTransitionTime", "serviceStatus",
]  # fmt: skip
WORDS = ["Ready", "True", "False", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "Running", "ZeroServeEndpoints"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_json_is_read_and_judged(obj: dict[str, Any]) -> None:
    verdict = judge(parse(obj))
    assert verdict.cause
    assert isinstance(verdict.state, ReadyState)


APP_STATES = st.sampled_from(
    ["NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING"]
)
DEPLOYMENT_STATES = st.sampled_from(
    ["UPDATING", "HEALTHY", "UNHEALTHY", "DEPLOY_FAILED", "UPSCALING", "DOWNSCALING"]
)


@given(APP_STATES, DEPLOYMENT_STATES, st.booleans(), st.booleans(), st.integers(1, 3))
def test_ready_means_everything_at_once(
    application: str, deployment: str, ready: bool, upgrading: bool, generation: int
) -> None:
    conditions = [{**READY, "status": str(ready)}, {**SETTLED, "status": str(upgrading)}]
    status = running(conditions=conditions, activeServiceStatus=half(apps=app(application, Model=deployment)))
    state = judge(parse(service(status, generation))).state
    all_good = (
        application == "RUNNING"
        and deployment in ("HEALTHY", "UPSCALING", "DOWNSCALING")
        and ready
        and not upgrading
        and generation == 1
    )
    assert (state is ReadyState.READY) == all_good
    if application == "DEPLOY_FAILED":
        assert state is ReadyState.FAILED
